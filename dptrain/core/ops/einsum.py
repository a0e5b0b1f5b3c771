"""Einstein summation, as permutations, diagonals and batched matrix products."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from dptrain.core.arrays import namespace_of
from dptrain.core.export import export
from dptrain.core.ops.index import Index
from dptrain.core.ops.matmul import Matmul, matmul
from dptrain.core.ops.reduce import Sum
from dptrain.core.ops.shape import Expand, Permute, Reshape
from dptrain.core.tensor import Tensor

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def _einsum(*args: Any) -> Any:
    """Sums of products of the elements of tensors, along dimensions named by letters.

    Args:
        args: an equation such as "bij,bjk->bik" ("..." stands for further dimensions; without "->" the
            letters that occur once, in alphabetical order) and the tensors; or, in turn, tensors and
            lists of dimension numbers, and the list of the result's at the end.

    Raises:
        RuntimeError: the equation is malformed or does not fit the tensors.
    """
    equation, operands = _arguments(args)
    if "->" in equation:
        left, output = equation.split("->", 1)
    else:
        left, output = equation, None
    terms = left.split(",")
    if len(terms) != len(operands):
        raise RuntimeError(
            f"einsum(): the equation {equation!r} names {len(terms)} operands, but {len(operands)} were provided"
        )
    rest = max(_extra_dims(i, t, x) for i, (t, x) in enumerate(zip(terms, operands, strict=True)))
    dots = [chr(0x100 + i) for i in range(rest)]  # labels that no equation can hold
    labels = [_spread_dots(t, dots, x.ndim) for t, x in zip(terms, operands, strict=True)]
    out = _output_labels(equation, output, labels, dots)
    sizes = _label_sizes(labels, operands)
    parts = [_unique(x, names, sizes) for x, names in zip(operands, labels, strict=True)]
    return _contract(parts, out, sizes)


def _arguments(args: tuple[Any, ...]) -> tuple[str, list[Any]]:
    if not args:
        raise ValueError("einsum(): must specify the equation string and at least one operand")
    if not isinstance(args[0], (str, Tensor)):
        raise TypeError(
            f"einsum(): argument 'equation' (position 1) must be str, not {type(args[0]).__name__}"
        )
    if isinstance(args[0], str):
        operands = args[1:]
        if len(operands) == 1 and isinstance(operands[0], (list, tuple)):
            operands = tuple(operands[0])
        if not operands:
            raise ValueError("einsum(): must specify the equation string and at least one operand")
        equation = args[0].replace(" ", "")
    else:
        numbered = list(args)
        output = numbered.pop() if len(numbered) % 2 else None
        operands = tuple(numbered[::2])
        equation = ",".join(_letters(s) for s in numbered[1::2])
        if output is not None:
            equation += "->" + _letters(output)
    for x in operands:
        if not isinstance(x, Tensor):
            raise TypeError(f"einsum(): operands must be Tensors, got {type(x).__name__}")
    for character in equation.replace("...", "").replace("->", "").replace(",", ""):
        if character not in _LETTERS:
            raise RuntimeError(
                f"einsum(): invalid subscript given: {character!r} in {equation!r}; subscripts must be in [a-zA-Z]"
            )
    return equation, list(operands)


def _letters(numbers: Sequence[Any]) -> str:
    found = []
    for n in numbers:
        if n is Ellipsis:
            found.append("...")
        elif 0 <= n < 52:
            found.append(_LETTERS[n])
        else:
            raise RuntimeError(f"einsum(): not within the valid range [0, 52): the subscript {n}")
    return "".join(found)


def _extra_dims(i: int, term: str, x: Tensor) -> int:
    """How many dimensions the dots of a term stand for."""
    named = len(term.replace("...", ""))
    if ("..." in term and named > x.ndim) or ("..." not in term and named != x.ndim):
        raise RuntimeError(
            f"einsum(): the number of subscripts in the equation ({named}: {term!r}) does not match the number of "
            f"dimensions ({x.ndim}) for operand {i}"
        )
    return x.ndim - named if "..." in term else 0


def _spread_dots(term: str, dots: list[str], ndim: int) -> list[str]:
    if "..." not in term:
        return list(term)
    before, after = term.split("...", 1)
    own = ndim - len(before) - len(after)
    return [*before, *dots[len(dots) - own :], *after]


def _output_labels(
    equation: str, output: str | None, labels: list[list[str]], dots: list[str]
) -> list[str]:
    present = [n for names in labels for n in names]
    if output is None:
        once = sorted(n for n in set(present) - set(dots) if present.count(n) == 1)
        return [*dots, *once]
    before, mark, after = output.partition("...")
    out = [*before, *(dots if mark else []), *after]
    for n in out:
        if out.count(n) > 1:
            raise RuntimeError(
                f"einsum(): output subscript {n} appears more than once in the output of {equation!r}"
            )
        if n not in present and n not in dots:
            raise RuntimeError(
                f"einsum(): output subscript {n} does not appear in the equation for any input operand ({equation!r})"
            )
    return out


def _label_sizes(labels: list[list[str]], operands: list[Tensor]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for i, (names, x) in enumerate(zip(labels, operands, strict=True)):
        for n, size in zip(names, x.shape, strict=True):
            held = sizes.get(n, 1)
            if held != 1 and size not in (1, held):
                raise RuntimeError(
                    f"einsum(): subscript {n} has size {size} for operand {i} which does not broadcast with previously "
                    f"seen size {held}"
                )
            sizes[n] = size if held == 1 else held
    return sizes


def _unique(x: Tensor, names: list[str], sizes: dict[str, int]) -> tuple[Tensor, list[str]]:
    """Take the diagonal of labels that a term repeats."""
    for n in dict.fromkeys(names):
        places = [i for i, m in enumerate(names) if m == n]
        if len(places) == 1:
            continue
        others = [i for i in range(len(names)) if i not in places]
        x = Permute.apply(x, (*places, *others))
        x = Expand.apply(x, (*[sizes[n]] * len(places), *x.shape[len(places) :]))
        x = Index.apply(x, (namespace_of(x._array).arange(sizes[n]),) * len(places))
        names = [n, *(names[i] for i in others)]
    return x, names


def _contract(
    parts: list[tuple[Tensor, list[str]]], out: list[str], sizes: dict[str, int]
) -> Tensor:
    x, names = parts[0]
    for i, (y, others) in enumerate(parts[1:], 1):
        later = set(out).union(*(n for _, n in parts[i + 1 :]))
        x, names = _pair(x, names, y, others, later, sizes)
    gone = [n for n in names if n not in out]
    if gone:
        x = Sum.apply(x, tuple(names.index(n) for n in gone))
        names = [n for n in names if n in out]
    if names == out and len(parts) > 1:
        return x
    return Permute.apply(x, tuple(names.index(n) for n in out))


def _size(x: Tensor, names: list[str], name: str) -> int:
    return x._array.shape[names.index(name)]


def _pair(
    x: Tensor,
    x_names: list[str],
    y: Tensor,
    y_names: list[str],
    later: set[str],
    sizes: dict[str, int],
) -> tuple[Tensor, list[str]]:
    """One product: sum over the labels of both that nothing later needs, as a batched matmul."""
    # A label of size 1 on either side is summed before: what is left to sum is a matrix product.
    ones = {
        n for t, names in ((x, x_names), (y, y_names)) for n in names if _size(t, names, n) == 1
    }
    meeting = (set(x_names) & set(y_names)) - ones
    x, x_names = _sum_alone(x, x_names, later | meeting)
    y, y_names = _sum_alone(y, y_names, later | meeting)
    both = [n for n in x_names if n in y_names]
    summed = [n for n in both if n not in later]
    batch = [n for n in both if n in later]
    rows = [n for n in x_names if n not in both]
    columns = [n for n in y_names if n not in both]
    a = _arranged(x, x_names, [batch, rows, summed], sizes, both)
    b = _arranged(y, y_names, [batch, summed, columns], sizes, both)
    names = [*batch, *rows, *columns]
    product = matmul(a, b) if summed else a * b
    # Sizes come from the operands: a label of size 1 here may be stretched by a later one.
    found = {
        n: s for t, ns in ((x, x_names), (y, y_names)) for n, s in zip(ns, t.shape, strict=True)
    }
    found.update({n: sizes[n] for n in both})
    return _shaped(product, tuple([found[n] for n in names])), names


def _shaped(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    return x if x._array.shape == shape else Reshape.apply(x, shape)


def _sum_alone(x: Tensor, names: list[str], kept: set[str]) -> tuple[Tensor, list[str]]:
    gone = tuple(i for i, n in enumerate(names) if n not in kept)
    if not gone:
        return x, names
    return Sum.apply(x, gone), [n for n in names if n in kept]


def _arranged(
    x: Tensor, names: list[str], groups: list[list[str]], sizes: dict[str, int], both: list[str]
) -> Tensor:
    """The labels of each group joined into one dimension; shared ones stretched to their size."""
    order = [n for group in groups for n in group]
    if order != names:
        x = Permute.apply(x, tuple(names.index(n) for n in order))
    shape = x._array.shape
    wide = tuple([sizes[n] if n in both else shape[i] for i, n in enumerate(order)])
    if wide != shape:
        x = Expand.apply(x, wide)
    size = dict(zip(order, wide, strict=True))
    return _shaped(x, tuple([math.prod([size[n] for n in group]) for group in groups]))


export("einsum", function=_einsum)(Matmul)
