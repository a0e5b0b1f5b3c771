"""RAdam."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from dptrain.core.kernels import optim_kernels_for
from dptrain.optim.checks import check_moments
from dptrain.optim.optimizer import Optimizer, number
from dptrain.optim.runs import STEP, Run


class RAdam(Optimizer):
    """Adam with rectified variance, as PyTorch computes it.

    Source: Liu et al., "On the variance of the adaptive learning rate and beyond", 2020.

    Args:
        params: see `Optimizer`.
        lr: learning rate.
        betas: decay of the running means of the gradient and of its square.
        eps: added to the denominator.
        weight_decay: factor of the parameter that is added to the gradient.
        decoupled_weight_decay: take the decay from the parameter itself, as AdamW does.
        foreach: accepted for PyTorch's sake; there is one, fused implementation.
        maximize: climb instead of descend.
        capturable: whether a CUDA graph may record `step`; the parameters are on a GPU.
        differentiable: not supported.

    Raises:
        ValueError: an option that has no meaning or is not supported.
    """

    _kernels_only = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: Any = 1e-3,
        betas: tuple[Any, Any] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        decoupled_weight_decay: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": tuple(map(number, betas)),
            "eps": eps,
            "weight_decay": weight_decay,
            "maximize": maximize,
            "foreach": foreach,
            "capturable": capturable,
            "decoupled_weight_decay": decoupled_weight_decay,
            "differentiable": differentiable,
        }
        super().__init__(params, defaults)

    def _check_group(self, group: dict[str, Any]) -> None:
        check_moments(group)

    def _state_names(self, group: dict[str, Any]) -> tuple[str, ...]:
        return (STEP, "exp_avg", "exp_avg_sq")

    def _update(self, run: Run) -> None:
        group, step = run.group, run.step
        lr, decay = number(group["lr"]), group["weight_decay"]
        decoupled = group["decoupled_weight_decay"]
        beta1, beta2 = group["betas"]
        step_size, correction = lr / (1 - beta1**step), 1 - beta2**step
        longest = 2 / (1 - beta2) - 1
        length = longest - 2 * step * beta2**step / correction
        if length > 5:  # enough squares seen for their mean to say something
            ratio = (length - 4) * (length - 2) * longest
            ratio /= (longest - 4) * (longest - 2) * length
            step_size *= (correction * ratio) ** 0.5
        optim_kernels_for(run.param).radam(
            run.param,
            run.grad,
            run.state["exp_avg"],
            run.state["exp_avg_sq"],
            beta1,
            beta2,
            group["eps"],
            0 if decoupled else decay,
            1 - lr * decay if decoupled else 1,
            step_size,
            length > 5,
            group["maximize"],
        )
        run.clear_gaps_without(group["eps"])
