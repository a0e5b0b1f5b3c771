"""Functions without state of their own: PyTorch's `torch.nn.functional`.

Owns: argument checks, defaults and compositions, one family per file. The derivatives are in
`dptrain.core.ops`. Must not know: modules.
"""

from dptrain.core.export import FUNCTIONS
from dptrain.nn.functional.activation import log_softmax, relu, relu_, sigmoid, softmax, tanh
from dptrain.nn.functional.activation_more import (
    celu,
    celu_,
    elu,
    elu_,
    gelu,
    glu,
    gumbel_softmax,
    hardshrink,
    hardsigmoid,
    hardswish,
    hardtanh,
    hardtanh_,
    leaky_relu,
    leaky_relu_,
    logsigmoid,
    mish,
    prelu,
    relu6,
    rrelu,
    rrelu_,
    selu,
    selu_,
    silu,
    softmin,
    softplus,
    softshrink,
    softsign,
    tanhshrink,
    threshold,
    threshold_,
)
from dptrain.nn.functional.distance import cosine_similarity, normalize, pairwise_distance, pdist
from dptrain.nn.functional.dropout import dropout
from dptrain.nn.functional.linear import linear, one_hot
from dptrain.nn.functional.loss import cross_entropy, mse_loss, nll_loss
from dptrain.nn.functional.pooling import avg_pool2d, max_pool2d

conv2d = FUNCTIONS["conv2d"]

__all__ = [
    "avg_pool2d",
    "celu",
    "celu_",
    "conv2d",
    "cosine_similarity",
    "cross_entropy",
    "dropout",
    "elu",
    "elu_",
    "gelu",
    "glu",
    "gumbel_softmax",
    "hardshrink",
    "hardsigmoid",
    "hardswish",
    "hardtanh",
    "hardtanh_",
    "leaky_relu",
    "leaky_relu_",
    "linear",
    "log_softmax",
    "logsigmoid",
    "max_pool2d",
    "mish",
    "mse_loss",
    "nll_loss",
    "normalize",
    "one_hot",
    "pairwise_distance",
    "pdist",
    "prelu",
    "relu",
    "relu6",
    "relu_",
    "rrelu",
    "rrelu_",
    "selu",
    "selu_",
    "sigmoid",
    "silu",
    "softmax",
    "softmin",
    "softplus",
    "softshrink",
    "softsign",
    "tanh",
    "tanhshrink",
    "threshold",
    "threshold_",
]
