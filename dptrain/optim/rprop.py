"""Rprop."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from dptrain.core.kernels import optim_kernels_for
from dptrain.optim.checks import check_rate
from dptrain.optim.optimizer import Optimizer, number
from dptrain.optim.runs import STEP, Run

_SIZE = "step_size"


class Rprop(Optimizer):
    """Resilient backpropagation, as PyTorch computes it (for full batches).

    Source: Riedmiller & Braun, "A direct adaptive method for faster backpropagation learning", 1993.

    Args:
        params: see `Optimizer`.
        lr: step size of every element at the start.
        etas: factors of the step size where the sign of the gradient turns, and where it stays.
        step_sizes: the smallest and the largest step.
        capturable: whether a CUDA graph may record `step`; the parameters are on a GPU.
        foreach: accepted for PyTorch's sake; there is one, fused implementation.
        maximize: climb instead of descend.
        differentiable: not supported.

    Raises:
        ValueError: an option that has no meaning or is not supported.
    """

    _kernels_only = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: Any = 1e-2,
        etas: tuple[float, float] = (0.5, 1.2),
        step_sizes: tuple[float, float] = (1e-6, 50),
        *,
        capturable: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "etas": etas,
            "step_sizes": step_sizes,
            "foreach": foreach,
            "maximize": maximize,
            "differentiable": differentiable,
            "capturable": capturable,
        }
        super().__init__(params, defaults)

    def _check_group(self, group: dict[str, Any]) -> None:
        check_rate(group)
        smaller, larger = group["etas"]
        if not 0.0 < smaller < 1.0 < larger:
            raise ValueError(f"Invalid eta values: {smaller}, {larger}")

    def _state_names(self, group: dict[str, Any]) -> tuple[str, ...]:
        return (STEP, "prev", _SIZE)

    def _initial(self, name: str, group: dict[str, Any]) -> float:
        return number(group["lr"]) if name == _SIZE else 0.0

    def _update(self, run: Run) -> None:
        group = run.group
        optim_kernels_for(run.param).rprop(
            run.param,
            run.grad,
            run.state["prev"],
            run.state[_SIZE],
            *group["etas"],
            *group["step_sizes"],
            group["maximize"],
        )
