"""Initial values that several architectures share."""

from __future__ import annotations

from dptrain import nn
from dptrain.nn import init


def he_normal(model: nn.Module, linear_std: float | None = None) -> None:
    """Draw the values of a network of rectified convolutions anew.

    Convolutions get He's normal values (fan out) and a bias of 0, normalisations 1 and 0.

    Args:
        model: whose modules are visited in order.
        linear_std: linear layers get normal values of this deviation and a bias of 0; if None, they
            keep what they have.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, (nn.BatchNorm2d, nn.GroupNorm)):
            if module.weight is not None:
                init.ones_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Linear) and linear_std is not None:
            init.normal_(module.weight, 0, linear_std)
            if module.bias is not None:
                init.zeros_(module.bias)
