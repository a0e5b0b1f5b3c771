"""Adafactor.

The means of squares of a matrix are kept as one vector per side, so that the state has other shapes
than the parameters: it lies beside the flat storage, and the parameters are updated one by one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import ml_dtypes
import numpy as np

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
        entry = self.state[p]
        for name in names:
            held = entry.get(name)
            array = np.zeros(self._state_shape(name, p)) if held is None else values_of(held)
            if held is None or array.dtype != p._array.dtype:
                entry[name] = wrap(np.array(array, dtype=p._array.dtype))
        return [values_of(entry[name]) for name in names]

    def _update(self, run: Run) -> None:
        for p in run.params:
            if p._grad is not None and p._array.size:  # PyTorch divides by a size of 0
                grad = p._grad._array
                self._update_one(p, -grad if run.group["maximize"] else grad, run)

    def _update_one(self, p: Tensor, grad: np.ndarray, run: Run) -> None:
        group, x, kind = run.group, p._array, p._array.dtype.type
        lr, (eps1, eps2) = number(group["lr"]), group["eps"]
        if eps1 is None:
            eps1 = float(ml_dtypes.finfo(x.dtype).eps)
        fresh = kind(run.step ** group["beta2_decay"])
        size = max(eps2, _norm(x) / math.sqrt(x.size)) * min(lr, 1 / math.sqrt(run.step))
        if group["weight_decay"] != 0:
            x *= kind(1 - lr * group["weight_decay"])
        if grad.ndim > 1:
            rows, columns = self._means(p, "row_var", "col_var")
            squares = grad * grad
            rows += (squares.mean(axis=-1, keepdims=True) - rows) * fresh
            columns += (squares.mean(axis=-2, keepdims=True) - columns) * fresh
            estimate = rows * columns
            estimate /= np.maximum(rows.mean(axis=-2, keepdims=True), kind(eps1))
        else:
            (variance,) = self._means(p, "variance")
            variance += (grad * grad - variance) * fresh
            estimate = variance
        update = grad / np.sqrt(np.maximum(estimate, kind(eps1 * eps1)))
        x -= kind(size / max(1.0, _norm(update) / (math.sqrt(x.size) * group["d"]))) * update


def _norm(values: np.ndarray) -> float:
    wide = values.astype(np.float32) if values.dtype.itemsize == 2 else values
    return float(np.linalg.norm(wide.reshape(-1)))
