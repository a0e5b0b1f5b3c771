"""Functions without state of their own: PyTorch's `torch.nn.functional`.

Owns: argument checks, defaults and compositions, one family per file. The derivatives are in
`dptrain.core.ops`. Must not know: modules.
"""

from dptrain.core.export import FUNCTIONS
from dptrain.nn.functional.activation import log_softmax, relu, relu_, sigmoid, softmax, tanh
from dptrain.nn.functional.dropout import dropout
from dptrain.nn.functional.linear import linear, one_hot
from dptrain.nn.functional.loss import cross_entropy, mse_loss, nll_loss
from dptrain.nn.functional.pooling import avg_pool2d, max_pool2d

conv2d = FUNCTIONS["conv2d"]

__all__ = [
    "avg_pool2d",
    "conv2d",
    "cross_entropy",
    "dropout",
    "linear",
    "log_softmax",
    "max_pool2d",
    "mse_loss",
    "nll_loss",
    "one_hot",
    "relu",
    "relu_",
    "sigmoid",
    "softmax",
    "tanh",
]
