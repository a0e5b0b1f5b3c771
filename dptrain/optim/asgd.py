"""ASGD."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from dptrain.core.kernels import optim_kernels_for
from dptrain.optim.checks import check_not_negative, check_rate
from dptrain.optim.optimizer import Optimizer, number
from dptrain.optim.runs import STEP, Run

_RATE, _WEIGHT = "eta", "mu"


class ASGD(Optimizer):
    """Averaged stochastic gradient descent, as PyTorch computes it.

    Source: Polyak & Juditsky, "Acceleration of stochastic approximation by averaging", 1992.

    Args:
        params: see `Optimizer`.
        lr: learning rate.
        lambd: decay of the parameter, times the rate.
        alpha: power by which the rate falls.
        t0: update at which averaging starts.
        weight_decay: factor of the parameter that is added to the gradient.
        foreach: accepted for PyTorch's sake; there is one, fused implementation.
        maximize: climb instead of descend.
        differentiable: not supported.
        capturable: whether a CUDA graph may record `step`; the parameters are on a GPU.

    Raises:
        ValueError: an option that has no meaning or is not supported.
    """

    _scalar_names = frozenset([STEP, _RATE, _WEIGHT])

    _kernels_only = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: Any = 1e-2,
        lambd: float = 1e-4,
        alpha: float = 0.75,
        t0: float = 1e6,
        weight_decay: float = 0,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        capturable: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "lambd": lambd,
            "alpha": alpha,
            "t0": t0,
            "weight_decay": weight_decay,
            "foreach": foreach,
            "maximize": maximize,
            "differentiable": differentiable,
            "capturable": capturable,
        }
        super().__init__(params, defaults)

    def _check_group(self, group: dict[str, Any]) -> None:
        check_rate(group)
        check_not_negative(group, weight_decay="weight_decay")

    def _state_names(self, group: dict[str, Any]) -> tuple[str, ...]:
        return (STEP, _RATE, _WEIGHT, "ax")

    def _initial(self, name: str, group: dict[str, Any]) -> float:
        return {_RATE: number(group["lr"]), _WEIGHT: 1.0}.get(name, 0.0)

    def _update(self, run: Run) -> None:
        group, eta = run.group, run.scalar(_RATE)
        lr, lambd = number(group["lr"]), group["lambd"]
        optim_kernels_for(run.param).asgd(
            run.param,
            run.grad,
            run.state["ax"],
            eta,
            1 - lambd * eta,
            run.scalar(_WEIGHT),
            group["weight_decay"],
            group["maximize"],
        )
        run.scalars[_RATE][...] = lr / (1 + lambd * lr * run.step) ** group["alpha"]
        run.scalars[_WEIGHT][...] = 1 / max(1, run.step - group["t0"])
