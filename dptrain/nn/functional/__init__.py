"""Functions without state of their own: PyTorch's `torch.nn.functional`.

Owns: argument checks, defaults and compositions, one family per file. The derivatives are in
`dptrain.core.ops`. Must not know: modules.
"""

from dptrain.core.export import FUNCTIONS, public
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
from dptrain.nn.functional.adaptive_pooling import (
    adaptive_avg_pool1d,
    adaptive_avg_pool2d,
    adaptive_avg_pool3d,
    adaptive_max_pool1d,
    adaptive_max_pool1d_with_indices,
    adaptive_max_pool2d,
    adaptive_max_pool2d_with_indices,
    adaptive_max_pool3d,
    adaptive_max_pool3d_with_indices,
    fractional_max_pool2d,
    fractional_max_pool2d_with_indices,
    fractional_max_pool3d,
    fractional_max_pool3d_with_indices,
    max_unpool1d,
    max_unpool2d,
    max_unpool3d,
)
from dptrain.nn.functional.attention import scaled_dot_product_attention
from dptrain.nn.functional.bilinear import bilinear
from dptrain.nn.functional.conv import conv_tbc
from dptrain.nn.functional.distance import cosine_similarity, normalize, pairwise_distance, pdist
from dptrain.nn.functional.dropout import (
    alpha_dropout,
    dropout,
    dropout1d,
    dropout2d,
    dropout3d,
    feature_alpha_dropout,
)
from dptrain.nn.functional.embedding import embedding, embedding_bag
from dptrain.nn.functional.grid_sample import affine_grid, grid_sample
from dptrain.nn.functional.interpolate import (
    interpolate,
    upsample,
    upsample_bilinear,
    upsample_nearest,
)
from dptrain.nn.functional.linear import linear, one_hot
from dptrain.nn.functional.loss import cross_entropy, linear_cross_entropy, nll_loss
from dptrain.nn.functional.loss_binary import (
    binary_cross_entropy,
    binary_cross_entropy_with_logits,
    kl_div,
    multilabel_soft_margin_loss,
    soft_margin_loss,
)
from dptrain.nn.functional.loss_ctc import ctc_loss
from dptrain.nn.functional.loss_margin import (
    cosine_embedding_loss,
    hinge_embedding_loss,
    margin_ranking_loss,
    multi_margin_loss,
    multilabel_margin_loss,
    triplet_margin_loss,
    triplet_margin_with_distance_loss,
)
from dptrain.nn.functional.loss_regression import (
    gaussian_nll_loss,
    huber_loss,
    l1_loss,
    mse_loss,
    poisson_nll_loss,
    smooth_l1_loss,
)
from dptrain.nn.functional.multihead_attention import multi_head_attention_forward
from dptrain.nn.functional.norm import (
    batch_norm,
    group_norm,
    instance_norm,
    layer_norm,
    local_response_norm,
    rms_norm,
)
from dptrain.nn.functional.padding import pad
from dptrain.nn.functional.pooling import (
    avg_pool1d,
    avg_pool2d,
    avg_pool3d,
    lp_pool1d,
    lp_pool2d,
    lp_pool3d,
    max_pool1d,
    max_pool1d_with_indices,
    max_pool2d,
    max_pool2d_with_indices,
    max_pool3d,
    max_pool3d_with_indices,
)
from dptrain.nn.functional.rearrange import (
    channel_shuffle,
    fold,
    pixel_shuffle,
    pixel_unshuffle,
    unfold,
)

conv2d = FUNCTIONS["conv2d"]
native_channel_shuffle = channel_shuffle
conv1d = FUNCTIONS["conv1d"]
conv3d = FUNCTIONS["conv3d"]
conv_transpose1d = FUNCTIONS["conv_transpose1d"]
conv_transpose2d = FUNCTIONS["conv_transpose2d"]
conv_transpose3d = FUNCTIONS["conv_transpose3d"]

