"""The half-normal distribution."""

from __future__ import annotations

import math
from typing import Any

from dptrain.core.tensor import Tensor
from dptrain.distributions.half import Half
from dptrain.distributions.normal import Normal


class HalfNormal(Half):
    """Absolute values of normally distributed numbers of mean 0 and deviation `scale`."""

    def __init__(self, scale: Any, validate_args: bool | None = None) -> None:
        super().__init__(Normal(0, scale, validate_args=False), validate_args)

    @property
    def mean(self) -> Tensor:
        return self.scale * math.sqrt(2 / math.pi)

    @property
    def variance(self) -> Tensor:
        return self.scale.pow(2) * (1 - 2 / math.pi)
