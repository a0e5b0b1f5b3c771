"""The kernels on the GPU: for CuPy arrays what `reference` is for NumPy's.

CUDA C sources, one file for each family; compiled when one is first used on a GPU. Here are the twins
of `reference`; those of `reference_optim` are in `updates`, random numbers in `philox`.
"""

from dptrain.core.kernels.cuda import images, philox, rows, updates
from dptrain.core.kernels.cuda.images import (
    col2im,
    im2col,
    max_pool,
    max_pool_gather,
    max_pool_scatter,
)
from dptrain.core.kernels.cuda.rows import cross_entropy, erf
from dptrain.core.kernels.cuda.updates import adam, sgd

# Written over arrays of any library.
from dptrain.core.kernels.reference import unscale

__all__ = [
    "FAMILIES",
    "adam",
    "col2im",
    "cross_entropy",
    "erf",
    "im2col",
    "max_pool",
    "max_pool_gather",
    "max_pool_scatter",
    "sgd",
    "unscale",
]

FAMILIES = (images.FAMILY, rows.FAMILY, updates.FAMILY, philox.FAMILY)
