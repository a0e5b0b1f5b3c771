"""The half-Cauchy distribution."""

from __future__ import annotations

import math
from typing import Any

from dptrain.core.tensor import Tensor
from dptrain.distributions.cauchy import Cauchy
from dptrain.distributions.half import Half


class HalfCauchy(Half):
    """Absolute values of Cauchy-distributed numbers of median 0 and width `scale`."""

    def __init__(self, scale: Any, validate_args: bool | None = None) -> None:
        super().__init__(Cauchy(0, scale, validate_args=False), validate_args)

    @property
    def mean(self) -> Tensor:
        return self.scale.new_full(self._extended_shape(), math.inf)

    @property
    def variance(self) -> Tensor:
        return self.base_dist.variance
