"""Linear algebra: PyTorch's `torch.linalg`. Nothing is defined here; see `dptrain.core.ops.linalg_*`."""

from dptrain.core import ops as _ops  # fills FUNCTIONS  # noqa: F401
from dptrain.core.export import FUNCTIONS
from dptrain.core.ops.linalg_solve import LinAlgError

cholesky = FUNCTIONS["linalg.cholesky"]
cross = FUNCTIONS["linalg.cross"]
det = FUNCTIONS["linalg.det"]
diagonal = FUNCTIONS["linalg.diagonal"]
eigh = FUNCTIONS["linalg.eigh"]
eigvalsh = FUNCTIONS["linalg.eigvalsh"]
inv = FUNCTIONS["linalg.inv"]
lstsq = FUNCTIONS["linalg.lstsq"]
matrix_norm = FUNCTIONS["linalg.matrix_norm"]
matrix_power = FUNCTIONS["linalg.matrix_power"]
matrix_rank = FUNCTIONS["linalg.matrix_rank"]
multi_dot = FUNCTIONS["linalg.multi_dot"]
norm = FUNCTIONS["linalg.norm"]
pinv = FUNCTIONS["linalg.pinv"]
qr = FUNCTIONS["linalg.qr"]
slogdet = FUNCTIONS["linalg.slogdet"]
solve = FUNCTIONS["linalg.solve"]
solve_triangular = FUNCTIONS["linalg.solve_triangular"]
svd = FUNCTIONS["linalg.svd"]
svdvals = FUNCTIONS["linalg.svdvals"]
vecdot = FUNCTIONS["linalg.vecdot"]
vector_norm = FUNCTIONS["linalg.vector_norm"]

__all__ = [
    "LinAlgError",
    "cholesky",
    "cross",
    "det",
    "diagonal",
    "eigh",
    "eigvalsh",
    "inv",
    "lstsq",
    "matrix_norm",
    "matrix_power",
    "matrix_rank",
    "multi_dot",
    "norm",
    "pinv",
    "qr",
    "slogdet",
    "solve",
    "solve_triangular",
    "svd",
    "svdvals",
    "vecdot",
    "vector_norm",
]
