"""The kernels on the GPU: for CuPy arrays what `reference` is for NumPy's.

CUDA C sources, one file for each family; compiled when one is first used on a GPU. Here are the twins
of `reference`; those of `reference_optim` are in `updates`, random numbers in `philox`.
"""

from dptrain.core.kernels.cuda import (
    activations,
    attend,
    column_norms,
    columns,
    images,
    lookup,
    norms,
    numbers,
    order,
    philox,
    pointwise,
    rows,
    updates,
)
from dptrain.core.kernels.cuda.activations import activation, activation_grad, gelu, gelu_grad
from dptrain.core.kernels.cuda.attend import attention, attention_grad
from dptrain.core.kernels.cuda.column_norms import (
    batch_norm,
    batch_norm_grad,
    batch_statistics,
    batch_vectors,
    follow,
    normalise,
)
from dptrain.core.kernels.cuda.columns import column_sums
from dptrain.core.kernels.cuda.gemm import linear, matmul
from dptrain.core.kernels.cuda.images import (
    col2im,
    im2col,
    max_pool,
    max_pool_gather,
    max_pool_scatter,
    sum_pool,
    sum_pool_scatter,
)
from dptrain.core.kernels.cuda.lookup import add_rows
from dptrain.core.kernels.cuda.norms import (
    layer_norm,
    layer_norm_grad,
    rms_norm,
    rms_norm_grad,
)
from dptrain.core.kernels.cuda.order import channels_last
from dptrain.core.kernels.cuda.pointwise import (
    add,
    assign,
    convert,
    dropout,
    keep,
    multiply,
    relu,
    relu_grad,
)
from dptrain.core.kernels.cuda.products import (
    conv,
    conv_input_grad,
    conv_volume,
    conv_volume_input_grad,
    conv_volume_weight_grad,
    conv_weight_grad,
)
from dptrain.core.kernels.cuda.rows import (
    cross_entropy,
    cross_entropy_grad,
    erf,
    log_softmax,
    log_softmax_grad,
    softmax,
    softmax_grad,
)
from dptrain.core.kernels.cuda.updates import adam, sgd

# Written over arrays of any library.
from dptrain.core.kernels.reference import (
    add_at,
    clip,
    group_norm,
    group_norm_grad,
    pass_where,
    prelu,
    prelu_grad,
    recurrent,
    recurrent_grad,
    row_major,
    unscale,
    weighted_sums,
)

__all__ = [
    "activation",
    "activation_grad",
    "adam",
    "add",
    "add_at",
    "add_rows",
    "assign",
    "attention",
    "attention_grad",
    "batch_norm",
    "batch_norm_grad",
    "batch_statistics",
    "batch_vectors",
    "channels_last",
    "clip",
    "col2im",
    "column_sums",
    "conv",
    "conv_input_grad",
    "conv_volume",
    "conv_volume_input_grad",
    "conv_volume_weight_grad",
    "conv_weight_grad",
    "convert",
    "cross_entropy",
    "cross_entropy_grad",
    "dropout",
    "erf",
    "FAMILIES",
    "follow",
    "gelu",
    "gelu_grad",
    "group_norm",
    "group_norm_grad",
    "im2col",
    "keep",
    "layer_norm",
    "layer_norm_grad",
    "linear",
    "log_softmax",
    "log_softmax_grad",
    "matmul",
    "max_pool",
    "max_pool_gather",
    "max_pool_scatter",
    "multiply",
    "normalise",
    "pass_where",
    "prelu",
    "prelu_grad",
    "recurrent",
    "recurrent_grad",
    "relu",
    "relu_grad",
    "rms_norm",
    "rms_norm_grad",
    "row_major",
    "sgd",
    "softmax",
    "softmax_grad",
    "sum_pool",
    "sum_pool_scatter",
    "unscale",
    "weighted_sums",
]

FAMILIES = (
    activations.FAMILY,
    attend.FAMILY,
    column_norms.FAMILY,
    columns.FAMILY,
    images.FAMILY,
    lookup.FAMILY,
    norms.FAMILY,
    order.FAMILY,
    numbers.FAMILY,
    philox.FAMILY,
    pointwise.FAMILY,
    rows.FAMILY,
    updates.FAMILY,
)
