"""Muon.

The update is a whole matrix, orthogonalised by products of matrices, so that the parameters are
updated one by one; the momentum lies in the flat storage like other state.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import ml_dtypes
import numpy as np

from dptrain.core.arrays import as_array, namespace_of
from dptrain.core.kernels import optim_kernels_for
from dptrain.optim.checks import check_rate
from dptrain.optim.optimizer import Optimizer, number
from dptrain.optim.runs import Run

_BUFFER = "momentum_buffer"
_RATES = (None, "original", "match_rms_adamw")


class Muon(Optimizer):
    """Momentum, orthogonalised by Newton-Schulz iterations, as PyTorch computes it.

    For the two-dimensional parameters of hidden layers. The iterations run in bfloat16 precision, as
    PyTorch's do. Source: Jordan, "Muon: an optimizer for hidden layers in neural
    networks", 2024; rates: Liu et al., "Muon is scalable for LLM training", 2025.

    Args:
        params: see `Optimizer`; matrices.
        lr: learning rate.
        weight_decay: what the parameter loses, times lr.
        momentum: decay of the running mean of the gradient.
        nesterov: look ahead along the momentum.
        ns_coefficients: of the polynomial of an iteration.
        eps: smallest norm that the matrix is divided by.
        ns_steps: number of iterations.
        adjust_lr_fn: "original" (or None): lr * sqrt(max(1, rows / columns)); "match_rms_adamw":
            lr * 0.2 * sqrt(max(rows, columns)).

    Raises:
        ValueError: an option that has no meaning, or a parameter that is no matrix.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: Any = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_coefficients: tuple[float, float, float] = (3.4445, -4.7750, 2.0315),
        eps: float = 1e-7,
        ns_steps: int = 5,
        adjust_lr_fn: str | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "nesterov": nesterov,
            "ns_coefficients": ns_coefficients,
            "eps": eps,
            "ns_steps": ns_steps,
            "adjust_lr_fn": adjust_lr_fn,
        }
        super().__init__(params, defaults)

    def _check_group(self, group: dict[str, Any]) -> None:
        check_rate(group, "Learning rate should be >= 0 but is: {}")
        if not group["momentum"] >= 0.0:
            raise ValueError(f"momentum should be >= 0 but is: {group['momentum']}")
        if not group["weight_decay"] >= 0.0:
            raise ValueError(f"weight decay should be >= 0 but is: {group['weight_decay']}")
        if group["adjust_lr_fn"] not in _RATES:
            raise ValueError(
                f"Adjust learning rate function {group['adjust_lr_fn']} is not supported; "
                f"expected one of {_RATES}"
            )
        if len(group["ns_coefficients"]) != 3:
            raise ValueError(
                f"Coefficients must be a tuple of exactly 3 values, but got {group['ns_coefficients']}"
            )
        if not 0 <= group["ns_steps"] < 100:
            raise ValueError(
                "Number of steps must be less than 100 for computational efficiency, but got "
                f"ns_steps={group['ns_steps']}"
            )
        for p in group["params"]:
            if p.ndim != 2:
                raise ValueError(
                    f"Muon only supports 2D parameters whereas we found a parameter with size: {p.size()}"
                )

    def _state_names(self, group: dict[str, Any]) -> tuple[str, ...]:
        return (_BUFFER,)

    def _update(self, run: Run) -> None:
        group = run.group
        lr = group["lr"]  # a tensor counts in its own precision, as in PyTorch
        kernels = optim_kernels_for(run.param)
        directions = np.empty_like(run.param)
        kernels.muon_direction(
            run.grad, run.state[_BUFFER], directions, group["momentum"], group["nesterov"]
        )
        for p, part in run.each():
            rows, columns = p._array.shape
            x = run.param[part]
            direction = directions[part].reshape(rows, columns)
            step = _orthogonalised(
                direction, group["ns_coefficients"], group["ns_steps"], group["eps"]
            )
            kernels.scaled_step(
                x,
                namespace_of(x).ascontiguousarray(step, dtype=x.dtype).reshape(-1),
                number(1 - lr * group["weight_decay"]),
                number(lr * _ratio(group["adjust_lr_fn"], rows, columns)),
            )


def _ratio(rate: str | None, rows: int, columns: int) -> float:
    if rate == "match_rms_adamw":
        return 0.2 * math.sqrt(max(rows, columns))
    return math.sqrt(max(1, rows / columns)) if columns else 1.0


def _rounded(values: Any) -> np.ndarray:
    """Values rounded to what bfloat16 can hold, by way of float32 as sums of bfloat16 products are."""
    narrow = as_array(values).astype(np.float32).astype(ml_dtypes.bfloat16)
    return narrow.astype(np.float64)


def _orthogonalised(
    matrix: np.ndarray, coefficients: tuple[float, float, float], steps: int, eps: float
) -> np.ndarray:
    """About U V' of the matrix U S V': its singular values brought near 1.

    Every product is summed in float64 and rounded to bfloat16 once, its added term included: the bits do
    not depend on the order of a sum, and are those of a float32 sum but for ties that its error decides.
    """
    a, b, c = (float(np.float32(v)) for v in coefficients)
    tall = matrix.shape[0] > matrix.shape[1]
    x = _rounded(matrix.T if tall else matrix)
    x = _rounded(x / np.maximum(_rounded(np.linalg.norm(x)), _rounded(eps)[()]))
    for _ in range(steps):
        gram = _rounded(x @ x.T)
        x = _rounded(a * x + _rounded(b * gram + c * (gram @ gram)) @ x)
    return x.T if tall else x
