"""Products that are compositions of matmul: outer, Kronecker, contractions, chains."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from dptrain.core.argument_kinds import is_int
from dptrain.core.arrays import namespace_of
from dptrain.core.autocast_policy import casting
from dptrain.core.export import export
from dptrain.core.op import Op
from dptrain.core.ops.compare import Where
from dptrain.core.ops.elementwise import Mul
from dptrain.core.ops.linalg_solve import LinalgInvEx, check_matrix
from dptrain.core.ops.matmul import Matmul, matmul
from dptrain.core.ops.reduce import Sum
from dptrain.core.ops.shape import Permute, Reshape, Unsqueeze, wrap_dim
from dptrain.core.tensor import Tensor, wrap


def check_dims(op: str, **expected: tuple[Any, int]) -> None:
    """Refuse operands of another number of dimensions: name=(tensor, dimensions).

    Raises:
        TypeError: no tensor.
        RuntimeError: another number of dimensions.
    """
    for name, (value, ndim) in expected.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{op}(): argument {name!r} must be Tensor, not {type(value).__name__}")
        if value.ndim != ndim:
            raise RuntimeError(
                f"{op}: Expected {name} to be a {ndim}-D tensor, but got shape {list(value.shape)}"
            )


def _outer(input: Any, vec2: Any) -> Any:
    """All products of the elements of two vectors: (n,) with (m,) -> (n, m)."""
    check_dims("outer", input=(input, 1), vec2=(vec2, 1))
    return Unsqueeze.apply(input, 1) * vec2


def _inner(input: Any, other: Any) -> Any:
    """Sums of products over the last dimensions: (*a, n) with (*b, n) -> (*a, *b)."""
    if input.ndim == 0 or other.ndim == 0:
        return input * other
    if input.shape[-1] != other.shape[-1]:
        raise RuntimeError(
            f"inner() the last dimension must match on both input tensors but got shapes {list(input.shape)} and "
            f"{list(other.shape)}"
        )
    return _tensordot(input, other, ([-1], [-1]))


def _mv(input: Any, vec: Any) -> Any:
    """Matrix times vector: (n, m) with (m,) -> (n,)."""
    check_dims("mv", input=(input, 2), vec=(vec, 1))
    return Matmul.apply(input, vec)


def _kron(input: Any, other: Any) -> Any:
    """The Kronecker product; the shorter shape is filled up with leading ones."""
    ndim = max(input.ndim, other.ndim)
    a, b = ((1,) * (ndim - t.ndim) + tuple(t.shape) for t in (input, other))
    left = Reshape.apply(input, tuple(s for n in a for s in (n, 1)))
    right = Reshape.apply(other, tuple(s for n in b for s in (1, n)))
    return Reshape.apply(left * right, tuple(n * m for n, m in zip(a, b, strict=True)))


export("outer", "ger", methods=("outer", "ger"), function=_outer)(Mul)
export("inner", methods=("inner",), function=_inner)(Matmul)
export("mv", methods=("mv",), function=_mv)(Matmul)
export("kron", methods=("kron",), function=_kron)(Mul)


def _tensordot(a: Any, b: Any, dims: Any = 2) -> Any:
    """Sums of products over several dimensions of both.

    Args:
        a: left tensor.
        b: right tensor.
        dims: how many last dimensions of `a` meet the first of `b`, or two lists of dimensions.

    Raises:
        RuntimeError: the dimensions do not fit.
    """
    if isinstance(dims, Tensor):
        dims = int(dims.item()) if dims.numel() == 1 else dims.tolist()
    if isinstance(dims, int):
        if dims < 0:
            raise RuntimeError(f"tensordot expects dims >= 0, but got dims={dims}")
        if dims > min(a.ndim, b.ndim):
            raise RuntimeError(
                f"tensordot expects dims < ndim_a or ndim_b, but got dims={dims} for {a.ndim}D and {b.ndim}D"
            )
        dims = (range(a.ndim - dims, a.ndim), range(dims))
    if not isinstance(dims, (tuple, list)) or len(dims) != 2:
        raise RuntimeError(
            f"tensordot expects dims to be an int or two lists of ints, got {dims!r}"
        )
    left, right = dims
    for part in dims:
        if not isinstance(part, Sequence) or not all(map(is_int, part)):
            raise TypeError(
                f"tensordot(): argument 'dims' must hold two tuples of ints, got {dims!r}"
            )
    left = [wrap_dim(d, a.ndim, "tensordot") for d in left]
    right = [wrap_dim(d, b.ndim, "tensordot") for d in right]
    if len(left) != len(right):
        raise RuntimeError(
            f"both dimension lists should have same length, got {len(left)} and {len(right)}"
        )
    for d, e in zip(left, right, strict=True):
        # A size of one stands for the other's size.
        if a.shape[d] == 1 != b.shape[e]:
            b = b.sum(e, keepdim=True, dtype=b.dtype)
        elif b.shape[e] == 1 != a.shape[d]:
            a = a.sum(d, keepdim=True, dtype=a.dtype)
        if a.shape[d] != b.shape[e]:
            raise RuntimeError(
                f"tensordot: contracted dimensions need to match, but first has size {a.shape[d]} in dim {d} and "
                f"second has size {b.shape[e]} in dim {e}"
            )
    rows = [d for d in range(a.ndim) if d not in left]
    columns = [d for d in range(b.ndim) if d not in right]
    summed = math.prod(a.shape[d] for d in left)
    shape = [a.shape[d] for d in rows] + [b.shape[d] for d in columns]
    x = Reshape.apply(Permute.apply(a, (*rows, *left)), (math.prod(shape[: len(rows)]), summed))
    y = Reshape.apply(Permute.apply(b, (*right, *columns)), (summed, math.prod(shape[len(rows) :])))
    # All against all is PyTorch's dot, which autocast leaves alone on the CPU.
    product = matmul(x, y) if shape else Matmul.apply(x, y)
    return Reshape.apply(product, tuple(shape))


export("tensordot", function=_tensordot, kinds={"dims": ""})(Matmul)


def _multi_dot(tensors: Any) -> Any:
    """The product of a chain of matrices, in the order that needs the fewest multiplications.

    The first and the last may be vectors. Source of the order: Cormen et al., "Introduction to
    Algorithms", 15.2.

    Raises:
        RuntimeError: fewer than two tensors, or shapes that do not chain.
    """
    chain = list(tensors)
    if len(chain) < 2:
        raise RuntimeError(f"multi_dot(): expected at least 2 tensors but got {len(chain)}")
    for i, t in enumerate(chain):
        ends = i in (0, len(chain) - 1)
        if not (t.ndim == 2 or (ends and t.ndim == 1)):
            raise RuntimeError(
                f"multi_dot(): tensor {i} must be {'1D or 2D' if ends else '2D'} but got {t.ndim}D"
            )
    row, column = chain[0].ndim == 1, chain[-1].ndim == 1
    if row:
        chain[0] = Unsqueeze.apply(chain[0], 0)
    if column:
        chain[-1] = Unsqueeze.apply(chain[-1], 1)
    for i in range(len(chain) - 1):
        if chain[i].shape[1] != chain[i + 1].shape[0]:
            raise RuntimeError(
                f"multi_dot(): tensors {i} and {i + 1} with shapes {list(chain[i].shape)} and "
                f"{list(chain[i + 1].shape)} cannot be multiplied"
            )
    sizes = [t.shape[0] for t in chain] + [chain[-1].shape[1]]
    out = _multiply(chain, _splits(sizes), 0, len(chain) - 1)
    shape = tuple(out.shape)[1 if row else 0 : 1 if column else 2]
    return Reshape.apply(out, shape)


def _splits(sizes: list[int]) -> dict[tuple[int, int], int]:
    """Where to split each part of the chain."""
    n = len(sizes) - 1
    cost = {(i, i): 0 for i in range(n)}
    best: dict[tuple[int, int], int] = {}
    for length in range(1, n):
        for i in range(n - length):
            j = i + length
            cost[i, j], best[i, j] = min(
                (cost[i, k] + cost[k + 1, j] + sizes[i] * sizes[k + 1] * sizes[j + 1], k)
                for k in range(i, j)
            )
    return best


def _multiply(chain: list[Any], best: dict[tuple[int, int], int], i: int, j: int) -> Any:
    if i == j:
        return chain[i]
    k = best[i, j]
    return matmul(_multiply(chain, best, i, k), _multiply(chain, best, k + 1, j))


def _chain_matmul(*matrices: Any) -> Any:
    """The product of the matrices, in the cheapest order; see `linalg.multi_dot`."""
    if len(matrices) == 1 and isinstance(matrices[0], (list, tuple)):
        matrices = tuple(matrices[0])
    for i, t in enumerate(matrices):
        check_dims("chain_matmul", **{f"tensor {i}": (t, 2)})
    return matrices[0] if len(matrices) == 1 else _multi_dot(matrices)


export("linalg.multi_dot", function=_multi_dot)(Matmul)
export("chain_matmul", function=_chain_matmul)(Matmul)


_inverse = casting("linalg.inv", LinalgInvEx.apply)


def _matrix_power(A: Any, n: int) -> Any:
    """A multiplied by itself n times; n = 0 gives the identity, n < 0 powers of the inverse.

    Raises:
        RuntimeError: not square, or singular where n < 0.
    """
    if A.ndim < 2 or A.shape[-1] != A.shape[-2]:
        check_matrix("linalg.matrix_power", A, square=True)
    if n == 0:
        one = wrap(namespace_of(A._array).eye(A.shape[-1], dtype=A._array.dtype))
        return Where.apply(wrap(namespace_of(A._array).zeros((), bool)), A, one)
    result: Any = None
    square, power = (_inverse(A) if n < 0 else A), abs(n)
    while True:
        if power % 2:
            result = square if result is None else matmul(result, square)
        power //= 2
        if not power:
            break
        square = matmul(square, square)
    return result.clone() if n == 1 else result


export("linalg.matrix_power", "matrix_power", methods=("matrix_power",), function=_matrix_power)(
    Matmul
)


def _vecdot(x: Any, y: Any, *, dim: int = -1) -> Any:
    """Sums of products along `dim`; the shapes broadcast."""
    if x.ndim == y.ndim == 1 and x.shape != y.shape:
        raise RuntimeError(
            f"linalg.vecdot: vectors must have the same number of elements, got {x.shape[0]} and {y.shape[0]}"
        )
    return Sum.apply(x * y, dim)


export("linalg.vecdot", function=_vecdot)(Sum)


@export("linalg.cross")
class LinalgCross(Op):
    """The cross product of vectors of three elements along a dimension."""

    promotes = 2

    def forward(self, input: Any, other: Any, *, dim: int = -1) -> Any:
        ndim = max(input.ndim, other.ndim)
        if input.ndim != other.ndim:
            raise RuntimeError(
                f"linalg.cross: inputs must have the same number of dimensions, got {input.ndim} and {other.ndim}"
            )
        self.dim = wrap_dim(dim, ndim, "linalg.cross")
        sizes = input.shape[self.dim], other.shape[self.dim]
        if sizes != (3, 3):
            raise RuntimeError(
                f"linalg.cross: inputs dimension {dim} must have length 3. Got {sizes[0]} and {sizes[1]}"
            )
        return self.xp.cross(input, other, axis=self.dim)

    def backward(self, grad: Any, input: Any, other: Any) -> Any:
        return (
            LinalgCross.call(other, grad, dim=self.dim) if self.needs[0] else None,
            LinalgCross.call(grad, input, dim=self.dim) if self.needs[1] else None,
        )
