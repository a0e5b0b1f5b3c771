"""Sequences of unequal lengths: padded to one tensor, or packed step by step.

A packed sequence holds the elements of all first steps, then of all second steps, ...; sequences are
sorted by falling length, so that those that still run are always the first ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from dptrain.core.argument_kinds import is_number, wrong_kind
from dptrain.core.arrays import namespace_of, to_host
from dptrain.core.export import FUNCTIONS
from dptrain.core.failures import telling
from dptrain.core.ops.index import Index, Scatter
from dptrain.core.tensor import Tensor, wrap
from dptrain.nn.functional.padding import pad


class _Packed(NamedTuple):
    data: Tensor
    batch_sizes: Any
    sorted_indices: Tensor | None
    unsorted_indices: Tensor | None


class PackedSequence(_Packed):
    """Sequences packed step by step; made by `pack_padded_sequence` and `pack_sequence`.

    Attributes:
        data: (sum of lengths, ...) elements, by step and then by sequence.
        batch_sizes: how many sequences run at each step.
        sorted_indices: the order of the sequences, or None if they came sorted.
        unsorted_indices: the way back.
    """

    def __new__(
        cls,
        data: Any,
        batch_sizes: Tensor | None = None,
        sorted_indices: Tensor | None = None,
        unsorted_indices: Tensor | None = None,
    ) -> PackedSequence:
        """Fill in the way back."""
        if batch_sizes is None:
            if not isinstance(data, (list, tuple)) or len(data) != 2:
                raise AssertionError("Expected data to be a list or tuple of length 2")
            data, batch_sizes = data
        for part, name in ((data, "data"), (batch_sizes, "batch_sizes")):
            if not isinstance(part, Tensor):
                raise TypeError(f"PackedSequence: {name} must be Tensor, not {type(part).__name__}")
        if unsorted_indices is None:
            unsorted_indices = invert_permutation(sorted_indices)
        return super().__new__(cls, data, batch_sizes, sorted_indices, unsorted_indices)

    def pin_memory(self) -> PackedSequence:
        """With all its tensors in page-locked memory, for copies to a GPU."""
        parts: Any = (None if part is None else part.pin_memory() for part in self)
        return type(self)(*parts)

    def is_pinned(self) -> bool:
        """Whether the data are in page-locked memory."""
        return bool(self.data.is_pinned())

    def to(self, *args: Any, **kwargs: Any) -> PackedSequence:
        """With the data converted as by `Tensor.to`, and the order of the sequences beside them."""
        return self._beside(self.data.to(*args, **kwargs))

    def _beside(self, data: Tensor) -> PackedSequence:
        order = (i if i is None else i.to(data.device) for i in self[2:])
        return PackedSequence(data, self.batch_sizes, *order)

    def double(self) -> PackedSequence:
        """With float64 data."""
        return self._replace(data=self.data.double())

    def float(self) -> PackedSequence:
        """With float32 data."""
        return self._replace(data=self.data.float())

    def half(self) -> PackedSequence:
        """With float16 data."""
        return self._replace(data=self.data.half())

    def long(self) -> PackedSequence:
        """With int64 data."""
        return self._replace(data=self.data.long())

    def int(self) -> PackedSequence:
        """With int32 data."""
        return self._replace(data=self.data.int())

    def short(self) -> PackedSequence:
        """With int16 data."""
        return self._replace(data=self.data.short())

    def char(self) -> PackedSequence:
        """With int8 data."""
        return self._replace(data=self.data.char())

    def byte(self) -> PackedSequence:
        """With uint8 data."""
        return self._replace(data=self.data.byte())

    def cpu(self, *args: Any, **kwargs: Any) -> PackedSequence:
        """With the data on the CPU, converted further as by `Tensor.to`."""
        return self._beside(self.data.cpu()).to(*args, **kwargs)

    def cuda(self, *args: Any, **kwargs: Any) -> PackedSequence:
        """With the data on a GPU."""
        return self._beside(self.data.cuda(*args, **kwargs))

    @property
    def is_cuda(self) -> bool:
        """Whether the data live on a GPU."""
        return self.data.is_cuda


@telling
def invert_permutation(permutation: Tensor | None) -> Tensor | None:
    """The permutation that undoes another; None stays None."""
    return None if permutation is None else wrap(np.argsort(permutation._array))


def _places(sizes: np.ndarray, xp: Any) -> tuple[Any, Any]:
    """Step and sequence of each packed element."""
    steps = np.repeat(np.arange(len(sizes)), sizes)
    sequences = np.arange(len(steps)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return xp.asarray(steps), xp.asarray(sequences)


@telling
def pack_padded_sequence(
    input: Tensor,
    lengths: Any,
    batch_first: bool = False,
    enforce_sorted: bool = True,
) -> PackedSequence:
    """Pack sequences that were padded to one length.

    Args:
        input: (T, N, ...), or (N, T, ...) with `batch_first`.
        lengths: of the N sequences.
        batch_first: the first dimension is that of the sequences.
        enforce_sorted: the lengths must fall; if not, the sequences are sorted here.

    Raises:
        RuntimeError: lengths that are not sorted, not positive or too large.
    """
    values = to_host(lengths._array) if isinstance(lengths, Tensor) else lengths
    xp = namespace_of(input._array)
    sizes = np.asarray(values, np.int64)
    if input.ndim < 2 or input.numel() == 0:
        raise RuntimeError("Cannot pack empty tensors.")
    x = input.transpose(0, 1) if batch_first else input
    if sizes.shape != (x.shape[1],):
        raise RuntimeError(
            f"Expected `len(lengths)` to be equal to batch_size, but got {sizes.size} (batch_size={x.shape[1]})"
        )
    if (sizes <= 0).any():
        raise RuntimeError(
            "Length of all samples has to be greater than 0, but found an element in 'lengths' that is <= 0"
        )
    order = None
    if not enforce_sorted:
        order = np.argsort(-sizes, kind="stable")
        sizes = sizes[order]
        x = x[:, wrap(xp.asarray(order))]
    elif (np.diff(sizes) > 0).any():
        raise RuntimeError(
            "`lengths` array must be sorted in decreasing order when `enforce_sorted` is True. You can pass "
            "`enforce_sorted=False` to pack_padded_sequence and/or pack_sequence to sidestep this requirement"
        )
    if sizes[0] > x.shape[0]:
        raise RuntimeError(
            f"Expected lengths of at most {x.shape[0]} (the padded length), but got {int(sizes[0])}"
        )
    running = (sizes[None, :] > np.arange(sizes[0])[:, None]).sum(axis=1)
    data = Index.apply(x, _places(running, xp))
    return PackedSequence(data, wrap(running), None if order is None else wrap(xp.asarray(order)))


@telling
def pad_packed_sequence(
    sequence: PackedSequence,
    batch_first: bool = False,
    padding_value: float = 0.0,
    total_length: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The padded sequences and their lengths: what `pack_padded_sequence` came from.

    Args:
        sequence: what was packed.
        batch_first: the first dimension of the result is that of the sequences.
        padding_value: what stands after the ends.
        total_length: pad to this length instead of the longest.

    Raises:
        ValueError: `total_length` is less than the longest length.
    """
    if not is_number(padding_value):
        raise wrong_kind("pad_packed_sequence", "padding_value", 2, "Number", padding_value)
    running = to_host(sequence.batch_sizes._array)
    xp = namespace_of(sequence.data._array)
    longest = len(running)
    if total_length is not None:
        if total_length < longest:
            raise ValueError(
                "Expected total_length to be at least the length of the longest sequence in input, but got "
                f"total_length={total_length} and max sequence length being {longest}"
            )
        longest = total_length
    places, n = _places(running, xp), int(running[0])
    shape = (longest, n, *sequence.data._array.shape[1:])
    out = Scatter.apply(sequence.data, shape, places)
    if padding_value:
        filled = xp.full(shape, padding_value, sequence.data._array.dtype)
        filled[places] = 0
        out = out + wrap(filled)
    lengths = wrap((running[:, None] > np.arange(n)).sum(axis=0))
    if sequence.unsorted_indices is not None:
        out, lengths = out[:, sequence.unsorted_indices], lengths[sequence.unsorted_indices.cpu()]
    return (out.transpose(0, 1) if batch_first else out), lengths