__all__ = [
    "adaptive_avg_pool1d",
    "adaptive_avg_pool2d",
    "adaptive_avg_pool3d",
    "adaptive_max_pool1d",
    "adaptive_max_pool1d_with_indices",
    "adaptive_max_pool2d",
    "adaptive_max_pool2d_with_indices",
    "adaptive_max_pool3d",
    "adaptive_max_pool3d_with_indices",
    "affine_grid",
    "alpha_dropout",
    "avg_pool1d",
    "avg_pool2d",
    "avg_pool3d",
    "batch_norm",
    "bilinear",
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "celu",
    "celu_",
    "channel_shuffle",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_tbc",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "cosine_embedding_loss",
    "cosine_similarity",
    "cross_entropy",
    "ctc_loss",
    "dropout",
    "dropout1d",
    "dropout2d",
    "dropout3d",
    "elu",
    "elu_",
    "embedding",
    "embedding_bag",
    "feature_alpha_dropout",
    "fold",
    "fractional_max_pool2d",
    "fractional_max_pool2d_with_indices",
    "fractional_max_pool3d",
    "fractional_max_pool3d_with_indices",
    "gaussian_nll_loss",
    "gelu",
    "glu",
    "grid_sample",
    "group_norm",
    "gumbel_softmax",
    "hardshrink",
    "hardsigmoid",
    "hardswish",
    "hardtanh",
    "hardtanh_",
    "hinge_embedding_loss",
    "huber_loss",
    "instance_norm",
    "interpolate",
    "kl_div",
    "l1_loss",
    "layer_norm",
    "leaky_relu",
    "leaky_relu_",
    "linear",
    "linear_cross_entropy",
    "local_response_norm",
    "log_softmax",
    "logsigmoid",
    "lp_pool1d",
    "lp_pool2d",
    "lp_pool3d",
    "margin_ranking_loss",
    "max_pool1d",
    "max_pool1d_with_indices",
    "max_pool2d",
    "max_pool2d_with_indices",
    "max_pool3d",
    "max_pool3d_with_indices",
    "max_unpool1d",
    "max_unpool2d",
    "max_unpool3d",
    "mish",
    "mse_loss",
    "multi_head_attention_forward",
    "multi_margin_loss",
    "multilabel_margin_loss",
    "multilabel_soft_margin_loss",
    "native_channel_shuffle",
    "nll_loss",
    "normalize",
    "one_hot",
    "pad",
    "pairwise_distance",
    "pdist",
    "pixel_shuffle",
    "pixel_unshuffle",
    "poisson_nll_loss",
    "prelu",
    "relu",
    "relu6",
    "relu_",
    "rms_norm",
    "rrelu",
    "rrelu_",
    "scaled_dot_product_attention",
    "selu",
    "selu_",
    "sigmoid",
    "silu",
    "smooth_l1_loss",
    "soft_margin_loss",
    "softmax",
    "softmin",
    "softplus",
    "softshrink",
    "softsign",
    "tanh",
    "tanhshrink",
    "threshold",
    "threshold_",
    "triplet_margin_loss",
    "triplet_margin_with_distance_loss",
    "unfold",
    "upsample",
    "upsample_bilinear",
    "upsample_nearest",
]

# Arguments are checked, and under autocast cast by its table; those of FUNCTIONS are already.
#: In PyTorch these functions look at the following arguments themselves: a flag is asked for its truth,
#: whatever it is, and a word that is none of the known ones is a ValueError, whatever its type.
_LENIENT = dict.fromkeys(
    [
        "size_average",
        "reduce",
        "reduction",
        "inplace",
        "return_indices",
        "antialias",
        "recompute_scale_factor",
        "full",
        "swap",
        "mode",
        "padding_mode",
        "need_weights",
        "add_zero_attn",
        "average_attn_weights",
        "_stacklevel",
    ],
    "",
)
#: Kinds of single functions.
_OWN = {
    "pad": {"mode": "str"},
    "poisson_nll_loss": {"full": "bool"},
    "triplet_margin_loss": {"swap": "bool"},
}
_done = {id(function) for function in FUNCTIONS.values()}
for _name in __all__:
    if id(globals()[_name]) not in _done:
        _function = globals()[_name] = public(
            globals()[_name], "nn.functional.", **{**_LENIENT, **_OWN.get(_name, {})}
        )
        _function.__module__ = __name__  # where it is found, so that it can be pickled
