"""The chi-squared distribution."""

from __future__ import annotations

from typing import Any, ClassVar

from dptrain.core.tensor import Tensor
from dptrain.distributions import constraints
from dptrain.distributions.gamma import Gamma


class Chi2(Gamma):
    """Sums of squares of `df` standard normal numbers."""

    arg_constraints: ClassVar[dict[str, Any]] = {"df": constraints.positive}

    def __init__(self, df: Any, validate_args: bool | None = None) -> None:
        super().__init__(0.5 * df, 0.5, validate_args=validate_args)

    @property
    def df(self) -> Tensor:
        """The degrees of freedom."""
        return self.concentration * 2
