"""Adam and AdamW."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from dptrain.core.kernels import kernels_for
from dptrain.core.tensor import Tensor
from dptrain.optim.checks import check_betas, check_moments
from dptrain.optim.optimizer import Optimizer, number
from dptrain.optim.runs import STEP, Run

_STATE = (STEP, "exp_avg", "exp_avg_sq")


class Adam(Optimizer):
    """Adam, as PyTorch computes it.

    Source: Kingma & Ba, "Adam: a method for stochastic optimization", 2015; amsgrad: Reddi et al.,
    "On the convergence of Adam and beyond", 2018.

    Args:
        params: see `Optimizer`.
        lr: learning rate.
        betas: decay of the running means of the gradient and of its square.
        eps: added to the denominator.
        weight_decay: factor of the parameter that is added to the gradient (or, decoupled, that the
            parameter loses by itself).
        amsgrad: use the largest mean square so far.
        foreach: accepted for PyTorch's sake; there is one, fused implementation.
        maximize: climb instead of descend.
        capturable: whether a CUDA graph may record `step`; the parameters are on a GPU.
        differentiable: not supported.
        fused: accepted like `foreach`.
        decoupled_weight_decay: decay as in AdamW.

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
        amsgrad: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        decoupled_weight_decay: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
            "maximize": maximize,
            "foreach": foreach,
            "capturable": capturable,
            "differentiable": differentiable,
            "fused": fused,
            "decoupled_weight_decay": decoupled_weight_decay,
        }
        if not any(all(isinstance(b, kind) for b in betas) for kind in (float, Tensor)):
            check_betas(defaults)
            raise ValueError("betas must be either both floats or both Tensors")
        super().__init__(params, defaults)

    def _check_group(self, group: dict[str, Any]) -> None:
        check_betas(group)
        for label, value in (("lr", group["lr"]), ("betas[0]", group["betas"][0])):
            # PyTorch's many-at-once form takes numbers only; the restriction is kept with its name.
            if isinstance(value, Tensor) and group["foreach"] and not group.get("capturable"):
                raise ValueError(
                    f"{label} as a Tensor is not supported for capturable=False and foreach=True"
                )
        check_moments(group)

    def _state_names(self, group: dict[str, Any]) -> tuple[str, ...]:
        return (*_STATE, "max_exp_avg_sq") if group["amsgrad"] else _STATE

    def _update(self, run: Run) -> None:
        group, lr = run.group, number(run.group["lr"])
        beta1, beta2 = map(number, group["betas"])
        kernels_for(run.param).adam(
            run.param,
            run.grad,
            run.state["exp_avg"],
            run.state["exp_avg_sq"],
            run.state.get("max_exp_avg_sq"),
            lr,
            beta1,
            beta2,
            group["eps"],
            group["weight_decay"],
            lr / (1 - beta1**run.step),
            math.sqrt(1 - beta2**run.step),
            group["decoupled_weight_decay"],
            group["maximize"],
        )
        run.clear_gaps_without(group["eps"])


class AdamW(Adam):
    """Adam with decoupled weight decay: p = p * (1 - lr * weight_decay) before each update.

    Source: Loshchilov & Hutter, "Decoupled weight decay regularization", 2019.

    Args:
        params: see `Optimizer`.
        lr: learning rate.
        betas: decay of the running means of the gradient and of its square.
        eps: added to the denominator.
        weight_decay: what the parameter loses, times lr.
        amsgrad: use the largest mean square so far.
        maximize: climb instead of descend.
        foreach: accepted for PyTorch's sake; there is one, fused implementation.
        capturable: whether a CUDA graph may record `step`; the parameters are on a GPU.
        differentiable: not supported.
        fused: accepted like `foreach`.

    Raises:
        ValueError: an option that has no meaning or is not supported.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: Any = 1e-3,
        betas: tuple[Any, Any] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            foreach=foreach,
            maximize=maximize,
            capturable=capturable,
            differentiable=differentiable,
            fused=fused,
            decoupled_weight_decay=True,
        )

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:  # also when the state came from Adam
            group["decoupled_weight_decay"] = True
