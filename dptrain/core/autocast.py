"""Mixed precision: in which types operations compute, per device type and context.

Owns: the autocast state (context variables, so that thread ranks and replicas have their own), the
context manager `autocast`, the cache of cast weights. Must not know: which operation is cast to what
(core/autocast_policy.py).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import wraps
from types import TracebackType
from typing import Any

from dptrain.core.device import as_device
from dptrain.core.dtypes import bfloat16, dtype, float16, float32, float64
from dptrain.core.grad_mode import is_grad_enabled
from dptrain.core.tensor import Tensor

#: Lower precision types by device type; those without a device here only answer questions.
_DEFAULTS: dict[str, dtype] = {
    "cpu": bfloat16,
    "cuda": float16,
    "hpu": bfloat16,
    "ipu": float16,
    "maia": bfloat16,
    "mps": float16,
    "mtia": float16,
    "xla": bfloat16,
    "xpu": float16,
}
#: Devices that PyTorch can name and that have no autocast.
_WITHOUT = frozenset(
    [
        "fpga",
        "hip",
        "ideep",
        "lazy",
        "meta",
        "mkldnn",
        "opencl",
        "opengl",
        "privateuseone",
        "ve",
        "vulkan",
    ]
)


@dataclass(frozen=True, slots=True)
class _State:
    """What `autocast` sets."""

    enabled: frozenset[str]
    dtypes: Mapping[str, dtype]
    cache_enabled: bool = True


class _Cache(dict[tuple[int, dtype, bool], tuple[Tensor, Any, int, Tensor]]):
    """Casts of leaves: (identity, type, recorded) -> (leaf, its array and version then, cast)."""


_START = _State(frozenset(), _DEFAULTS)
_state: ContextVar[_State] = ContextVar("autocast", default=_START)
#: What the regions that are entered put back. Not kept by their objects: one may be entered again inside
#: itself, and by several threads.
_outer: ContextVar[tuple[_State, ...]] = ContextVar("autocast_outer", default=())
#: Device type -> lower precision type, of what is enabled and not inside a cast operation.
_lower: ContextVar[dict[str, dtype] | None] = ContextVar("autocast_lower", default=None)
_nesting: ContextVar[int] = ContextVar("autocast_nesting", default=0)
_cache: ContextVar[_Cache | None] = ContextVar("autocast_cache", default=None)

#: Bound once because operations that autocast knows ask it at every call; None: nothing is enabled.
lower_types = _lower.get


def _install(state: _State) -> None:
    _state.set(state)
    _lower.set({kind: state.dtypes[kind] for kind in state.enabled} or None)


def _device_type(text: str) -> str:
    """The type in "cuda" or "cuda:0".

    Raises:
        RuntimeError: autocast does not exist there.
    """
    found = text.split(":")[0]
    if found not in _DEFAULTS:
        known = "it has no autocast" if found in _WITHOUT else "it is no device type"
        raise RuntimeError(
            f"autocast: device_type {text!r} was given, but {known}; expected one of {', '.join(_DEFAULTS)}"
        )
    return found


def check_text(device_type: object) -> None:
    if not isinstance(device_type, str):
        raise ValueError(f"Expected `device_type` of type `str`, got: `{type(device_type)}`")


# ---- what is set -----------------------------------------------------------------------------------


def is_autocast_available(device_type: str) -> bool:
    """Whether autocast exists for a device type.

    Raises:
        RuntimeError: that is no device type.
    """
    found = device_type.split(":")[0]
    return found not in _WITHOUT and _device_type(device_type) in _DEFAULTS


def is_autocast_enabled(device_type: str = "cuda") -> bool:
    """Whether operations on that device type are cast at present."""
    return _device_type(device_type) in _state.get().enabled


def set_autocast_enabled(device_type: Any, enabled: bool | None = None) -> None:
    """Switch casting on or off: `(device_type, enabled)`, or `(enabled)` for "cuda"."""
    if enabled is None:
        device_type, enabled = "cuda", device_type
    found, state = _device_type(device_type), _state.get()
    others = state.enabled - {found}
    _install(replace(state, enabled=others | {found} if enabled else others))


def get_autocast_dtype(device_type: str) -> dtype:
    """The lower precision type of a device type: bfloat16 on the CPU, float16 on CUDA, unless set."""
    return _state.get().dtypes[_device_type(device_type)]


def set_autocast_dtype(device_type: str, dtype: dtype) -> None:
    """Set the lower precision type of a device type."""
    state = _state.get()
    _install(replace(state, dtypes={**state.dtypes, _device_type(device_type): dtype}))


def is_autocast_cache_enabled() -> bool:
    """Whether cast weights are kept until the outermost region ends."""
    return _state.get().cache_enabled


def set_autocast_cache_enabled(enabled: bool) -> None:
    """Switch the cache of cast weights on or off."""
    _state.set(replace(_state.get(), cache_enabled=bool(enabled)))


def clear_autocast_cache() -> None:
    """Drop the cast weights."""
    cache = _cache.get()
    if cache is not None:
        cache.clear()


def autocast_increment_nesting() -> int:
    """Enter a region; its number, from 1."""
    nesting = _nesting.get() + 1
    _nesting.set(nesting)
    if nesting == 1:
        _cache.set(_Cache())
    return nesting


def autocast_decrement_nesting() -> int:
    """Leave a region; how many are still entered."""
    nesting = _nesting.get() - 1
    _nesting.set(nesting)
    return nesting


def autocast_facts() -> Any:
    """What operations' types depend on, to compare: None where nothing is enabled."""
    lower = _lower.get()
    if lower is None:
        return None
    return tuple(sorted((kind, found.name) for kind, found in lower.items()))


