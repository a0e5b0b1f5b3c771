"""Checks of hyper-parameters that several optimizers have, with PyTorch's words.

Every check raises ValueError; NaN passes none of them.
"""

from __future__ import annotations

from typing import Any

from dptrain.core.tensor import Tensor
from dptrain.optim.optimizer import number


def check_rate(group: dict[str, Any], message: str = "Invalid learning rate: {}") -> None:
    """The learning rate: a number, or a tensor of one, and not negative."""
    lr = group["lr"]
    if isinstance(lr, Tensor) and lr.numel() != 1:
        raise ValueError(f"Tensor lr must be 1-element, but it has shape {list(lr.shape)}")
    if not number(lr) >= 0.0:
        raise ValueError(message.format(lr))


def check_not_negative(group: dict[str, Any], **labels: str) -> None:
    """Options that are not negative: option = what the message calls it."""
    for name, label in labels.items():
        if not number(group[name]) >= 0.0:
            raise ValueError(f"Invalid {label} value: {group[name]}")


def check_betas(group: dict[str, Any]) -> None:
    """Two decay factors in [0, 1); fewer are an IndexError, as in PyTorch."""
    betas = group["betas"]
    if isinstance(betas, (tuple, list)) and len(betas) != 2:
        kind = IndexError if len(betas) < 2 else ValueError
        raise kind(f"Invalid betas: expected two numbers, got {betas}")
    for i, beta in enumerate(group["betas"]):
        if not 0.0 <= number(beta) < 1.0:
            raise ValueError(f"Invalid beta parameter at index {i}: {beta}")


def check_moments(group: dict[str, Any]) -> None:
    """What the optimizers share that keep running means of the gradient and of its square."""
    check_rate(group)
    check_not_negative(group, eps="epsilon")
    check_betas(group)
    check_not_negative(group, weight_decay="weight_decay")
