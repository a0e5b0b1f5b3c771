"""Jacobians and Hessians of functions from nested tensors to nested tensors.

Owns: `jacrev`, `jacfwd`, `hessian`. Must not know: the products of which they are made.

Both Jacobians are computed row by row, one reverse pass each: without a batching rule for every
operation no other order is faster, and the numbers are the same.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from dptrain.autograd.points import derivatives, is_recorded, outputs_of, points, seen_outside
from dptrain.core.creation import zeros
from dptrain.core.export import FUNCTIONS
from dptrain.core.grad_mode import enable_grad, is_grad_enabled
from dptrain.core.tensor import Tensor
from dptrain.core.tree import rebuild
from dptrain.func.batching import check_randomness
from dptrain.func.transforms import Argnums, chosen, split_aux, with_chosen


def jacrev(
    func: Callable[..., Any],
    argnums: Argnums = 0,
    *,
    has_aux: bool = False,
    chunk_size: int | None = None,
    _preallocate_and_copy: bool = False,
) -> Callable[..., Any]:
    """A function that gives the Jacobian of `func` by one or several of its arguments.

    Args:
        func: from nested tensors to nested tensors.
        argnums: by which arguments to differentiate; a tuple gives a tuple.
        has_aux: whether `func` gives its output and something else, which follows the Jacobian.
        chunk_size: how many rows PyTorch computes at once; checked, and of no effect here.

    Returns:
        For each output a Jacobian for each input, of shape (*output.shape, *input.shape): the structure
        of the outputs around that of the inputs.

    Raises:
        ValueError: `chunk_size` below 1.
        RuntimeError: at the call, see `vjp`.
    """
    if chunk_size is not None and chunk_size <= 0:
        raise ValueError("jacrev: `chunk_size` should be greater than 0.")
    return _jacobian(func, argnums, has_aux, "jacrev")


def jacfwd(
    func: Callable[..., Any],
    argnums: Argnums = 0,
    has_aux: bool = False,
    *,
    randomness: str = "error",
) -> Callable[..., Any]:
    """The same as `jacrev`; in PyTorch the way to compute it is another.

    Raises:
        RuntimeError: `randomness` is none of "error", "different" and "same".
    """
    check_randomness(randomness)
    return _jacobian(func, argnums, has_aux, "jacfwd")


def hessian(func: Callable[..., Any], argnums: Argnums = 0) -> Callable[..., Any]:
    """A function that gives the second derivatives of `func`: `jacfwd(jacrev(func))`."""
    return jacfwd(jacrev(func, argnums), argnums)


def _jacobian(
    func: Callable[..., Any], argnums: Argnums, has_aux: bool, name: str
) -> Callable[..., Any]:
    @wraps(func)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        recording = is_grad_enabled()
        inputs, structure = points(chosen(args, argnums, name), name)
        with enable_grad():
            given = with_chosen(args, argnums, rebuild(inputs, structure))
            result, aux = split_aux(func(*given, **kwargs), has_aux, name)
            outputs, around = outputs_of(result, name)
            create = recording and is_recorded(outputs, inputs)
            tables = [rebuild(_rows(o, inputs, create), structure) for o in outputs]
        table = seen_outside(rebuild(tables, around), inputs, create)
        return (table, seen_outside(aux, inputs, recording)) if has_aux else table

    return wrapper


def _rows(output: Tensor, inputs: list[Tensor], create_graph: bool) -> list[Tensor]:
    rows = []
    for k in range(output.numel()):
        unit = zeros(output.numel(), dtype=output.dtype, device=output.device)
        unit[k] = 1
        rows.append(derivatives([output], inputs, [unit.reshape(output.shape)], create_graph))
    return [
        FUNCTIONS["stack"]([row[i] for row in rows]).reshape((*output.shape, *x.shape))
        if rows
        else zeros((*output.shape, *x.shape), dtype=x.dtype, device=x.device)
        for i, x in enumerate(inputs)
    ]