# ---- regions ---------------------------------------------------------------------------------------


def cuda_missing() -> bool:
    """Whether there is no GPU to compute on."""
    try:
        as_device("cuda")
    except RuntimeError:
        return True
    return False


class autocast:
    """A region (or, as a decorator, a function) in which operations choose their own types.

    Matrix products and convolutions compute in the lower precision type, what needs range or accuracy
    (losses among it) in float32; backward runs in the types of the forward pass. float64 stays.

    Args:
        device_type: "cpu", "cuda", ...
        dtype: bfloat16 or float16; by default `get_autocast_dtype(device_type)`.
        enabled: False switches autocast off in the region.
        cache_enabled: keep weights that were cast, to the end of the outermost region.

    Raises:
        ValueError: `device_type` is no text.
        RuntimeError: autocast does not exist for that device type.

    An unsupported `dtype`, or a GPU that is not there, is warned about; the region casts nothing then.
    """

    def __init__(
        self,
        device_type: str,
        dtype: dtype | None = None,
        enabled: bool = True,
        cache_enabled: bool | None = None,
    ) -> None:
        check_text(device_type)
        self.device = _device_type(device_type)
        self.fast_dtype = get_autocast_dtype(self.device) if dtype is None else dtype
        self._cache_enabled = (
            is_autocast_cache_enabled() if cache_enabled is None else cache_enabled
        )
        if enabled and self.device == "cuda" and cuda_missing():
            warnings.warn("CUDA is not available. Disabling autocast.", UserWarning, stacklevel=2)
            enabled = False
        elif enabled and self.fast_dtype not in (bfloat16, float16):
            place = self.device.upper()
            warnings.warn(
                f"In {place} autocast, but the target dtype {self.fast_dtype} is not supported. Disabling autocast.\n"
                f"{place} Autocast only supports dtypes of {bfloat16}, {float16} currently.",
                UserWarning,
                stacklevel=2,
            )
            enabled = False
        self._enabled = bool(enabled)

    def __enter__(self) -> autocast:
        outer = _state.get()
        _outer.set((*_outer.get(), outer))
        others = outer.enabled - {self.device}
        _install(
            _State(
                enabled=others | {self.device} if self._enabled else others,
                dtypes={**outer.dtypes, self.device: self.fast_dtype},
                cache_enabled=self._cache_enabled,
            )
        )
        autocast_increment_nesting()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if autocast_decrement_nesting() == 0:
            clear_autocast_cache()
        *rest, outer = _outer.get()
        _outer.set(tuple(rest))
        set_autocast_enabled(self.device, self.device in outer.enabled)
        set_autocast_dtype(self.device, outer.dtypes[self.device])
        set_autocast_cache_enabled(outer.cache_enabled)

    def __call__(self, func: Callable[..., Any]) -> Callable[..., Any]:
        """Decorate a function so that it runs in such a region.

        Raises:
            TypeError: `func` cannot be called.
        """
        if not callable(func):
            raise TypeError(
                f"autocast()(func) requires a callable, but got {type(func).__name__}; as a context manager it is "
                "written `with autocast(device_type):`"
            )

        @wraps(func)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            with self:
                return func(*args, **kwargs)

        return wrapped


