"""Order and repetition of elements: flips, rolls, tiles, triangles, diagonals, windows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dptrain.core.arrays import allow_writing, is_writeable
from dptrain.core.export import export
from dptrain.core.op import Op
from dptrain.core.ops.shape import Expand, Permute, Reshape, Transpose, _sizes, wrap_dim
from dptrain.core.tensor import Tensor


def _flip(input: Any, *dims: Any) -> Any:
    """The order of the elements reversed along the given dimensions."""
    return Flip.apply(input, _sizes(dims))


@export("flip", methods=("flip",), function=_flip)
class Flip(Op):
    """Reversed along dimensions, as a copy."""

    def forward(self, input: Any, dims: tuple[int, ...]) -> Any:
        self.dims = tuple(wrap_dim(d, input.ndim, "flip") for d in dims)
        if len(set(self.dims)) != len(self.dims):
            raise RuntimeError(f"flip: dim {list(dims)} appears multiple times in the list of dims")
        return self.xp.ascontiguousarray(
            self.xp.flip(input, self.dims if input.ndim else ())
        ).reshape(input.shape)

    def backward(self, grad: Any) -> Any:
        return Flip.call(grad, self.dims)


def _fliplr(input: Any) -> Any:
    """Columns in reverse order."""
    if input.ndim < 2:
        raise RuntimeError(f"fliplr: Input must be >= 2-d, got {input.ndim}-d")
    return Flip.apply(input, (1,))


def _flipud(input: Any) -> Any:
    """Rows in reverse order."""
    if input.ndim < 1:
        raise RuntimeError("flipud: Input must be >= 1-d, got 0-d")
    return Flip.apply(input, (0,))


export("fliplr", methods=("fliplr",), function=_fliplr)(Flip)
export("flipud", methods=("flipud",), function=_flipud)(Flip)


def _roll(input: Any, shifts: Any, dims: Any = None) -> Any:
    """Elements moved along dimensions; those that leave at the end come back at the start."""
    moves = tuple(shifts) if isinstance(shifts, Sequence) else (shifts,)
    if not moves:
        raise RuntimeError("roll: `shifts` required")
    if dims is None or dims == ():
        if len(moves) != 1:
            raise RuntimeError(
                f"roll: shifts and dimensions must align. shifts: {len(moves)}, dims:0"
            )
        return Reshape.apply(
            Roll.apply(Reshape.apply(input, (-1,)), moves, (0,)), input._array.shape
        )
    places = tuple(dims) if isinstance(dims, Sequence) else (dims,)
    if len(moves) != len(places):
        raise RuntimeError(
            f"roll: shifts and dimensions must align. shifts: {len(moves)}, dims:{len(places)}"
        )
    if not input.ndim:
        raise IndexError(f"roll: Dimension specified as {places[0]} but tensor has no dimensions")
    return Roll.apply(input, moves, places)


@export("roll", methods=("roll",), function=_roll)
class Roll(Op):
    """Elements moved around a ring along dimensions."""

    def forward(self, input: Any, shifts: tuple[int, ...], dims: tuple[int, ...]) -> Any:
        if dims and input.ndim == 0:
            raise IndexError(f"roll: Dimension specified as {dims[0]} but tensor has no dimensions")
        self.shifts = shifts
        self.dims = tuple(wrap_dim(d, input.ndim, "roll") for d in dims)
        return self.xp.roll(input, shifts, self.dims)

    def backward(self, grad: Any) -> Any:
        return Roll.call(grad, tuple(-s for s in self.shifts), self.dims)


def _rot90(input: Any, k: int = 1, dims: Any = (0, 1)) -> Any:
    """Rotated by k quarter turns in the plane of two dimensions, from the first to the second."""
    if len(dims) != 2:
        raise RuntimeError(f"rot90: expected total rotation dims == 2, but got dims = {len(dims)}")
    if input.ndim < 2:
        raise RuntimeError(f"rot90: expected total dims >= 2, but got total dims = {input.ndim}")
    first, second = (wrap_dim(d, input.ndim, "rot90") for d in dims)
    if first == second:
        raise RuntimeError(f"rot90: expected rotation dims to be different, got {list(dims)}")
    turns = k % 4
    if turns == 0:
        return input.clone()
    if turns == 2:
        return Flip.apply(input, (first, second))
    if turns == 1:
        return Transpose.apply(Flip.apply(input, (second,)), first, second)
    return Flip.apply(Transpose.apply(input, first, second), (second,))


export("rot90", methods=("rot90",), function=_rot90)(Flip)


def _repeat(input: Any, *sizes: Any) -> Any:
    """The tensor copied so many times along each dimension; new dimensions come in front."""
    counts = _sizes(sizes)
    if len(counts) < input.ndim:
        raise RuntimeError(
            "repeat: Number of dimensions of repeat dims can not be smaller than number of dimensions of tensor "
            f"({len(counts)} < {input.ndim})"
        )
    if any(c < 0 for c in counts):
        raise RuntimeError(
            f"repeat: trying to create tensor with negative dimension: {list(counts)}"
        )
    shape = (1,) * (len(counts) - input.ndim) + tuple(input._array.shape)
    spread = [n for c, s in zip(counts, shape, strict=True) for n in (c, s)]
    split = [n for s in shape for n in (1, s)]
    wide = Expand.apply(Reshape.apply(input, tuple(split)), tuple(spread))
    joined = tuple(c * s for c, s in zip(counts, shape, strict=True))
    return (
        Reshape.apply(wide, joined)
        if any(c != 1 for c in counts)
        else Reshape.apply(input, joined).clone()
    )


export(methods=("repeat",), function=_repeat)(Expand)


def _tile(input: Any, *dims: Any) -> Any:
    """As `repeat`, with missing leading counts taken as 1."""
    counts = _sizes(dims)
    return _repeat(input, (1,) * (input.ndim - len(counts)) + counts)


export("tile", methods=("tile",), function=_tile)(Expand)


class _Triangle(Op):
    def _check(self, input: Any) -> None:
        if input.ndim < 2:
            raise RuntimeError(f"{self.name}: input tensor must have at least 2 dimensions")


@export("tril", methods=("tril",), inplace=("tril_",))
class Tril(_Triangle):
    """The lower triangle of the last two dimensions, up to diagonal `diagonal`; 0 elsewhere."""

    def forward(self, input: Any, diagonal: int = 0) -> Any:
        self._check(input)
        self.diagonal = diagonal
        return self.xp.tril(input, diagonal)

    def backward(self, grad: Any) -> Any:
        return Tril.call(grad, self.diagonal)


@export("triu", methods=("triu",), inplace=("triu_",))
class Triu(_Triangle):
    """The upper triangle of the last two dimensions, from diagonal `diagonal` on; 0 elsewhere."""

    def forward(self, input: Any, diagonal: int = 0) -> Any:
        self._check(input)
        self.diagonal = diagonal
        return self.xp.triu(input, diagonal)

    def backward(self, grad: Any) -> Any:
        return Triu.call(grad, self.diagonal)


@export("diagonal", methods=("diagonal",))
class Diagonal(Op):
    """A diagonal of two dimensions as the last one: a view."""

    is_view = True

    def forward(self, input: Any, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Any:
        first, second = (wrap_dim(d, input.ndim, "diagonal") for d in (dim1, dim2))
        if first == second:
            raise RuntimeError(f"diagonal: dimensions cannot be identical {dim1}, {dim2}")
        self.place, self.shape = (offset, first, second), input.shape
        out = input.diagonal(offset, first, second)
        allow_writing(out, is_writeable(input))
        return out

    def backward(self, grad: Any) -> Any:
        return DiagEmbed.call(grad, self.shape, *self.place)


def _matrix_diagonal(A: Any, *, offset: int = 0, dim1: int = -2, dim2: int = -1) -> Any:
    """A diagonal of each matrix: `diagonal` of the last two dimensions."""
    return Diagonal.apply(A, offset, dim1, dim2)


export("linalg.diagonal", function=_matrix_diagonal)(Diagonal)


class DiagEmbed(Op):
    """Zeros of a shape with the input on a diagonal: the derivative of `diagonal`."""

    def forward(self, input: Any, shape: Any, offset: int, dim1: int, dim2: int) -> Any:
        self.place = (offset, dim1, dim2)
        out = self.xp.zeros(shape, input.dtype)
        target = out.diagonal(offset, dim1, dim2)
        allow_writing(target, True)
        target[...] = input
        return out

    def backward(self, grad: Any) -> Any:
        return Diagonal.call(grad, *self.place)


def _diag_embed(input: Any, offset: int = 0, dim1: int = -2, dim2: int = -1) -> Any:
    """The last dimension on a diagonal of two new dimensions dim1 and dim2."""
    ndim = input.ndim + 1
    first, second = (wrap_dim(d, ndim, "diag_embed") for d in (dim1, dim2))
    if first == second:
        raise RuntimeError(f"diag_embed: dimensions cannot be identical {dim1}, {dim2}")
    size = input._array.shape[-1] + abs(offset)
    shape = list(input._array.shape[:-1])
    for d in sorted((first, second)):
        shape.insert(d, size)
    return DiagEmbed.apply(input, tuple(shape), offset, first, second)


def _diag(input: Any, diagonal: int = 0) -> Any:
    """A vector as the diagonal of a matrix, or the diagonal of a matrix as a vector (copied)."""
    if input.ndim not in (1, 2):
        raise RuntimeError(f"diag(): Supports 1D or 2D tensors. Got {input.ndim}D")
    if input.ndim == 1:
        return _diag_embed(input, diagonal)
    return Diagonal.apply(input, diagonal).clone()


def _diagflat(input: Any, offset: int = 0) -> Any:
    """A matrix with the flattened input on its diagonal."""
    return _diag_embed(Reshape.apply(input, (-1,)), offset)


def _trace(input: Any) -> Any:
    """The sum of the diagonal of a matrix."""
    if input.ndim != 2:
        raise RuntimeError(f"trace: expected a matrix, but got tensor with dim {input.ndim}")
    return Diagonal.apply(input).sum()


export("diag_embed", methods=("diag_embed",), function=_diag_embed)(DiagEmbed)
export("diag", methods=("diag",), function=_diag)(DiagEmbed)
export("diagflat", methods=("diagflat",), function=_diagflat)(DiagEmbed)
export("trace", methods=("trace",), function=_trace)(Diagonal)


def _movedim(input: Any, source: Any, destination: Any) -> Any:
    """Dimensions moved to other places, the others kept in order."""
    if isinstance(source, Sequence) != isinstance(destination, Sequence):
        raise TypeError(
            f"movedim(): source and destination must be two ints or two tuples of ints, got {source} and {destination}"
        )
    origins, targets = (
        tuple(v) if isinstance(v, Sequence) else (v,) for v in (source, destination)
    )
    if len(origins) != len(targets):
        raise RuntimeError(
            f"movedim: Invalid source or destination dims: source ({list(origins)} dims) should contain the same number "
            f"of dims as destination ({list(targets)} dims)"
        )
    origins, targets = (
        tuple(wrap_dim(d, input.ndim, "movedim") for d in v) for v in (origins, targets)
    )
    if len(set(origins)) != len(origins) or len(set(targets)) != len(targets):
        raise RuntimeError(
            f"movedim: repeated dim in source {list(origins)} or destination {list(targets)}"
        )
    order = [d for d in range(input.ndim) if d not in origins]
    for target, origin in sorted(zip(targets, origins, strict=True)):
        order.insert(target, origin)
    return Permute.apply(input, tuple(order))


export(
    "movedim",
    "moveaxis",
    methods=("movedim", "moveaxis"),
    function=_movedim,
    kinds={"source": "int | tuple of ints"},
)(Permute)


class Unfold(Op):
    """Overlapping windows along a dimension as a new last one: a view."""

    is_view = True
    name = "unfold"

    def forward(self, input: Any, dimension: int, size: int, step: int) -> Any:
        dim = wrap_dim(dimension, input.ndim, "unfold")
        length = input.shape[dim] if input.ndim else 1
        if size < 0 or size > length:
            raise RuntimeError(
                f"unfold: maximum size for tensor at dimension {dim} is {length} but size is {size}"
            )
        if step <= 0:
            raise RuntimeError(f"unfold: step is {step} but must be > 0")
        self.plan, self.shape = (dim, size, step), input.shape
        source = input if input.ndim else input.reshape(1)
        shape, strides = list(source.shape), list(source.strides)
        shape[dim : dim + 1], strides[dim] = [(shape[dim] - size) // step + 1], strides[dim] * step
        windows = ((*shape, size), (*strides, source.strides[dim]))
        picked = self.xp.lib.stride_tricks.as_strided(source, *windows)
        return picked if input.ndim else picked[0]

    def backward(self, grad: Any) -> Any:
        return UnfoldAdd.call(grad, self.shape, *self.plan)


class UnfoldAdd(Op):
    """Unfold added up at their places: the derivative of `unfold`."""

    def forward(self, input: Any, shape: Any, dim: int, size: int, step: int) -> Any:
        self.plan = (dim, size, step)
        out = self.xp.zeros(shape, input.dtype)
        if not shape:
            return out + input.sum()
        target = np.moveaxis(out, dim, -1)
        source = np.moveaxis(input, dim, -2)
        for k in range(source.shape[-2]):
            target[..., k * step : k * step + size] += source[..., k, :]
        return out

    def backward(self, grad: Any) -> Any:
        return Unfold.call(grad, *self.plan)


def _unfold(self: Tensor, dimension: int, size: int, step: int) -> Any:
    """All windows of `size` along a dimension, `step` apart, in a new last dimension."""
    return Unfold.apply(self, dimension, size, step)


export(methods=("unfold",), function=_unfold)(Unfold)
