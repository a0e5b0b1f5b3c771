"""RMSprop."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from dptrain.core.kernels import optim_kernels_for
from dptrain.optim.checks import check_not_negative, check_rate
from dptrain.optim.optimizer import Optimizer, number
from dptrain.optim.runs import STEP, Run

_BUFFER = "momentum_buffer"


class RMSprop(Optimizer):
    """RMSprop, as PyTorch computes it.

    Source: Tieleman & Hinton, "Neural networks for machine learning", lecture 6e, 2012; centered: Graves,
    "Generating sequences with recurrent neural networks", 2013.

    Args:
        params: see `Optimizer`.
        lr: learning rate.
        alpha: decay of the running mean of squares.
        eps: added to the denominator.
        weight_decay: factor of the parameter that is added to the gradient.
        momentum: factor of the old direction.
        centered: divide by the root of the variance rather than of the mean square.
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
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0,
        momentum: float = 0,
        centered: bool = False,
        capturable: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "alpha": alpha,
            "eps": eps,
            "centered": centered,
            "weight_decay": weight_decay,
            "capturable": capturable,
            "foreach": foreach,
            "maximize": maximize,
            "differentiable": differentiable,
        }
        super().__init__(params, defaults)

    def _check_group(self, group: dict[str, Any]) -> None:
        check_rate(group)
        check_not_negative(
            group, eps="epsilon", momentum="momentum", weight_decay="weight_decay", alpha="alpha"
        )

    def _state_names(self, group: dict[str, Any]) -> tuple[str, ...]:
        momentum = (_BUFFER,) if group["momentum"] > 0 else ()
        return (STEP, "square_avg", *momentum, *(("grad_avg",) if group["centered"] else ()))

    def _update(self, run: Run) -> None:
        group = run.group
        optim_kernels_for(run.param).rmsprop(
            run.param,
            run.grad,
            run.state["square_avg"],
            run.state.get(_BUFFER),
            run.state.get("grad_avg"),
            number(group["lr"]),
            group["alpha"],
            group["eps"],
            group["weight_decay"],
            group["momentum"],
            group["maximize"],
        )
        run.clear_gaps_without(group["eps"])
