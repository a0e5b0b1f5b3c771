"""Loss scaling: small gradients of 16-bit types are kept from vanishing, infinite ones from being applied.

Owns: `GradScaler`. Must not know: layers, ranks. Under DistributedDataParallel nothing more is needed:
an infinite gradient of one rank makes the mean infinite on all of them.

Source: Micikevicius et al., "Mixed precision training", 2018.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar

import numpy as np

from dptrain.core.autocast import cuda_missing
from dptrain.core.capturing import whole
from dptrain.core.creation import tensor
from dptrain.core.flat import gradients
from dptrain.core.kernels import kernels_for
from dptrain.core.tensor import Tensor
from dptrain.optim.optimizer import Optimizer


class _Stage(Enum):
    """How far an optimizer is since the last `update`."""

    READY = 0
    UNSCALED = 1
    STEPPED = 2


@dataclass(slots=True)
class _Progress:
    """What happened to one optimizer since the last `update`."""

    stage: _Stage = _Stage.READY
    #: Whether a gradient was infinite or no number; None: there was none to check.
    found_inf: bool | None = None


class GradScaler:
    """Multiplies losses by a scale, divides gradients by it, and adapts it to what the type can hold.

    Args:
        device: "cuda" or "cpu".
        init_scale: the first scale.
        growth_factor: factor of the scale after `growth_interval` steps in a row without infinite gradients.
        backoff_factor: factor of the scale after an infinite gradient.
        growth_interval: see there.
        enabled: False makes `step` the optimizer's own and everything else do nothing.

    Raises:
        AssertionError: `growth_factor` <= 1 or `backoff_factor` >= 1.
    """

    def __init__(
        self,
        device: str = "cuda",
        init_scale: float = 2.0**16,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
        enabled: bool = True,
    ) -> None:
        if enabled and device == "cuda" and cuda_missing():
            warnings.warn(
                "dptrain.cuda.amp.GradScaler is enabled, but CUDA is not available. Disabling.",
                UserWarning,
                stacklevel=2,
            )
            enabled = False
        if enabled and not growth_factor > 1.0:
            raise AssertionError(f"The growth factor must be > 1.0, got {growth_factor}.")
        if enabled and not backoff_factor < 1.0:
            raise AssertionError(f"The backoff factor must be < 1.0, got {backoff_factor}.")
        self._device, self._enabled = device, enabled
        self._init_scale = init_scale
        #: A float32 number of no dimensions, made by the first `scale`, where the first output lives.
        self._scale: Tensor | None = None
        self._growth_factor, self._backoff_factor = growth_factor, backoff_factor
        self._growth_interval = growth_interval
        self._growth_tracker = 0
        self._progress: dict[int, _Progress] = defaultdict(_Progress)

    # ---- one iteration ---------------------------------------------------------------------------

    def scale(self, outputs: Any) -> Any:
        """Multiply a tensor, or those in a (nested) list, tuple or other iterable, by the scale.

        Raises:
            ValueError: something else.
        """
        if not self._enabled:
            return outputs
        if isinstance(outputs, Tensor):
            if self._scale is None:
                self._scale = tensor(np.float32(self._init_scale), device=outputs.device)
            return outputs * self._scale.to(outputs.device)
        if isinstance(outputs, Iterable):
            scaled = map(self.scale, outputs)
            return type(outputs)(scaled) if isinstance(outputs, (list, tuple)) else scaled
        raise ValueError("outputs must be a Tensor or an iterable of Tensors")

    def _present_scale(self, wanted_by: str) -> Tensor:
        if self._scale is None:
            raise AssertionError(
                f"Attempted {wanted_by} but _scale is None.  This may indicate your script did not use "
                "scaler.scale(loss or outputs) earlier in the iteration."
            )
        return self._scale

    @whole
    def unscale_(self, optimizer: Optimizer) -> None:
        """Divide an optimizer's gradients by the scale; `step` does it unless it was done (to clip, say).

        Raises:
            RuntimeError: a second time, or after `step`, since the last `update`.
            ValueError: float16 gradients: the parameters should be float32.
            AssertionError: nothing was scaled yet.
        """
        if not self._enabled:
            return
        scale = self._present_scale("unscale_")
        progress = self._progress[id(optimizer)]
        if progress.stage is _Stage.UNSCALED:
            raise RuntimeError(
                "unscale_() has already been called on this optimizer since the last update()."
            )
        if progress.stage is _Stage.STEPPED:
            raise RuntimeError("unscale_() is being called after step().")
        progress.found_inf = _unscale(optimizer, scale.item())
        progress.stage = _Stage.UNSCALED

    @whole
    def step(self, optimizer: Optimizer, *args: Any, **kwargs: Any) -> Any:
        """`optimizer.step(*args, **kwargs)`, unless a gradient is infinite or no number.

        Returns:
            What it returned; None where it was skipped.

        Raises:
            RuntimeError: a second time since the last `update`, or with a closure.
            AssertionError: nothing was scaled yet, or no parameter has a gradient.
        """
        if not self._enabled:
            return optimizer.step(*args, **kwargs)
        if "closure" in kwargs:
            raise RuntimeError("Closure use is not currently supported if GradScaler is enabled.")
        self._present_scale("step")
        progress = self._progress[id(optimizer)]
        if progress.stage is _Stage.STEPPED:
            raise RuntimeError("step() has already been called since the last update().")
        if progress.stage is _Stage.READY:
            self.unscale_(optimizer)
        if progress.found_inf is None:
            raise AssertionError(
                "No inf checks were recorded for this optimizer: none of its parameters has a gradient."
            )
        result = None if progress.found_inf else optimizer.step(*args, **kwargs)
        progress.stage = _Stage.STEPPED
        return result

    @whole
    def update(self, new_scale: float | Tensor | None = None) -> None:
        """Adapt the scale, once after the steps of all optimizers.

        Args:
            new_scale: the scale from now on; a number or a tensor of one element.

        Raises:
            AssertionError: nothing was scaled or stepped since the last time, or `new_scale` is not as said.
        """
        if not self._enabled:
            return
        scale = self._present_scale("update")
        if new_scale is not None:
            scale.fill_(_checked(new_scale, self._device))
        else:
            found = [p.found_inf for p in self._progress.values() if p.found_inf is not None]
            if not found:
                raise AssertionError("No inf checks were recorded prior to update.")
            scale.fill_(self._adapted(scale.item(), any(found)))
        self._progress = defaultdict(_Progress)

    def _adapted(self, scale: float, found_inf: bool) -> float:
        self._growth_tracker = 0 if found_inf else self._growth_tracker + 1
        if found_inf:
            return scale * self._backoff_factor
        if self._growth_tracker < self._growth_interval:
            return scale
        self._growth_tracker = 0
        grown = scale * self._growth_factor
        return grown if grown <= float(np.finfo(np.float32).max) else scale

    # ---- state -----------------------------------------------------------------------------------

    def get_scale(self) -> float:
        """The scale; 1.0 if scaling is disabled."""
        if not self._enabled:
            return 1.0
        return self._init_scale if self._scale is None else self._scale.item()

    def get_growth_factor(self) -> float:
        """The factor by which the scale grows."""
        return self._growth_factor

    def set_growth_factor(self, new_factor: float) -> None:
        """Set the factor by which the scale grows."""
        self._growth_factor = new_factor

    def get_backoff_factor(self) -> float:
        """The factor of the scale after an infinite gradient."""
        return self._backoff_factor

    def set_backoff_factor(self, new_factor: float) -> None:
        """Set the factor of the scale after an infinite gradient."""
        self._backoff_factor = new_factor

    def get_growth_interval(self) -> int:
        """After how many steps the scale grows."""
        return self._growth_interval

    def set_growth_interval(self, new_interval: int) -> None:
        """Set after how many steps the scale grows."""
        self._growth_interval = new_interval

    def is_enabled(self) -> bool:
        """Whether it scales."""
        return self._enabled

    def state_dict(self) -> dict[str, Any]:
        """The scale and how it adapts, in PyTorch's layout; empty if scaling is disabled."""
        if not self._enabled:
            return {}
        return {
            "scale": self.get_scale(),
            "growth_factor": self._growth_factor,
            "backoff_factor": self._backoff_factor,
            "growth_interval": self._growth_interval,
            "_growth_tracker": self._growth_tracker,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state of `state_dict`; does nothing if scaling is disabled.

        Raises:
            RuntimeError: the state is empty, that of a disabled one.
        """
        if not self._enabled:
            return
        if not state_dict:
            raise RuntimeError(
                "The source state dict is empty, possibly because it was saved from a disabled instance of GradScaler."
            )
        self._init_scale = state_dict["scale"]
        if self._scale is not None:
            self._scale.fill_(state_dict["scale"])
        self._growth_factor = state_dict["growth_factor"]
        self._backoff_factor = state_dict["backoff_factor"]
        self._growth_interval = state_dict["growth_interval"]
        self._growth_tracker = state_dict["_growth_tracker"]

    def __getstate__(self) -> dict[str, Any]:
        if self._progress:
            raise AssertionError(
                "A GradScaler instance may only be pickled at the beginning of an iteration, or at the end after "
                "scaler.update()."
            )
        return {**self.__dict__, "_init_scale": self.get_scale(), "_scale": None}


def _unscale(optimizer: Optimizer, scale: float) -> bool | None:
    """Divide all gradients, one pass over each stretch of flat storage.

    Returns:
        Whether one was infinite or no number; None if there are none.
    """
    params = [p for group in optimizer.param_groups for p in group["params"]]
    pieces = gradients(params)
    if any(piece.dtype == np.float16 for piece in pieces):
        raise ValueError("Attempting to unscale FP16 gradients.")
    found = False
    with np.errstate(all="ignore"):  # inf and nan are what is looked for
        inverse = float(np.float32(np.reciprocal(np.float64(scale))))  # a scale can come down to 0
        for piece in pieces:
            flat = piece.reshape(-1)
            found |= kernels_for(flat).unscale(flat, inverse)
            if not np.may_share_memory(flat, piece):
                piece[...] = flat.reshape(piece.shape)
    for p in params:
        if p._grad is not None:
            p._grad._bump_version()
    return found if pieces else None


def _checked(new_scale: Any, device: str) -> float:
    if isinstance(new_scale, (int, float)):
        return new_scale
    fits = isinstance(new_scale, Tensor) and new_scale.device.type == device
    if not fits or new_scale.numel() != 1 or new_scale.requires_grad:
        raise AssertionError(
            f"new_scale should be a float or a 1-element tensor on {device!r} with requires_grad=False, got "
            f"{new_scale!r}"
        )
    return new_scale.item()


class _OlderGradScaler(GradScaler):
    """`GradScaler` of one device type.

    Args:
        init_scale, growth_factor, backoff_factor, growth_interval, enabled: see `GradScaler`.
    """

    _place: ClassVar[str]

    def __init__(
        self,
        init_scale: float = 2.0**16,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
        enabled: bool = True,
    ) -> None:
        warnings.warn(
            f"`dptrain.{self._place}.amp.GradScaler(args...)` is deprecated. "
            f"Please use `dptrain.amp.GradScaler('{self._place}', args...)` instead.",
            FutureWarning,
            stacklevel=2,
        )
        super().__init__(
            self._place, init_scale, growth_factor, backoff_factor, growth_interval, enabled
        )


class CpuGradScaler(_OlderGradScaler):
    """`dptrain.cpu.amp.GradScaler`."""

    _place = "cpu"


class CudaGradScaler(_OlderGradScaler):
    """`dptrain.cuda.amp.GradScaler`."""

    _place = "cuda"
