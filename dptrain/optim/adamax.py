"""Adamax."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from dptrain.core.kernels import optim_kernels_for
from dptrain.optim.checks import check_moments
from dptrain.optim.optimizer import Optimizer, number
from dptrain.optim.runs import STEP, Run


class Adamax(Optimizer):
    """Adam with the infinity norm, as PyTorch computes it.

    Source: Kingma & Ba, "Adam: a method for stochastic optimization", 2015, section 7.1.

    Args:
        params: see `Optimizer`.
        lr: learning rate.
        betas: decay of the running mean of the gradient and of the norm.
        eps: added to the absolute gradient.
        weight_decay: factor of the parameter that is added to the gradient.
        foreach: accepted for PyTorch's sake; there is one, fused implementation.
        maximize: climb instead of descend.
        differentiable: not supported.
        capturable: whether a CUDA graph may record `step`; the parameters are on a GPU.

    Raises:
        ValueError: an option that has no meaning or is not supported.
    """

    _kernels_only = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: Any = 2e-3,
        betas: tuple[Any, Any] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        foreach: bool | None = None,
        *,
        maximize: bool = False,
        differentiable: bool = False,
        capturable: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": tuple(map(number, betas)),
            "eps": eps,
            "weight_decay": weight_decay,
            "foreach": foreach,
            "maximize": maximize,
            "differentiable": differentiable,
            "capturable": capturable,
        }
        super().__init__(params, defaults)

    def _check_group(self, group: dict[str, Any]) -> None:
        check_moments(group)

    def _state_names(self, group: dict[str, Any]) -> tuple[str, ...]:
        return (STEP, "exp_avg", "exp_inf")

    def _update(self, run: Run) -> None:
        group = run.group
        beta1, beta2 = group["betas"]
        optim_kernels_for(run.param).adamax(
            run.param,
            run.grad,
            run.state["exp_avg"],
            run.state["exp_inf"],
            number(group["lr"]) / (1 - beta1**run.step),
            beta1,
            beta2,
            group["eps"],
            group["weight_decay"],
            group["maximize"],
        )
        run.clear_gaps_without(group["eps"])