@telling
def pad_sequence(
    sequences: Sequence[Tensor],
    batch_first: bool = False,
    padding_value: float = 0.0,
    padding_side: str = "right",
) -> Tensor:
    """Sequences (L, ...) of several lengths as one tensor: (T, N, ...), or (N, T, ...).

    Args:
        sequences: tensors that differ in their first dimension only.
        batch_first: the first dimension of the result is that of the sequences.
        padding_value: what fills them up.
        padding_side: "right" or "left".

    Raises:
        RuntimeError: no sequences, or an unknown side.
    """
    if isinstance(sequences, Tensor):
        sequences = sequences.unbind(0)
    if not isinstance(sequences, (list, tuple)) or not sequences:
        raise RuntimeError("pad_sequence: expected a non-empty list or tuple of Tensors")
    if not is_number(padding_value):
        raise wrong_kind("pad_sequence", "padding_value", 2, "Number", padding_value)
    if padding_side not in ("left", "right"):
        raise RuntimeError(
            f"Expected padding_side to be one of left or right, but got {padding_side}."
        )
    longest = max(int(s.shape[0]) for s in sequences)
    padded = []
    for s in sequences:
        missing = longest - int(s.shape[0])
        sides = (missing, 0) if padding_side == "left" else (0, missing)
        padded.append(pad(s, (*(0, 0) * (s.ndim - 1), *sides), value=padding_value))
    return FUNCTIONS["stack"](padded, 0 if batch_first else 1)


@telling
def unpad_sequence(
    padded_sequences: Tensor, lengths: Tensor, batch_first: bool = False
) -> list[Tensor]:
    """The sequences that `pad_sequence` came from, given their lengths."""
    x = padded_sequences if batch_first else padded_sequences.transpose(0, 1)
    return [x[i, : int(length)] for i, length in enumerate(lengths)]


@telling
def pack_sequence(sequences: Sequence[Tensor], enforce_sorted: bool = True) -> PackedSequence:
    """Pack sequences (L, ...) of several lengths; see `pack_padded_sequence`."""
    lengths = [int(s.shape[0]) for s in sequences]
    return pack_padded_sequence(pad_sequence(sequences), lengths, enforce_sorted=enforce_sorted)


@telling
def unpack_sequence(packed_sequences: PackedSequence) -> list[Tensor]:
    """The sequences that `pack_sequence` came from."""
    padded, lengths = pad_packed_sequence(packed_sequences, batch_first=True)
    return unpad_sequence(padded, lengths, batch_first=True)
