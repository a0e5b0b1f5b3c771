"""Splitting arguments over devices and joining results: what surrounds the replicas of DataParallel.

Owns: `scatter`, `scatter_kwargs`, `gather` over tensors in containers of any nesting. Must not know:
modules, threads.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from dptrain.core.callers import level_outside
from dptrain.core.device import device
from dptrain.core.export import FUNCTIONS
from dptrain.core.tensor import Tensor


def scatter(inputs: Any, target_gpus: Sequence[device], dim: int = 0) -> list[Any]:
    """Split every tensor in `inputs` along `dim`, and repeat everything else, for each device.

    The pieces are as equal as `chunk` makes them: the last may be smaller, and there are fewer
    pieces than devices where the batch is too small.

    Args:
        inputs: tensors, in tuples, lists, dicts and named tuples of any nesting.
        target_gpus: the devices.
        dim: the dimension to split.

    Returns:
        The arguments for each device, in the containers they came in.

    Raises:
        RuntimeError: a tensor without that dimension.
    """

    def split(value: Any) -> list[Any]:
        if isinstance(value, Tensor):
            if value.ndim == 0:
                raise RuntimeError("scatter: chunk expects at least a 1-dimensional tensor")
            pieces = FUNCTIONS["chunk"](value, len(target_gpus), dim)
            return [p.to(d) for p, d in zip(pieces, target_gpus, strict=False)]
        if isinstance(value, (tuple, list)) and value:
            parts = list(zip(*map(split, value), strict=False))
            if hasattr(value, "_fields"):
                return [type(value)(*part) for part in parts]
            return [type(value)(part) for part in parts]
        if isinstance(value, dict) and value:
            rows = zip(*map(split, value.values()), strict=False)
            return [type(value)(zip(value, row, strict=True)) for row in rows]
        return [value for _ in target_gpus]

    return split(inputs)


def scatter_kwargs(
    inputs: tuple[Any, ...],
    kwargs: dict[str, Any] | None,
    target_gpus: Sequence[device],
    dim: int = 0,
) -> tuple[list[tuple[Any, ...]], list[dict[str, Any]]]:
    """Positional and keyword arguments for each device; where one runs short, it is empty there."""
    positional = scatter(inputs, target_gpus, dim) if inputs else []
    named = scatter(kwargs, target_gpus, dim) if kwargs else []
    count = max(len(positional), len(named))
    positional += [()] * (count - len(positional))
    named += [{}] * (count - len(named))
    return positional, named


def gather(outputs: Sequence[Any], target_device: device, dim: int = 0) -> Any:
    """Join the results of the devices on one of them: tensors along `dim`, scalars to a vector.

    Args:
        outputs: one result per device: tensors, in tuples, lists, dicts and named tuples of any
            nesting, or None.
        target_device: where the joined tensors live.
        dim: the dimension along which they are joined.

    Raises:
        ValueError: dicts with different keys.
        TypeError: results that cannot be joined.
    """
    first = outputs[0]
    if isinstance(first, Tensor):
        parts = [o.to(target_device) for o in outputs]
        if all(p.ndim == 0 for p in parts) and dim == 0:
            warnings.warn(
                "Was asked to gather along dimension 0, but all input tensors were scalars; will instead "
                "unsqueeze and return a vector.",
                stacklevel=level_outside(),
            )
            return FUNCTIONS["stack"](parts)
        return FUNCTIONS["cat"](parts, dim)
    if first is None:
        return None
    if isinstance(first, dict):
        if any(o.keys() != first.keys() for o in outputs):
            raise ValueError(
                f"All dicts must have the same number of keys; the replicas returned "
                f"{', '.join(str(sorted(map(str, o))) for o in outputs)}"
            )
        return type(first)((k, gather([o[k] for o in outputs], target_device, dim)) for k in first)
    if isinstance(first, (tuple, list)):
        joined = [gather(part, target_device, dim) for part in zip(*outputs, strict=True)]
        return type(first)(*joined) if hasattr(first, "_fields") else type(first)(joined)
    raise TypeError(
        f"DataParallel can join tensors, None, tuples, lists and dicts of them; the module returned "
        f"{type(first).__name__}"
    )
