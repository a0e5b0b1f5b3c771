"""`out=`: the result of a public function stored in a tensor that is given.

Owns: the checks and the storing. Must not know: of an operation more than its public name.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from dptrain.core.arrays import address
from dptrain.core.grad_mode import is_grad_enabled, no_grad
from dptrain.core.tensor import Tensor

#: Functions of one result that take an `out` of the result's very type; the others what that can be cast to.
_EXACT = frozenset(
    [
        "abs",
        "addbmm",
        "addmm",
        "addmv",
        "amax",
        "amin",
        "argmax",
        "argmin",
        "as_strided_copy",
        "baddbmm",
        "bitwise_not",
        "bmm",
        "bucketize",
        "ceil",
        "cross",
        "detach_copy",
        "diag",
        "diagonal_copy",
        "diff",
        "dot",
        "expand_copy",
        "float_power",
        "floor",
        "frac",
        "gather",
        "heaviside",
        "histc",
        "index_add",
        "index_copy",
        "index_reduce",
        "index_select",
        "inner",
        "isin",
        "isneginf",
        "isposinf",
        "linalg.cholesky",
        "linalg.cross",
        "linalg.det",
        "linalg.eigvalsh",
        "linalg.inv",
        "linalg.ldl_solve",
        "linalg.lu_solve",
        "linalg.matrix_norm",
        "linalg.multi_dot",
        "linalg.norm",
        "linalg.solve",
        "linalg.solve_triangular",
        "linalg.svdvals",
        "linalg.vecdot",
        "linalg.vector_norm",
        "log_softmax",
        "logcumsumexp",
        "lu_solve",
        "masked_select",
        "matmul",
        "mm",
        "msort",
        "multinomial",
        "mv",
        "nan_to_num",
        "nanquantile",
        "narrow_copy",
        "neg",
        "nonzero",
        "norm",
        "normal",
        "ormqr",
        "permute_copy",
        "quantile",
        "renorm",
        "round",
        "scatter",
        "scatter_add",
        "scatter_reduce",
        "searchsorted",
        "select_copy",
        "sgn",
        "sign",
        "signbit",
        "slice_scatter",
        "softmax",
        "squeeze_copy",
        "t_copy",
        "take",
        "take_along_dim",
        "tensordot",
        "transpose_copy",
        "tril",
        "triu",
        "trunc",
        "unfold_copy",
        "unsqueeze_copy",
        "vdot",
        "view_copy",
    ]
)
#: Functions whose result is stored as bool or uint8 only.
_LOGICAL = frozenset(["all", "any"])
#: Functions of which an argument may not be `out` either: where one is read, another is written.
_DISTINCT = frozenset(
    ["cross", "gather", "index_select", "kthvalue", "linalg.cross", "masked_select", "take"]
)


def store_in(run: Callable[..., Any], name: str, args: Any, kwargs: dict[str, Any]) -> Any:
    """`run(*args, **kwargs)` with what comes out stored in `kwargs["out"]`, which is returned.

    `out` is a Tensor, or a sequence of them for an operation of several results. Another shape is taken
    on, with a warning unless `out` is empty. A single result must be castable to the type of `out`, or
    have it where PyTorch's function does not cast; several results must have the very types.

    Raises:
        TypeError: `out` is not made of Tensors, or not of as many as there are results.
        RuntimeError: something requires grad, the types do not fit, or `out` overlaps itself or an argument.
    """
    out = kwargs.pop("out")
    if out is None:
        return run(*args, **kwargs)
    several = isinstance(out, (tuple, list))
    targets = list(out) if several else [out]
    for target in targets:
        if not isinstance(target, Tensor):
            raise TypeError(f"{name}(): argument 'out' must be Tensor, not {type(target).__name__}")
    given = list(_tensors([args, list(kwargs.values())]))
    if is_grad_enabled() and any(t.requires_grad for t in (*given, *targets)):
        raise RuntimeError(
            f"{name}(): functions with out=... arguments don't support automatic differentiation, but one of "
            "the arguments requires grad."
        )
    for target in targets:
        _check_memory(target, given, name)
    with no_grad():
        found = run(*args, **kwargs)
        values = list(found) if isinstance(found, (tuple, list)) else [found]
        if several != isinstance(found, (tuple, list)) or len(values) != len(targets):
            raise TypeError(f"{name}(): expected {len(values)} tensors in out, got {len(targets)}")
        for target, value in zip(targets, values, strict=True):
            _store(target, value, name, several or name in _EXACT)
    return type(found)(targets) if several else out


def _tensors(value: Any) -> Any:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for v in value:
            yield from _tensors(v)


def _check_memory(target: Tensor, given: list[Tensor], name: str) -> None:
    """Refuse an output of which elements share memory with each other or, shifted, with an input."""
    array = target._array
    if any(n > 1 and s == 0 for n, s in zip(array.shape, array.strides, strict=True)):
        raise RuntimeError(
            f"{name}(): unsupported operation: more than one element of the written-to tensor refers to a single "
            "memory location. Please clone() the tensor before performing the operation."
        )
    for tensor in given:
        other = tensor._array
        same = (
            address(other) == address(array)
            and other.strides == array.strides
            and other.shape == array.shape
        )
        if (
            (not same or name in _DISTINCT)
            and np.may_share_memory(other, array)
            and np.shares_memory(other, array)
        ):
            raise RuntimeError(
                f"{name}(): unsupported operation: some elements of the input tensor and the written-to tensor refer "
                "to a single memory location. Please clone() the tensor before performing the operation."
            )


def _store(target: Tensor, value: Tensor, name: str, exact: bool) -> None:
    if exact and value.dtype is not target.dtype:
        raise RuntimeError(
            f"{name}(): Expected out tensor to have dtype {value.dtype}, but got {target.dtype} instead"
        )
    if name in _LOGICAL and target.dtype.name not in ("bool", "uint8"):
        raise RuntimeError(
            f"{name}(): only bool and uint8 results are supported, got {target.dtype}"
        )
    if value.dtype.category > target.dtype.category:
        raise RuntimeError(
            f"{name}(): result type {value.dtype} can't be cast to the desired output type {target.dtype}"
        )
    if target.shape != value.shape:
        if target.numel():
            warnings.warn(
                f"An output with one or more elements was resized since it had shape {list(target.shape)}, which does "
                f"not match the required output shape {list(value.shape)}. Resize it to zero elements first, with "
                "t.resize_(0), to reuse its memory on purpose.",
                UserWarning,
                stacklevel=4,
            )
        target.resize_(value.shape)
    target.copy_(value)
