"""Linear algebra: PyTorch's `torch.linalg`. Nothing is defined here; see `dptrain.core.ops.linalg_*`."""

from dptrain.core import ops as _ops  # fills FUNCTIONS  # noqa: F401
from dptrain.core.export import FUNCTIONS
from dptrain.core.ops.linalg_solve import LinAlgError

cholesky = FUNCTIONS["linalg.cholesky"]
cholesky_ex = FUNCTIONS["linalg.cholesky_ex"]
cond = FUNCTIONS["linalg.cond"]
cross = FUNCTIONS["linalg.cross"]
det = FUNCTIONS["linalg.det"]
diagonal = FUNCTIONS["linalg.diagonal"]
eigh = FUNCTIONS["linalg.eigh"]
eigvalsh = FUNCTIONS["linalg.eigvalsh"]
householder_product = FUNCTIONS["linalg.householder_product"]
inv = FUNCTIONS["linalg.inv"]
inv_ex = FUNCTIONS["linalg.inv_ex"]
ldl_factor = FUNCTIONS["linalg.ldl_factor"]
ldl_factor_ex = FUNCTIONS["linalg.ldl_factor_ex"]
ldl_solve = FUNCTIONS["linalg.ldl_solve"]
lstsq = FUNCTIONS["linalg.lstsq"]
lu = FUNCTIONS["linalg.lu"]
lu_factor = FUNCTIONS["linalg.lu_factor"]
lu_factor_ex = FUNCTIONS["linalg.lu_factor_ex"]
lu_solve = FUNCTIONS["linalg.lu_solve"]
matmul = FUNCTIONS["matmul"]
matrix_exp = FUNCTIONS["linalg.matrix_exp"]
matrix_norm = FUNCTIONS["linalg.matrix_norm"]
matrix_power = FUNCTIONS["linalg.matrix_power"]
matrix_rank = FUNCTIONS["linalg.matrix_rank"]
multi_dot = FUNCTIONS["linalg.multi_dot"]
norm = FUNCTIONS["linalg.norm"]
pinv = FUNCTIONS["linalg.pinv"]
qr = FUNCTIONS["linalg.qr"]
slogdet = FUNCTIONS["linalg.slogdet"]
solve = FUNCTIONS["linalg.solve"]
solve_ex = FUNCTIONS["linalg.solve_ex"]
solve_triangular = FUNCTIONS["linalg.solve_triangular"]
svd = FUNCTIONS["linalg.svd"]
svdvals = FUNCTIONS["linalg.svdvals"]
tensorinv = FUNCTIONS["linalg.tensorinv"]
tensorsolve = FUNCTIONS["linalg.tensorsolve"]
vander = FUNCTIONS["linalg.vander"]
vecdot = FUNCTIONS["linalg.vecdot"]
vector_norm = FUNCTIONS["linalg.vector_norm"]

__all__ = [
    "LinAlgError",
    "cholesky",
    "cholesky_ex",
    "cond",
    "cross",
    "det",
    "diagonal",
    "eigh",
    "eigvalsh",
    "householder_product",
    "inv",
    "inv_ex",
    "ldl_factor",
    "ldl_factor_ex",
    "ldl_solve",
    "lstsq",
    "lu",
    "lu_factor",
    "lu_factor_ex",
    "lu_solve",
    "matmul",
    "matrix_exp",
    "matrix_norm",
    "matrix_power",
    "matrix_rank",
    "multi_dot",
    "norm",
    "pinv",
    "qr",
    "slogdet",
    "solve",
    "solve_ex",
    "solve_triangular",
    "svd",
    "svdvals",
    "tensorinv",
    "tensorsolve",
    "vander",
    "vecdot",
    "vector_norm",
]