@contextmanager
def as_now() -> Iterator[Callable[[], Any]]:
    """The present state for a later run: `with as_now() as same: ...`, then `with same(): ...`.

    Both runs start with no weights cast, so that they record the same operations.
    """
    state, lower = _state.get(), _lower.get()

    @contextmanager
    def same() -> Iterator[None]:
        variables: Any = ((_state, state), (_lower, lower), (_nesting, 1), (_cache, _Cache()))
        tokens = [(variable, variable.set(value)) for variable, value in variables]
        try:
            yield
        finally:
            for variable, token in tokens:
                variable.reset(token)

    with same():
        yield same


# ---- casting ---------------------------------------------------------------------------------------


def device_type_of(tensor: Tensor) -> str:
    """The type of the device on which it lives."""
    return tensor.device.type


def eligible(tensor: Tensor, device_type: str) -> bool:
    """Whether autocast may cast it: a floating point tensor there, but float64 stays."""
    kind = tensor.dtype
    return kind.is_floating_point and kind is not float64 and device_type_of(tensor) == device_type


def cast(value: Any, target: dtype, device_type: str) -> Any:
    """Eligible tensors in `value` (one, or a list or tuple with some) as `target`.

    float32 leaves that require gradients are cast once in a region: the weights.
    """
    if isinstance(value, Tensor):
        if value.dtype is target or not eligible(value, device_type):
            return value
        return _remembered(value, target) if _is_weight(value, target) else value.to(target)
    if isinstance(value, (list, tuple)) and any(
        isinstance(v, (Tensor, list, tuple)) for v in value
    ):
        return type(value)([cast(v, target, device_type) for v in value])
    return value


def _is_weight(tensor: Tensor, target: dtype) -> bool:
    return (
        tensor.dtype is float32
        and target is not float32
        and tensor._requires_grad
        and tensor._node is None
        and tensor._base is None
        and _nesting.get() > 0
        and _state.get().cache_enabled
    )


def _remembered(leaf: Tensor, target: dtype) -> Tensor:
    """The cast of a leaf, made anew where the leaf has changed since.

    A cast that was not recorded, under `no_grad`, must not stand where a gradient is wanted.
    """
    cache = _cache.get()
    if cache is None:
        return leaf.to(target)
    key = (id(leaf), target, is_grad_enabled())
    version = leaf._version_counter()[0]
    held = cache.get(key)
    if held is not None and held[1] is leaf._array and held[2] == version:
        return held[3]
    made = leaf.to(target)
    cache[key] = (leaf, leaf._array, version, made)
    return made


@contextmanager
def outside(device_type: str) -> Iterator[None]:
    """Inside of an operation that was cast, what it is made of keeps its types."""
    lower = _lower.get() or {}
    token = _lower.set({k: v for k, v in lower.items() if k != device_type} or None)
    try:
        yield
    finally:
        _lower.reset(token)
