"""NAdam."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from dptrain.core.kernels import optim_kernels_for
from dptrain.optim.checks import check_moments, check_not_negative
from dptrain.optim.optimizer import Optimizer, number
from dptrain.optim.runs import STEP, Run

_PRODUCT = "mu_product"


class NAdam(Optimizer):
    """Adam with Nesterov momentum, as PyTorch computes it.

    Source: Dozat, "Incorporating Nesterov momentum into Adam", 2016.

    Args:
        params: see `Optimizer`.
        lr: learning rate.
        betas: decay of the running means of the gradient and of its square.
        eps: added to the denominator.
        weight_decay: factor of the parameter that is added to the gradient.
        momentum_decay: how fast the momentum grows to beta1.
        decoupled_weight_decay: take the decay from the parameter itself, as AdamW does.
        foreach: accepted for PyTorch's sake; there is one, fused implementation.
        maximize: climb instead of descend.
        capturable: whether a CUDA graph may record `step`; the parameters are on a GPU.
        differentiable: not supported.

    Raises:
        ValueError: an option that has no meaning or is not supported.
    """

    _scalar_names = frozenset([STEP, _PRODUCT])

    _kernels_only = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: Any = 2e-3,
        betas: tuple[Any, Any] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        momentum_decay: float = 4e-3,
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
            "momentum_decay": momentum_decay,
            "decoupled_weight_decay": decoupled_weight_decay,
            "maximize": maximize,
            "foreach": foreach,
            "capturable": capturable,
            "differentiable": differentiable,
        }
        super().__init__(params, defaults)

    def _check_group(self, group: dict[str, Any]) -> None:
        check_moments(group)
        check_not_negative(group, momentum_decay="momentum_decay")

    def _state_names(self, group: dict[str, Any]) -> tuple[str, ...]:
        return (STEP, _PRODUCT, "exp_avg", "exp_avg_sq")

    def _initial(self, name: str, group: dict[str, Any]) -> float:
        return 1.0 if name == _PRODUCT else 0.0

    def _update(self, run: Run) -> None:
        group, step = run.group, run.step
        lr, decay = number(group["lr"]), group["weight_decay"]
        decoupled = group["decoupled_weight_decay"]
        beta1, beta2 = group["betas"]
        mu = beta1 * (1.0 - 0.5 * 0.96 ** (step * group["momentum_decay"]))
        mu_next = beta1 * (1.0 - 0.5 * 0.96 ** ((step + 1) * group["momentum_decay"]))
        run.scalars[_PRODUCT] *= mu
        product = run.scalar(_PRODUCT)
        optim_kernels_for(run.param).nadam(
            run.param,
            run.grad,
            run.state["exp_avg"],
            run.state["exp_avg_sq"],
            beta1,
            beta2,
            group["eps"],
            0 if decoupled else decay,
            1 - lr * decay if decoupled else 1,
            lr * (1.0 - mu) / (1.0 - product),
            lr * mu_next / (1.0 - product * mu_next),
            1 - beta2**step,
            group["maximize"],
        )
        run.clear_gaps_without(group["eps"])
