"""Random choices of the transforms, from the generator that `dptrain.manual_seed` seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence

from dptrain.core.random import default_generator


def chance(p: float) -> bool:
    """True with probability `p`."""
    return bool(default_generator().stream().random() < p)


def uniform(low: float, high: float) -> float:
    """A number from [low, high)."""
    return float(default_generator().stream().uniform(low, high))


def log_uniform(low: float, high: float) -> float:
    """A number from [low, high) whose logarithm is uniform."""
    return math.exp(uniform(math.log(low), math.log(high)))


def integer(low: int, high: int) -> int:
    """A whole number from low..high, both included."""
    return int(default_generator().stream().integers(low, high, endpoint=True))


def permutation(n: int) -> list[int]:
    """The numbers 0..n-1 in some order."""
    return [int(i) for i in default_generator().stream().permutation(n)]


def position(weights: Sequence[float]) -> int:
    """A position, with probabilities in proportion to `weights`."""
    total = float(sum(weights))
    return int(default_generator().stream().choice(len(weights), p=[w / total for w in weights]))
