"""The kinds of values that parameters take, in words: tests, conversions, and which parameter is of which kind.

Owns: `Kind`, `words_of`, and the message of a wrong kind. Must not know: calls.

The kinds are PyTorch's, down to what else it takes for an int (a NumPy integer, a tensor of one; no bool).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from dptrain.core.dtypes import dtype
from dptrain.core.size import Size
from dptrain.core.tensor import Tensor

_ARE_INTS = frozenset([int])
_SEQUENCES = frozenset([tuple, list, Size])


def _is_flag(value: Any) -> bool:
    return isinstance(value, (bool, np.bool_))


def is_int(value: Any) -> bool:
    """Whether PyTorch takes `value` for an int: no bool, but a tensor of one integer."""
    if isinstance(value, Tensor):
        return value._array.ndim == 0 and value._array.dtype.kind in "iu"
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _is_size(value: Any) -> bool:
    """Whether PyTorch takes `value` for a size or a place: what has an index, a tensor of one element too."""
    if isinstance(value, Tensor):
        return value._array.size == 1 and value._array.dtype.kind in "iu"
    return is_int(value)


def _is_ints(value: Any) -> bool:
    """A sequence whose first entry is an int; after it a bool counts as one, as in PyTorch."""
    if not isinstance(value, (tuple, list)):
        return False
    return all(is_int(v) or (i and _is_flag(v)) for i, v in enumerate(value))


def is_number(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value._array.ndim == 0 and not value._requires_grad
    return isinstance(value, (int, float, np.number, np.bool_))


def _is_numbers(value: Any) -> bool:
    return isinstance(value, (tuple, list)) and all(map(is_number, value))


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


def _is_tensors(value: Any) -> bool:
    return isinstance(value, (tuple, list)) and all(map(_is_tensor, value))


def _number(value: Any) -> Any:
    return value.item() if isinstance(value, (Tensor, np.generic)) else value


def _numbers(value: Any) -> Any:
    if type(value) in _SEQUENCES and _ARE_INTS.issuperset(map(type, value)):
        return value
    return tuple(int(v) if _is_flag(v) else _number(v) for v in value)


def _same(value: Any) -> Any:
    return value


#: A kind's word -> test; how such a value reaches the function; types that need no closer look.
_KINDS: dict[str, tuple[Callable[[Any], bool], Callable[[Any], Any], tuple[type, ...]]] = {
    "Tensor": (_is_tensor, _same, (Tensor,)),
    "Number": (is_number, _number, (float, int)),
    "int": (is_int, _number, (int,)),
    "size": (_is_size, _number, (int,)),
    "flag": (lambda value: value is None or _is_flag(value), bool, (bool,)),
    "bool": (_is_flag, bool, (bool,)),
    "str": (lambda value: isinstance(value, str), _same, (str,)),
    "dtype": (lambda value: any(value is kind for kind in (float, int, bool)), _same, (dtype,)),
    "tuple of ints": (_is_ints, _numbers, ()),
    "tuple of Numbers": (_is_numbers, _numbers, ()),
    "tuple of Tensors": (_is_tensors, _same, ()),
    "None": (lambda value: value is None, _same, (type(None),)),
}
#: Kinds -> the parameters that are of them in all functions whose annotations say no more.
_NAMED = {
    "int": "dim0 dim1 dim2 dimension step n k chunks groups start_dim end_dim num_samples minlength bins r decimals length "
    "offset diagonal storage_offset",
    "int | tuple of ints": "dim dims kernel_size stride dilation padding output_padding shifts size sizes shape "
    "destination split_size_or_sections indices_or_sections",
    "tuple of ints": "split_sizes",
    "Number": "nan posinf neginf alpha beta lambd negative_slope min_val max_val threshold eps rtol atol",
    "Tensor": "self A B L LD LU LU_data LU_pivots a b mat mat1 mat2 vec vec1 vec2 batch1 batch2 tensor1 tensor2 mask src bias "
    "boundaries target x1 x2 x y index source sorted_sequence sorter tau pivots prepend append fweights aweights weights",
    "Number | Tensor": "lr",
    "tuple of Numbers": "betas",
    "Tensor | Number": "input other value exponent weight min max elements test_elements end",
    "tuple of Tensors": "tensors",
    "str": "reduction",
    "dtype": "dtype",
}
_KIND_OF = {name: kind for kind, names in _NAMED.items() for name in names.split()}
_ANNOTATED = {
    "Tensor": "Tensor",
    "float": "Number",
    "int": "int",
    "bool": "bool",
    "str": "str",
    "None": "None",
    "tuple[int, ...]": "tuple of ints",
    "Sequence[int]": "tuple of ints",
    "Sequence[float]": "tuple of Numbers",
    "Sequence[Tensor]": "tuple of Tensors",
}
#: Kinds that differ from another one only in what else they take -> the word for messages.
_SHOWN = {"size": "int", "flag": "bool"}
#: Ints for which PyTorch takes a tensor of one element of any shape, as for sizes.
_SIZES = frozenset(
    [
        "n",
        "groups",
        "num_samples",
        "length",
        "storage_offset",
        "size",
        "output_size",
        "step",
        "k",
        "diagonal",
        "low",
        "high",
        "ignore_index",
        "index",
        "start",
        "end",
    ]
)


class Kind:
    """The kinds of values that one parameter takes."""

    __slots__ = ("exact", "ints", "parts", "tensors", "words")

    def __init__(self, words: str) -> None:
        names = words.split(" | ")
        if "tuple of ints" in names:  # in the place of a sequence of sizes one of them
            names = ["size" if name == "int" else name for name in names]
        self.parts = [_KINDS[name][:2] for name in names]
        self.exact = frozenset(t for name in names for t in _KINDS[name][2])
        self.tensors, self.ints = names[0] == "Tensor", "tuple of ints" in names
        shown = [_SHOWN.get(n, n) for n in names if n != "None"] or names
        # A number in the place of a tensor is a convenience, a tensor what is asked for.
        self.words = "Tensor" if shown == ["Tensor", "Number"] else " or ".join(shown)

    def take(self, value: Any) -> Any:
        """`value` as the function is to see it; `REFUSED` if it is of another kind."""
        if type(value) in self.exact:
            return value
        # Parameters, and sizes as modules keep them: the cases of nearly every call.
        if self.tensors and isinstance(value, Tensor):
            self.exact |= {type(value)}  # one look at a class of tensors is enough
            return value
        if self.ints and type(value) in _SEQUENCES and _ARE_INTS.issuperset(map(type, value)):
            return value
        for fits, convert in self.parts:
            if fits(value):
                return convert(value)
        return REFUSED


REFUSED: Any = object()


def wrong_kind(label: str, name: str, position: int | None, words: str, value: Any) -> TypeError:
    """The error for an argument of another kind: the function, the argument, what was expected, what came."""
    where = "" if position is None else f" (position {position + 1})"
    found = type(value).__name__
    if isinstance(value, (tuple, list)):
        inner = sorted({type(v).__name__ for v in value})
        found = f"{found} of {', '.join(inner)}" if inner else f"an empty {found}"
    elif isinstance(value, Tensor):
        found = f"Tensor of shape {list(value._array.shape)} and type {value.dtype}"
    return TypeError(f"{label}(): argument {name!r}{where} must be {words}, not {found}")


def words_of(
    name: str, annotation: str, has_default: bool, default: Any, kinds: dict[str, str]
) -> str | None:
    """The kinds of one parameter in words; None where nothing is known."""
    if name == "inplace":
        return None  # asked for its truth, whatever it is, as PyTorch does
    if name == "requires_grad":
        return "flag"
    if name in kinds:
        words: str | None = kinds[name]
    else:
        parts = [_ANNOTATED.get(part) for part in str(annotation).split(" | ")]
        if None not in parts:
            words = " | ".join(part for part in parts if part is not None)
        else:
            words = "bool" if isinstance(default, bool) else _KIND_OF.get(name)
    if not words:
        return None
    if name in _SIZES:
        words = " | ".join("size" if word == "int" else word for word in words.split(" | "))
    if words.endswith("!"):
        return words[:-1]
    if has_default and default in (None, ()) and "None" not in words:
        words += " | None"
    return words
