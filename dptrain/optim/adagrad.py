"""Adagrad."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from dptrain.core.creation import full_like, tensor
from dptrain.core.dtypes import float32
from dptrain.core.kernels import optim_kernels_for
from dptrain.optim.checks import check_not_negative, check_rate
from dptrain.optim.optimizer import Optimizer, number
from dptrain.optim.runs import STEP, Run


class Adagrad(Optimizer):
    """Adagrad, as PyTorch computes it.

    Source: Duchi et al., "Adaptive subgradient methods for online learning and stochastic optimization",
    2011.

    Args:
        params: see `Optimizer`.
        lr: learning rate.
        lr_decay: the rate is divided by 1 + lr_decay * (updates so far).
        weight_decay: factor of the parameter that is added to the gradient.
        initial_accumulator_value: what the sums of squares start from.
        eps: added to the denominator.
        foreach: accepted for PyTorch's sake; there is one, fused implementation.
        maximize: climb instead of descend.
        differentiable: not supported.
        fused: accepted like `foreach`.

    Raises:
        ValueError: an option that has no meaning or is not supported.
    """

    _kernels_only = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: Any = 1e-2,
        lr_decay: float = 0,
        weight_decay: float = 0,
        initial_accumulator_value: float = 0,
        eps: float = 1e-10,
        foreach: bool | None = None,
        *,
        maximize: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "lr_decay": lr_decay,
            "eps": eps,
            "weight_decay": weight_decay,
            "initial_accumulator_value": initial_accumulator_value,
            "foreach": foreach,
            "maximize": maximize,
            "differentiable": differentiable,
            "fused": fused,
        }
        super().__init__(params, defaults)
        for group in self.param_groups:  # the state is there from the start, as in PyTorch
            for p in group["params"]:
                self.state[p] = {
                    STEP: tensor(0.0, dtype=float32),
                    "sum": full_like(p.detach(), initial_accumulator_value),
                }

    def _check_group(self, group: dict[str, Any]) -> None:
        check_rate(group)
        check_not_negative(
            group,
            lr_decay="lr_decay",
            weight_decay="weight_decay",
            initial_accumulator_value="initial_accumulator_value",
            eps="epsilon",
        )

    def _state_names(self, group: dict[str, Any]) -> tuple[str, ...]:
        return (STEP, "sum")

    def _initial(self, name: str, group: dict[str, Any]) -> float:
        return self.defaults["initial_accumulator_value"] if name == "sum" else 0.0

    def _update(self, run: Run) -> None:
        group = run.group
        optim_kernels_for(run.param).adagrad(
            run.param,
            run.grad,
            run.state["sum"],
            number(group["lr"]) / (1 + (run.step - 1) * group["lr_decay"]),
            group["eps"],
            group["weight_decay"],
            group["maximize"],
        )
        run.clear_gaps_without(group["eps"])
