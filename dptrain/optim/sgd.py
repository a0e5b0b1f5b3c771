"""Stochastic gradient descent."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from dptrain.core.kernels import kernels_for
from dptrain.optim.checks import check_not_negative, check_rate
from dptrain.optim.optimizer import Optimizer, number
from dptrain.optim.runs import Run

_BUFFER = "momentum_buffer"


class SGD(Optimizer):
    """Stochastic gradient descent, optionally with (Nesterov) momentum, as PyTorch computes it.

    buf = momentum * buf + (1 - dampening) * g (buf = g at first), p = p - lr * buf; with Nesterov
    p = p - lr * (g + momentum * buf). Source: Sutskever et al., "On the importance of
    initialization and momentum in deep learning", 2013, with PyTorch's placement of lr.

    Args:
        params: see `Optimizer`.
        lr: learning rate.
        momentum: factor of the old direction.
        dampening: what the new gradient loses in the direction.
        weight_decay: factor of the parameter that is added to the gradient.
        nesterov: look ahead along the momentum.
        maximize: climb instead of descend.
        foreach: accepted for PyTorch's sake; there is one, fused implementation.
        differentiable: not supported.
        fused: accepted like `foreach`.

    Raises:
        ValueError: an option that has no meaning or is not supported.
    """

    _kernels_only = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: Any = 1e-3,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float = 0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "maximize": maximize,
            "foreach": foreach,
            "differentiable": differentiable,
            "fused": fused,
        }
        super().__init__(params, defaults)

    def _check_group(self, group: dict[str, Any]) -> None:
        check_rate(group)
        check_not_negative(group, momentum="momentum", weight_decay="weight_decay")
        if group["nesterov"] and (group["momentum"] <= 0 or group["dampening"] != 0):
            raise ValueError("Nesterov momentum requires a momentum and zero dampening")

    def _state_names(self, group: dict[str, Any]) -> tuple[str, ...]:
        return (_BUFFER,) if group["momentum"] else ()

    def _update(self, run: Run) -> None:
        group = run.group
        kernels_for(run.param).sgd(
            run.param,
            run.grad,
            run.state.get(_BUFFER),
            number(group["lr"]),
            group["momentum"],
            group["dampening"],
            number(group["weight_decay"]),
            group["nesterov"],
            group["maximize"],
            run.first,
        )
