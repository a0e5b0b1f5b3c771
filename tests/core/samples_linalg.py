"""One line of samples per operation of linear algebra."""

from sample_args import Arg, Call, c, call, i, pos, x

_INF = float("inf")


def regular(*shape):
    """Well-conditioned square matrices."""
    return x(*shape, transform="regular")


def definite(*shape):
    """Symmetric positive-definite matrices, without derivatives: a difference breaks the symmetry."""
    return Arg("c", shape, transform="definite")


_SQUARE = [call(regular(3, 3)), call(regular(2, 4, 4)), call(regular(1, 1))]

SAMPLES: dict[str, list[Call]] = {
    "vdot": [call(x(4), x(4)), call(i(3), i(3))],
    "addbmm": [
        call(x(3, 5), x(2, 3, 4), x(2, 4, 5)),
        call(x(5), x(2, 3, 4), x(2, 4, 5), beta=0.5, alpha=2.0),
    ],
    "addmm": [
        call(x(3, 5), x(3, 4), x(4, 5)),
        call(x(5), x(3, 4), x(4, 5), beta=0.5, alpha=-2.0),
        call(x(3, 1), x(3, 4), x(4, 5), beta=0),
        call(i(3, 5), i(3, 4), i(4, 5), alpha=2),
    ],
    "addmv": [call(x(3), x(3, 4), x(4)), call(x(1), x(3, 4), x(4), beta=2.0, alpha=0.5)],
    "addr": [call(x(3, 4), x(3), x(4)), call(x(4), x(3), x(4), beta=0.5, alpha=2.0)],
    "baddbmm": [
        call(x(2, 3, 5), x(2, 3, 4), x(2, 4, 5)),
        call(x(3, 1), x(2, 3, 4), x(2, 4, 5), beta=0.5, alpha=2.0),
    ],
    "chain_matmul": [call(x(2, 3), x(3, 4), x(4, 2))],
    "cholesky": [call(definite(3, 3)), call(definite(3, 3), True)],
    "det": _SQUARE,
    "einsum": [
        call("ij,jk->ik", x(3, 4), x(4, 5)),
        call("bij,bjk->bik", x(2, 3, 4), x(2, 4, 5)),
        call("ij,jk", x(3, 4), x(4, 5)),
        call("ii->i", x(3, 3)),
        call("ii", x(3, 3)),
        call("ij->ji", x(3, 4)),
        call("ij->", x(3, 4)),
        call("i,j->ij", x(3), x(4)),
        call("bn,anm,bm->ba", x(2, 5), x(3, 5, 4), x(2, 4)),
        call("...ij,...jk->...ik", x(2, 1, 3, 4), x(5, 4, 2)),
        call("b...,b...->b", x(3, 4, 2), x(3, 4, 2)),
        call("ij,ij->ij", x(3, 4), x(3, 4)),
        call("ij,jk->ik", x(3, 1), x(4, 5)),
        call("bhqd,bhkd->bhqk", x(2, 3, 4, 5), x(2, 3, 2, 5)),
        call("iij,j->i", x(3, 3, 2), x(2)),
    ],
    "ger": [call(x(3), x(4))],
    "inner": [call(x(3), x(3)), call(x(2, 3), x(4, 3)), call(x(), x(2, 3))],
    "inverse": _SQUARE,
    "kron": [call(x(2, 3), x(3, 2)), call(x(3), x(2, 2)), call(x(2, 1, 2), x(2))],
    "logdet": [call(regular(3, 3)), call(regular(2, 3, 3))],
    "matrix_power": [call(x(3, 3), 3), call(regular(2, 2, 2), -2)],
    "mv": [call(x(3, 4), x(4)), call(x(0, 4), x(4))],
    "norm": [
        call(x(3, 4)),
        call(x(3, 4), 1),
        call(x(3, 4), 2, 1),
        call(pos(3, 4), 3, 0, True),
        call(x(4), _INF),
        call(x(2, 3, 4), "fro", (1, 2)),
        call(x(3, 4), "nuc"),
        call(c(3, low=-0.0, high=0.0)),
    ],
    "outer": [call(x(3), x(4)), call(x(0), x(4))],
    "pinverse": [call(x(4, 3)), call(x(3, 4))],
    "slogdet": _SQUARE,
    "tensordot": [
        call(x(2, 3, 4), x(3, 4, 5)),
        call(x(2, 3, 4), x(4, 5), 1),
        call(x(2, 3), x(4), 0),
        call(x(2, 3, 4), x(4, 5, 2), dims=([0, 2], [2, 0])),
        call(x(2, 1, 4), x(4, 5, 2), dims=([1, 2], [2, 0])),
        call(x(2, 3), x(1, 4), dims=([1], [0])),
    ],
    "linalg.cholesky": [call(definite(3, 3)), call(definite(2, 4, 4), upper=True)],
    "linalg.cross": [call(x(4, 3), x(4, 3)), call(x(3, 1), x(3, 4), dim=0)],
    "linalg.det": [*_SQUARE, call(c(2, 2, low=1.0, high=1.0))],
    # Larger ones differ by the signs of vectors, which are LAPACK's choice: see test_linalg.py.
    "linalg.eigh": [call(definite(1, 1)), call(definite(2, 1, 1), "U")],
    "linalg.eigvalsh": [call(definite(3, 3)), call(definite(2, 4, 4), UPLO="U")],
    "linalg.inv": _SQUARE,
    "linalg.lstsq": [
        call(x(5, 3), x(5, 2)),
        call(x(3, 5), x(3, 2)),
        call(x(2, 5, 3), x(2, 5)),
        call(regular(3, 3), x(3, 1)),
        *[call(x(2, 5, 3), x(2, 5, 2), driver=d) for d in ("gels", "gelsd")],
    ],
    "linalg.matrix_norm": [
        call(x(3, 4)),
        *[call(x(2, 3, 4), p) for p in ("nuc", _INF, -_INF, 1, -1, 2, -2)],
        call(x(2, 3, 4), 2, (2, 0), True),
        call(x(2, 3, 4), 1, (0, 1), keepdim=True),
    ],
    "linalg.matrix_power": [
        *[call(x(3, 3), n) for n in (0, 1, 2, 5)],
        call(regular(2, 2, 2), -3),
    ],
    "linalg.matrix_rank": [
        call(c(4, 3)),
        call(c(2, 3, 3, low=1.0, high=1.0)),
        call(c(4, 3), 1.5),
        call(c(4, 3), atol=0.5, rtol=0.4),
        call(definite(3, 3), hermitian=True),
    ],
    "linalg.multi_dot": [
        call([x(2, 3), x(3, 4), x(4, 5)]),
        call([x(3), x(3, 4), x(4, 2), x(2)]),
        call([x(3), x(3)]),
        call([x(2, 3), x(3)]),
    ],
    "linalg.norm": [
        call(x(3, 4)),
        call(x(2, 3, 4)),
        call(x(3, 4), 2),
        call(x(3, 4), "nuc"),
        call(x(3, 4), _INF),
        call(x(3, 4), 1, 1),
        call(x(4), 3),
        call(x(2, 3, 4), ord="fro", dim=(0, 2), keepdim=True),
    ],
    "linalg.pinv": [
        call(x(4, 3)),
        call(x(2, 3, 4)),
        call(regular(3, 3)),
        call(x(4, 3), atol=1e-4, rtol=1e-3),
    ],
    "linalg.qr": [call(x(4, 3)), call(x(2, 3, 3)), call(x(3, 5)), call(c(4, 2), "complete")],
    "linalg.slogdet": _SQUARE,
    "linalg.solve": [
        call(regular(3, 3), x(3, 2)),
        call(regular(3, 3), x(3)),
        call(regular(2, 3, 3), x(3, 2)),
        call(regular(2, 3, 3), x(2, 3)),
        call(regular(3, 3), x(2, 3), left=False),
    ],
    "linalg.solve_triangular": [
        call(regular(3, 3), x(3, 2), upper=True),
        call(regular(3, 3), x(2, 3), upper=False, left=False),
        call(regular(2, 3, 3), x(3, 2), upper=True, unitriangular=True),
    ],
    "linalg.diagonal": [call(x(3, 4)), call(x(2, 3, 3), offset=1), call(x(3, 2, 3), dim1=0)],
    "linalg.svd": [call(regular(1, 1), False), call(regular(2, 1, 1))],
    "linalg.svdvals": [call(x(4, 3)), call(x(2, 3, 4))],
    "linalg.vecdot": [call(x(3, 4), x(3, 4)), call(x(3, 4), x(4)), call(x(3, 4), x(3, 4), dim=0)],
    "cdist": [
        call(x(4, 3), x(5, 3)),
        call(x(2, 4, 3), x(2, 5, 3), 1.0),
        call(x(2, 4, 3), x(5, 3), p=3.0),
        call(x(4, 3), x(5, 3), _INF),
        call(x(0, 3), x(5, 3)),
    ],
    "dist": [call(x(3, 4), x(3, 4)), call(x(3, 4), x(4), 1), call(x(3), x(3), p=_INF)],
    "nn.functional.cosine_similarity": [
        call(x(3, 4), x(3, 4)),
        call(x(3, 4), x(4), dim=-1),
        call(x(2, 3, 4), x(1, 3, 4), 2, 0.1),
    ],
    "nn.functional.normalize": [
        call(x(3, 4)),
        call(x(3, 4), 1.0, 0),
        call(x(3, 4), p=3.0, dim=-1),
        call(c(2, 3, low=-0.0, high=0.0)),
    ],
    "nn.functional.pairwise_distance": [
        call(x(3, 4), x(3, 4)),
        call(x(3, 4), x(4), p=1.0, keepdim=True),
    ],
    "nn.functional.pdist": [call(x(4, 3)), call(x(4, 3), 1.0)],
    "pdist": [call(x(4, 3)), call(x(1, 3))],
    "linalg.vector_norm": [
        call(x(3, 4)),
        call(x(3, 4), 1),
        call(x(3, 4), 0, 1),
        call(x(3, 4), 3, 0, True),
        call(x(3, 4), 1.5, dim=(0, 1)),
        call(x(3, 4), _INF, -1),
        call(x(3, 4), -_INF, -1),
        call(pos(3, 4), -2, dim=1),
        call(x(0, 3), 2, 0),
        call(x(0, 3)),
        call(x()),
    ],
}
