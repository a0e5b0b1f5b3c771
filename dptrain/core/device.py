"""Devices: where values can live, and which of these places this machine can compute on.

Owns: `device` values and their check, the host devices; the GPUs are in `core/cuda.py`. Must not know: arrays, tensors, derivatives.

`DPTRAIN_HOST_DEVICES=4` splits the host into `cpu:0` ... `cpu:3`, so that programs for several
devices run on any machine; "cpu" then means `cpu:0`.
"""

from __future__ import annotations

import re
from contextvars import ContextVar, Token
from functools import cache
from typing import Any

from dptrain.core.settings import settings

# What a script may name; only the first of them can be computed on.
_DEVICE_TEXT = re.compile(r"(cpu|cuda|mps|xpu|meta)(?::(\d+))?\Z")


class device:
    """Where a tensor's values live: `device("cpu")`, `device("cuda", 0)`, `device("cuda:0")`.

    Args:
        type: "cpu" or "cuda", optionally with an index ("cuda:1"), or another device.
        index: which one, counted from 0.

    Raises:
        RuntimeError: the text is no device.
    """

    __slots__ = ("index", "type")

    def __init__(self, type: str | device, index: int | None = None) -> None:
        if isinstance(type, device):
            index = type.index if index is None else index
            type = type.type
        if isinstance(type, int) and not isinstance(type, bool) and index is None:
            type, index = "cuda", type  # as in PyTorch: an accelerator's index
        if not isinstance(type, str):
            raise TypeError(f"device(): argument 'type' must be str, not {type.__class__.__name__}")
        if index is not None and (not isinstance(index, int) or isinstance(index, bool)):
            raise TypeError(
                f"device(): argument 'index' must be int, not {index.__class__.__name__}"
            )
        match = _DEVICE_TEXT.match(type)
        if match is None:
            raise RuntimeError(
                f"Invalid device string: {type!r}; expected 'cpu', 'cuda' or 'cuda:<index>'"
            )
        if match[2] is not None and index is not None:
            raise RuntimeError(f"device {type!r} already names an index; got index={index} as well")
        self.type: str = match[1]
        self.index: int | None = int(match[2]) if match[2] is not None else index

    def __repr__(self) -> str:
        index = "" if self.index is None else f", index={self.index}"
        return f"device(type='{self.type}'{index})"

    def __str__(self) -> str:
        return self.type if self.index is None else f"{self.type}:{self.index}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, device) and (self.type, self.index) == (other.type, other.index)

    def __hash__(self) -> int:
        return hash((self.type, self.index))

    def __enter__(self) -> device:
        _entered.set((*_entered.get(), _default.set(self)))
        return self

    def __exit__(self, *exc_info: object) -> None:
        *outer, token = _entered.get()
        _entered.set(tuple(outer))
        _default.reset(token)


_Device = device
#: None: the first host device.
_default: ContextVar[device | None] = ContextVar("default_device", default=None)
#: What the `with` blocks that are open here put aside.
_entered: ContextVar[tuple[Token[device | None], ...]] = ContextVar("entered_devices", default=())


def get_default_device() -> device:
    """Where new tensors are made unless `device=` says otherwise."""
    return _default.get() or host_device(0)


def set_default_device(device: Any) -> None:
    """Set where new tensors are made (`None`: the CPU), for the present context (thread).

    Raises:
        RuntimeError: the text is no device.
    """
    _default.set(None if device is None else _Device(device))


@cache
def host_device(index: int) -> device:
    """One of the host devices; the only one has no index, as PyTorch's "cpu"."""
    return device("cpu") if host_device_count() == 1 else device("cpu", index)


@cache
def host_device_count() -> int:
    """Into how many virtual devices the host is split."""
    return settings().host_devices


def as_device(value: str | int | device | None) -> device:
    """The device that `value` names, checked to be usable here; `None` is the default device.

    Raises:
        RuntimeError: this version or machine cannot compute there.
    """
    if value is None:
        value = _default.get()
        if value is None:
            return host_device(0)
    if value is host_device(0) or (type(value) is str and value == "cpu"):
        return host_device(0)
    if not isinstance(value, (str, int, device)) or isinstance(value, bool):
        raise TypeError(
            f"device must be a dptrain.device, a str or an int, not {type(value).__name__}"
        )
    if isinstance(value, int):  # as in PyTorch: an accelerator's index
        value = device("cuda", value)
    found = value if isinstance(value, device) else device(value)
    if found.type == "cuda":
        # Not above: it looks for a driver, which a program on the CPU never needs.
        from dptrain.core.cuda import usable

        return usable(found.index)
    if found.type != "cpu":
        raise RuntimeError(
            f"device '{found}' was asked for, but dptrain has no such devices; use device='cpu'"
        )
    index, count = found.index or 0, host_device_count()
    if index >= count:
        there = (
            "there is one host device, 'cpu'"
            if count == 1
            else f"there are cpu:0 to cpu:{count - 1}"
        )
        raise RuntimeError(
            f"device '{found}' was asked for, but {there}; DPTRAIN_HOST_DEVICES={index + 1} (or more) in the "
            "environment splits the host into so many virtual devices"
        )
    return host_device(index)
