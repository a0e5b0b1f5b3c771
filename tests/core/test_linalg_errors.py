"""Bad use of linear algebra: an exception of PyTorch's kind that names what was wrong."""

import pytest

import dptrain

#: name -> (call(lib), kind, words that the message must hold)
CASES = {
    "addmm dims": (
        lambda t: t.addmm(t.zeros(2), t.zeros(2), t.zeros(2, 2)),
        RuntimeError,
        ["addmm", "mat1", "2-D"],
    ),
    "addmm inner": (
        lambda t: t.addmm(t.zeros(2, 2), t.zeros(2, 3), t.zeros(2, 2)),
        RuntimeError,
        ["2x3", "2x2"],
    ),
    "addmm input": (
        lambda t: t.addmm(t.zeros(5, 5), t.zeros(2, 3), t.zeros(3, 2)),
        RuntimeError,
        ["addmm", "[5, 5]", "[2, 2]"],
    ),
    "addmm dtype": (
        lambda t: t.addmm(t.zeros(2, 2).double(), t.zeros(2, 2), t.zeros(2, 2)),
        RuntimeError,
        ["dtype"],
    ),
    "addmm no tensor": (lambda t: t.addmm(t.zeros(2, 2), 3, t.zeros(2, 2)), TypeError, ["mat1"]),
    "addmv dims": (
        lambda t: t.addmv(t.zeros(2), t.zeros(2, 2), t.zeros(2, 2)),
        RuntimeError,
        ["vec"],
    ),
    "baddbmm batches": (
        lambda t: t.baddbmm(t.zeros(2, 2, 2), t.zeros(2, 2, 2), t.zeros(3, 2, 2)),
        RuntimeError,
        ["batch", "2", "3"],
    ),
    "addbmm dims": (
        lambda t: t.addbmm(t.zeros(2, 2), t.zeros(2, 2), t.zeros(2, 2, 2)),
        RuntimeError,
        ["batch1", "3-D"],
    ),
    "outer dims": (lambda t: t.outer(t.zeros(2, 2), t.zeros(2)), RuntimeError, ["outer", "1-D"]),
    "mv dims": (lambda t: t.mv(t.zeros(2), t.zeros(2)), RuntimeError, ["mv", "2-D"]),
    "mv sizes": (lambda t: t.mv(t.zeros(2, 3), t.zeros(2)), RuntimeError, ["2x3", "2"]),
    "inner sizes": (lambda t: t.inner(t.zeros(2, 3), t.zeros(2)), RuntimeError, ["last dim"]),
    "tensordot dims": (
        lambda t: t.tensordot(t.zeros(2, 3), t.zeros(4, 5), dims=1),
        RuntimeError,
        ["contracted dimensions", "3", "4"],
    ),
    "tensordot lists": (
        lambda t: t.tensordot(t.zeros(2, 3), t.zeros(3, 5), dims=([0, 1], [0])),
        RuntimeError,
        ["same length"],
    ),
    "tensordot negative": (
        lambda t: t.tensordot(t.zeros(2, 3), t.zeros(3, 5), dims=-1),
        RuntimeError,
        ["dims >= 0"],
    ),
    "einsum operands": (lambda t: t.einsum("ij,jk->ik", t.zeros(2, 2)), RuntimeError, ["operands"]),
    "einsum dims": (lambda t: t.einsum("ijk->i", t.zeros(2, 2)), RuntimeError, ["dimensions"]),
    "einsum sizes": (
        lambda t: t.einsum("ij,jk->ik", t.zeros(2, 3), t.zeros(4, 5)),
        RuntimeError,
        ["subscript j", "4", "3"],
    ),
    "einsum output": (lambda t: t.einsum("ij->k", t.zeros(2, 3)), RuntimeError, ["subscript k"]),
    "einsum repeated output": (
        lambda t: t.einsum("ij->ii", t.zeros(2, 3)),
        RuntimeError,
        ["more than once"],
    ),
    "einsum characters": (lambda t: t.einsum("i1->i", t.zeros(2, 3)), RuntimeError, ["subscript"]),
    "einsum nothing": (lambda t: t.einsum("ij->i"), ValueError, ["at least one operand"]),
    "multi_dot one": (lambda t: t.linalg.multi_dot([t.zeros(2, 2)]), RuntimeError, ["at least 2"]),
    "multi_dot dims": (
        lambda t: t.linalg.multi_dot([t.zeros(2, 2), t.zeros(2), t.zeros(2, 2)]),
        RuntimeError,
        ["tensor 1", "2D", "1D"],
    ),
    "multi_dot sizes": (
        lambda t: t.linalg.multi_dot([t.zeros(2, 3), t.zeros(2, 2)]),
        RuntimeError,
        ["multiplied"],
    ),
    "inv dims": (lambda t: t.linalg.inv(t.zeros(3)), RuntimeError, ["at least 2 dimensions"]),
    "inv square": (lambda t: t.linalg.inv(t.zeros(3, 2)), RuntimeError, ["square", "3 by 2"]),
    "inv integers": (lambda t: t.linalg.inv(t.zeros(2, 2).long()), RuntimeError, ["int64"]),
    "inv singular": (lambda t: t.linalg.inv(t.zeros(2, 2)), RuntimeError, ["singular"]),
    "det square": (lambda t: t.det(t.zeros(2, 3)), RuntimeError, ["square", "2 by 3"]),
    "slogdet square": (lambda t: t.slogdet(t.zeros(2, 3)), RuntimeError, ["square"]),
    "logdet square": (lambda t: t.logdet(t.zeros(2, 3)), RuntimeError, ["square"]),
    "solve singular": (
        lambda t: t.linalg.solve(t.zeros(2, 2), t.zeros(2)),
        RuntimeError,
        ["singular"],
    ),
    "solve sizes": (
        lambda t: t.linalg.solve(t.eye(2), t.zeros(3, 1)),
        RuntimeError,
        ["Incompatible shapes", "2x2", "3x1"],
    ),
    "solve dtypes": (
        lambda t: t.linalg.solve(t.eye(2), t.zeros(2).double()),
        RuntimeError,
        ["same dtype"],
    ),
    "triangular sizes": (
        lambda t: t.linalg.solve_triangular(t.eye(2), t.zeros(3, 1), upper=True),
        RuntimeError,
        ["Incompatible shapes"],
    ),
    "cholesky definite": (
        lambda t: t.linalg.cholesky(-t.eye(2)),
        RuntimeError,
        ["positive-definite"],
    ),
    "cholesky square": (lambda t: t.linalg.cholesky(t.zeros(2, 3)), RuntimeError, ["square"]),
    "qr mode": (lambda t: t.linalg.qr(t.zeros(2, 2), "full"), RuntimeError, ["mode", "full"]),
    "qr dims": (lambda t: t.linalg.qr(t.zeros(2)), RuntimeError, ["at least 2 dimensions"]),
    "svd dims": (lambda t: t.linalg.svd(t.zeros(2)), RuntimeError, ["at least 2 dimensions"]),
    "svd driver": (
        lambda t: t.linalg.svd(t.zeros(2, 2), driver="gesvd"),
        RuntimeError,
        ["driver"],
    ),
    "eigh uplo": (lambda t: t.linalg.eigh(t.zeros(2, 2), "X"), RuntimeError, ["UPLO", "X"]),
    "eigh square": (lambda t: t.linalg.eigh(t.zeros(2, 3)), RuntimeError, ["square"]),
    "lstsq sizes": (
        lambda t: t.linalg.lstsq(t.zeros(3, 2), t.zeros(2, 2)),
        RuntimeError,
        ["size(-2)"],
    ),
    "lstsq driver": (
        lambda t: t.linalg.lstsq(t.zeros(3, 2), t.zeros(3, 2), driver="x"),
        RuntimeError,
        ["driver"],
    ),
    "matrix_power square": (
        lambda t: t.linalg.matrix_power(t.zeros(2, 3), 2),
        RuntimeError,
        ["square"],
    ),
    "vector_norm integers": (
        lambda t: t.linalg.vector_norm(t.zeros(2).long()),
        RuntimeError,
        ["floating point", "int64"],
    ),
    "vector_norm empty": (
        lambda t: t.linalg.vector_norm(t.zeros(0), float("inf")),
        RuntimeError,
        ["identity"],
    ),
    "vector_norm dim": (
        lambda t: t.linalg.vector_norm(t.zeros(2), 2, 1),
        IndexError,
        ["out of range"],
    ),
    "matrix_norm order": (
        lambda t: t.linalg.matrix_norm(t.zeros(2, 2), 3),
        RuntimeError,
        ["Order 3"],
    ),
    "matrix_norm dims": (
        lambda t: t.linalg.matrix_norm(t.zeros(2, 2), "fro", (0, 0)),
        RuntimeError,
        ["different"],
    ),
    "matrix_norm vector": (
        lambda t: t.linalg.matrix_norm(t.zeros(2)),
        RuntimeError,
        ["at least 2 dimensions"],
    ),
    "norm dims": (
        lambda t: t.linalg.norm(t.zeros(2, 2, 2), 2),
        RuntimeError,
        ["1D or 2D", "3D"],
    ),
    "cross length": (
        lambda t: t.linalg.cross(t.zeros(2), t.zeros(2)),
        RuntimeError,
        ["length 3"],
    ),
    "cdist columns": (
        lambda t: t.cdist(t.zeros(2, 3), t.zeros(2, 4)),
        RuntimeError,
        ["number of columns", "3", "4"],
    ),
    "cdist dims": (lambda t: t.cdist(t.zeros(3), t.zeros(2, 3)), RuntimeError, ["2D", "1D"]),
    "cdist p": (lambda t: t.cdist(t.zeros(2, 3), t.zeros(2, 3), -1.0), RuntimeError, ["negative"]),
    "cdist mode": (
        lambda t: t.cdist(t.zeros(2, 3), t.zeros(2, 3), compute_mode="x"),
        ValueError,
        ["compute_mode"],
    ),
    "dist sizes": (lambda t: t.dist(t.zeros(2), t.zeros(3)), RuntimeError, ["2", "3"]),
    "vecdot sizes": (
        lambda t: t.linalg.vecdot(t.zeros(2), t.zeros(3)),
        RuntimeError,
        ["2", "3"],
    ),
}


def raised_by(call, lib):
    try:
        call(lib)
    except Exception as error:
        return error
    return None


@pytest.mark.parametrize("name", CASES)
def test_bad_use_is_refused(name):
    call, kind, words = CASES[name]
    error = raised_by(call, dptrain)
    assert type(error) in (kind, dptrain.linalg.LinAlgError)
    assert isinstance(error, kind)
    for word in words:
        assert word in str(error)


@pytest.mark.oracle
@pytest.mark.parametrize("name", CASES)
def test_the_kind_is_that_of_pytorch(name):
    torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
    call, kind, _ = CASES[name]
    error = raised_by(call, torch)
    assert type(error) in (kind, torch.linalg.LinAlgError)
    ours = type(raised_by(call, dptrain))
    assert (ours is dptrain.linalg.LinAlgError) == (type(error) is torch.linalg.LinAlgError)
