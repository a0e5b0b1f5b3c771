"""One line of samples per operation: factors by LU and reflections, exponentials, inverses with infos."""

from sample_args import Call, c, call, i, pos, x
from samples_linalg import definite, regular

_INF = float("inf")
_SQUARE = [call(regular(3, 3)), call(regular(2, 4, 4)), call(regular(0, 0))]
_ANY = [*_SQUARE, call(x(2, 4, 3)), call(x(3, 5)), call(x(1, 1))]

SAMPLES: dict[str, list[Call]] = {
    # Their gradients count the triangle that is not read too, as PyTorch's: see test_linalg_lu.py.
    "cholesky_inverse": [call(definite(3, 3)), call(definite(2, 3, 3), upper=True)],
    "cholesky_solve": [
        call(x(3, 2), definite(3, 3)),
        call(x(3, 2), definite(2, 3, 3), upper=True),
    ],
    "geqrf": [call(c(4, 3)), call(c(2, 3, 5))],
    "linalg.cholesky_ex": [call(definite(3, 3)), call(definite(2, 4, 4), upper=True)],
    "linalg.cond": [
        call(x(4, 3)),
        call(x(2, 3, 3), -2),
        # PyTorch's derivative of these fails, as that of vander does: see test_linalg_lu.py.
        *[call(c(2, 3, 3), p) for p in ("fro", 1, -1, _INF, -_INF)],
        call(c(2, 2, low=1.0, high=1.0), "fro"),
    ],
    "linalg.householder_product": [
        call(x(4, 3), x(3)),
        call(x(2, 3, 3), x(2, 2)),
    ],
    "linalg.inv_ex": _SQUARE,
    "linalg.ldl_factor": [call(c(5, 5)), call(c(2, 4, 4)), call(definite(3, 3))],
    "linalg.ldl_factor_ex": [call(c(6, 6)), call(c(0, 0))],
    "linalg.ldl_solve": [],
    "linalg.lu": _ANY,
    "linalg.lu_factor": _ANY,
    "linalg.lu_factor_ex": [*_ANY, call(c(3, 3, low=1.0, high=1.0))],
    "linalg.lu_solve": [],
    "linalg.matrix_exp": [
        call(x(3, 3)),
        call(x(2, 4, 4, low=-9.0, high=3.0)),
        call(x(0, 3, 3)),
        call(x(1, 1)),
    ],
    "linalg.solve_ex": [
        call(regular(3, 3), x(3, 2)),
        call(regular(2, 3, 3), x(2, 3)),
        call(regular(3, 3), x(2, 3), left=False),
    ],
    "linalg.tensorinv": [call(x(2, 3, 6)), call(x(4, 2, 2), ind=1)],
    "linalg.tensorsolve": [
        call(x(2, 3, 6), x(2, 3)),
        call(x(2, 6, 3), x(2, 3), dims=(1,)),
    ],
    "linalg.vander": [call(x(4)), call(x(2, 3), N=5), call(i(3)), call(pos(), N=3)],
    "lu": [call(regular(3, 3)), call(x(2, 4, 3), get_infos=True)],
    "lu_solve": [],
    "lu_unpack": [],
    "matrix_exp": [call(x(3, 3))],
    "ormqr": [
        call(x(4, 3), x(3), x(4, 2)),
        call(x(4, 3), x(3), x(4, 2), transpose=True),
        call(x(2, 4, 3), x(2, 3), x(2, 2, 4), left=False),
    ],
    "orgqr": [call(x(4, 3), x(3))],
    "pca_lowrank": [],
    "qr": [call(x(4, 3)), call(c(4, 2), some=False)],
    "svd": [call(c(4, 3), compute_uv=False)],
    "svd_lowrank": [],
    "triangular_solve": [
        call(x(3, 2), regular(3, 3)),
        call(x(3, 2), regular(2, 3, 3), upper=False, transpose=True, unitriangular=True),
    ],
    "vander": [call(c(4)), call(c(3), 5, True), call(i(3), 1)],
}
