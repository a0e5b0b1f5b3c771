"""Of which kind a call is: what a recording depends on that is known before it is looked up.

Owns: `kind_of`, `modes`, `reason_now`. Must not know: recordings.
"""

from __future__ import annotations

from typing import Any

from dptrain.compiler.state import is_plain
from dptrain.core.anomaly import anomaly_mode
from dptrain.core.autocast import autocast_facts
from dptrain.core.conv_algo import get_conv_algo
from dptrain.core.dtypes import get_default_dtype
from dptrain.core.grad_mode import is_grad_enabled, record_observer
from dptrain.core.tensor import Tensor
from dptrain.core.threads import get_num_threads
from dptrain.core.tree import leaves


def reason_now() -> str | None:
    """Why nothing can be recorded at present, if so."""
    if anomaly_mode() is not None:
        return "anomaly detection is on"
    if record_observer() is not None:
        return "the recording of the graph is watched (checkpoint, saved-tensor hooks)"
    return None


_TENSORS = {Tensor}


def kind_of(args: Any, kwargs: Any) -> tuple[Any, list[Tensor], list[Any]]:
    """What a recording depends on that is known before it is looked up; the tensors; other objects."""
    if kwargs or set(map(type, args)) != _TENSORS:
        values, structure = leaves((args, kwargs))
        structure = _frozen(structure)
    else:  # most calls
        values, structure = args, len(args)
    tensors: list[Tensor] = []
    others: list[Any] = []
    parts: list[Any] = [*modes()]
    for value in values:
        if isinstance(value, Tensor):
            array = value._array
            tensors.append(value)
            parts.append(
                (type(value), array.shape, array.strides, array.dtype, value._requires_grad)
            )
        elif is_plain(value):
            parts.append((type(value), value if value.__hash__ else repr(value)))
        else:
            others.append(value)
            parts.append(id(value))
    return (tuple(parts), structure), tensors, others


def modes() -> tuple[Any, ...]:
    """What operations depend on beside their arguments."""
    return (
        is_grad_enabled(),
        get_num_threads(),
        get_conv_algo(),
        autocast_facts(),
        get_default_dtype(),
        record_observer() is None and anomaly_mode() is None,
    )


def _frozen(structure: Any) -> Any:
    if type(structure) is tuple and len(structure) == 2 and isinstance(structure[1], list):
        return structure[0], tuple(_frozen(p) for p in structure[1])
    if type(structure) is tuple:
        return structure[0], _frozen(structure[1])
    return structure
