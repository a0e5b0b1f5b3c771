"""Adafactor.

The means of squares of a matrix are kept as one vector per side, so that the state has other shapes
than the parameters: it lies beside the flat storage, and the parameters are updated one by one, each
by one kernel that works on them in place.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import ml_dtypes
import numpy as np

from dptrain.core.arrays import namespace_of
from dptrain.core.kernels import optim_kernels_for
from dptrain.core.tensor import Tensor, wrap
from dptrain.optim.checks import check_rate
from dptrain.optim.optimizer import Optimizer, number
from dptrain.optim.runs import STEP, Run, values_of


class Adafactor(Optimizer):
    """Adafactor, as PyTorch computes it.

    Source: Shazeer & Stern, "Adafactor: adaptive learning rates with sublinear memory cost", 2018.

    Args:
        params: see `Optimizer`.
        lr: largest relative step.
        beta2_decay: power of the step number by which new squares count.
        eps: smallest root mean square of the gradient (None: the precision of its type), and of the
            parameter where the step is relative to it.
        d: the update is scaled down where its root mean square is larger.
        weight_decay: what the parameter loses, times lr.
        foreach: accepted for PyTorch's sake; there is one implementation.
        maximize: climb instead of descend.

    Raises:
        ValueError: an option that has no meaning.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: Any = 1e-2,
        beta2_decay: float = -0.8,
        eps: tuple[float | None, float] = (None, 1e-3),
        d: float = 1.0,
        weight_decay: float = 0.0,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "beta2_decay": beta2_decay,
            "eps": eps,
            "d": d,
            "weight_decay": weight_decay,
            "foreach": foreach,
            "maximize": maximize,
        }
        super().__init__(params, defaults)

    def _check_group(self, group: dict[str, Any]) -> None:
        check_rate(group, "Learning rate should be >= 0 but is: {}")
        eps1, eps2 = group["eps"]
        for label, value in (("epsilon1", eps1), ("epsilon2", eps2)):
            if value is not None and not value >= 0.0:
                raise ValueError(f"{label} should be >= 0 but is: {value}")
        if not group["beta2_decay"] <= 0.0:
            raise ValueError(f"beta2_decay should be <= 0 but is: {group['beta2_decay']}")
        if not group["d"] >= 1.0:
            raise ValueError(f"Clipping threshold d should be >= 1 but is: {group['d']}")
        if not group["weight_decay"] >= 0.0:
            raise ValueError(f"weight_decay should be >= 0 but is: {group['weight_decay']}")

    def _state_names(self, group: dict[str, Any]) -> tuple[str, ...]:
        return (STEP,)

    def _state_shape(self, name: str, p: Tensor) -> tuple[int, ...]:
        shape = p._array.shape
        if name == "row_var":
            return (*shape[:-1], 1)
        return (*shape[:-2], 1, shape[-1]) if name == "col_var" else shape

    def _means(self, p: Tensor, *names: str) -> list[np.ndarray]:
        """Running means of squares of that name, of the type of the parameter."""
        entry, xp = self.state[p], namespace_of(p._array)
        for name in names:
            held = entry.get(name)
            array = xp.zeros(self._state_shape(name, p)) if held is None else values_of(held)
            if array.dtype != p._array.dtype or not array.flags.c_contiguous:
                array = array.astype(p._array.dtype, order="C")
                held = None
            if held is None:
                entry[name] = wrap(array)
        return [values_of(entry[name]) for name in names]

    def _update(self, run: Run) -> None:
        group, lr = run.group, number(run.group["lr"])
        eps1, eps2 = group["eps"]
        if eps1 is None:
            eps1 = float(ml_dtypes.finfo(run.param.dtype).eps)
        options = (
            min(lr, 1 / math.sqrt(run.step)),
            1 - lr * group["weight_decay"],
            run.step ** group["beta2_decay"],
            eps1,
            eps2,
            group["d"],
            group["maximize"],
        )
        kernels = optim_kernels_for(run.param)
        for p, part in run.each():
            if p._grad is None or not p._array.size:  # PyTorch divides by a size of 0
                continue
            arrays = [a[part].reshape(p._array.shape) for a in (run.param, run.grad)]
            if p.ndim > 1:
                means = self._means(p, "row_var", "col_var")
                flat = [a.reshape(-1, *a.shape[-2:]) for a in (*arrays, *means)]
                kernels.adafactor_matrix(*flat, *options)
            else:
                flat = [a.reshape(-1) for a in (*arrays, *self._means(p, "variance"))]
                kernels.adafactor_vector(*flat, *options)
