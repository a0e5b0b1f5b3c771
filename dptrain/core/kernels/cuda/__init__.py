"""The kernels on the GPU: for CuPy arrays what `reference` is for NumPy's.

CUDA C sources, one file for each family; compiled when one is first used on a GPU. Here are the twins
of `reference`; those of `reference_optim` are in `updates`, random numbers in `philox`.
"""

from dptrain.core.kernels.cuda import columns, images, lookup, norms, philox, rows, updates
from dptrain.core.kernels.cuda.columns import column_sums
from dptrain.core.kernels.cuda.gemm import linear, matmul
from dptrain.core.kernels.cuda.images import (
    col2im,
    im2col,
    max_pool,
    max_pool_gather,
    max_pool_scatter,
)
from dptrain.core.kernels.cuda.lookup import add_rows
from dptrain.core.kernels.cuda.norms import (
    batch_norm,
    batch_norm_grad,
    layer_norm,
    layer_norm_grad,
)
from dptrain.core.kernels.cuda.products import (
    conv,
    conv_input_grad,
    conv_weight_grad,
    sum_pool,
    sum_pool_scatter,
)
from dptrain.core.kernels.cuda.rows import cross_entropy, erf
from dptrain.core.kernels.cuda.smooth import gelu, gelu_grad
from dptrain.core.kernels.cuda.updates import adam, sgd

# Written over arrays of any library.
from dptrain.core.kernels.reference import (
    attention,
    attention_grad,
    batch_statistics,
    batch_vectors,
    channels_last,
    cross_entropy_grad,
    log_softmax,
    log_softmax_grad,
    normalise,
    relu,
    relu_grad,
    softmax,
    softmax_grad,
    unscale,
)
from dptrain.core.kernels.reference_activations import activation, activation_grad

__all__ = [
    "activation",
    "activation_grad",
    "FAMILIES",
    "adam",
    "add_rows",
    "attention",
    "attention_grad",
    "batch_norm",
    "batch_norm_grad",
    "batch_statistics",
    "batch_vectors",
    "channels_last",
    "col2im",
    "column_sums",
    "conv",
    "conv_input_grad",
    "conv_weight_grad",
    "cross_entropy",
    "cross_entropy_grad",
    "erf",
    "gelu",
    "gelu_grad",
    "im2col",
    "layer_norm",
    "layer_norm_grad",
    "linear",
    "log_softmax",
    "log_softmax_grad",
    "matmul",
    "max_pool",
    "max_pool_gather",
    "max_pool_scatter",
    "normalise",
    "relu",
    "relu_grad",
    "sgd",
    "softmax",
    "softmax_grad",
    "sum_pool",
    "sum_pool_scatter",
    "unscale",
]

FAMILIES = (
    columns.FAMILY,
    images.FAMILY,
    lookup.FAMILY,
    norms.FAMILY,
    rows.FAMILY,
    updates.FAMILY,
    philox.FAMILY,
)
