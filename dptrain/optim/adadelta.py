"""Adadelta."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from dptrain.core.kernels import optim_kernels_for
from dptrain.optim.checks import check_not_negative, check_rate
from dptrain.optim.optimizer import Optimizer, number
from dptrain.optim.runs import STEP, Run


class Adadelta(Optimizer):
    """Adadelta, as PyTorch computes it.

    Source: Zeiler, "ADADELTA: an adaptive learning rate method", 2012.

    Args:
        params: see `Optimizer`.
        lr: factor of the update.
        rho: decay of the running means of squares.
        eps: added under the roots.
        weight_decay: factor of the parameter that is added to the gradient.
        foreach: accepted for PyTorch's sake; there is one, fused implementation.
        capturable: whether a CUDA graph may record `step`; the parameters are on a GPU.
        maximize: climb instead of descend.
        differentiable: not supported.

    Raises:
        ValueError: an option that has no meaning or is not supported.
    """

    _kernels_only = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: Any = 1.0,
        rho: float = 0.9,
        eps: float = 1e-6,
        weight_decay: float = 0,
        foreach: bool | None = None,
        *,
        capturable: bool = False,
        maximize: bool = False,
        differentiable: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "rho": rho,
            "eps": eps,
            "weight_decay": weight_decay,
            "maximize": maximize,
            "capturable": capturable,
            "foreach": foreach,
            "differentiable": differentiable,
        }
        super().__init__(params, defaults)

    def _check_group(self, group: dict[str, Any]) -> None:
        check_rate(group)
        if not 0.0 <= group["rho"] <= 1.0:
            raise ValueError(f"Invalid rho value: {group['rho']}")
        check_not_negative(group, eps="epsilon", weight_decay="weight_decay")

    def _state_names(self, group: dict[str, Any]) -> tuple[str, ...]:
        return (STEP, "square_avg", "acc_delta")

    def _update(self, run: Run) -> None:
        group = run.group
        optim_kernels_for(run.param).adadelta(
            run.param,
            run.grad,
            run.state["square_avg"],
            run.state["acc_delta"],
            number(group["lr"]),
            group["rho"],
            group["eps"],
            group["weight_decay"],
            group["maximize"],
        )
        run.clear_gaps_without(group["eps"])
