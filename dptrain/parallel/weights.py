"""By how many samples a rank's gradients weigh.

Owns: `SampleWeights`. Must not know: ranks, buckets.

With a loss that is a mean over its batch, the gradient of the whole global batch is
sum(count * gradient) / sum(count) over all backward passes of all ranks. Each gradient is multiplied
by the count of its pass as it arrives, before it is added to what is there, so that accumulation over
micro-batches of different sizes is right too; whoever averages divides once by the sum of the counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from dptrain.core import engine
from dptrain.core.tensor import Tensor


class OnceAveraged:
    """Refuses to add to gradients that were averaged already, where the sum would mean nothing.

    Args:
        mode: what makes it so, for the message.
    """

    def __init__(self, mode: str) -> None:
        self._mode = mode
        self._averaged: set[int] = set()

    def refuse(self, p: Tensor, name: str) -> None:
        """Refuse to add to the gradient of a parameter.

        Raises:
            RuntimeError: it holds an average.
        """
        if p._grad is None:
            self._averaged.discard(id(p))
        elif id(p) in self._averaged and np.any(p._grad._array):
            raise RuntimeError(
                f"{self._mode}: parameter {name!r} still holds the average of an earlier backward; call "
                "zero_grad() after each step"
            )

    def hook(self, p: Tensor, name: str) -> Callable[[Tensor], None]:
        """What looks at a parameter before a gradient is added to its own."""
        return lambda _: self.refuse(p, name)

    def done(self, params: Iterable[Tensor]) -> None:
        """The gradients of these parameters, and of no others, are averages."""
        self._averaged = {id(p) for p in params}


class SampleWeights:
    """Counts the samples of forward passes for the backward pass that follows."""

    def __init__(self) -> None:
        self.once = OnceAveraged("weighted=True")
        self._forwarded: float | None = None
        self._told: float | None = None
        self._count: float | None = None
        self._held = 0.0
        self._pass: object | None = None

    def add_forward(self, inputs: Iterable[Any]) -> None:
        """A forward pass over the batch whose size is the first dimension of the first tensor."""
        for value in inputs:
            if isinstance(value, Tensor) and value.ndim:
                self._forwarded = (self._forwarded or 0.0) + value.shape[0]
                return

    def tell(self, count: float) -> None:
        """The next backward pass weighs `count`, whatever the batch's size.

        Raises:
            ValueError: negative, infinite or not a number.
        """
        if not (0 <= count < float("inf")):
            raise ValueError(f"a sample count must be a finite number of 0 or more, got {count}")
        self._told = float(count)

    def hook(self, p: Tensor, name: str) -> Callable[[Tensor], Tensor]:
        """What multiplies the gradients of a parameter as they arrive."""

        def weigh(grad: Tensor) -> Tensor:
            self.once.refuse(p, name)
            count = self._of_pass()
            # The mean over an empty batch is not a number; it weighs nothing.
            return grad * count if count else grad.new_zeros(grad.shape)

        return weigh

    def _of_pass(self) -> float:
        current = engine.current_pass()
        if self._pass is not current or self._count is None:
            self._pass = current
            count = self._told if self._told is not None else self._forwarded
            if count is None:
                count = self._count  # a second backward through the same forward
            if count is None:
                raise RuntimeError(
                    "weighted=True: no argument of forward is a tensor with a first dimension; say how many samples "
                    "the next backward counts for with model.weigh(count)"
                )
            self._count, self._told, self._forwarded = count, None, None
            self._held += count
        return self._count

    def take(self) -> float:
        """The sum of the counts since the last call."""
        self._of_pass()
        held, self._held = self._held, 0.0
        return held

    def averaged(self, params: Iterable[Tensor]) -> None:
        """The gradients of these parameters have been divided."""
        self.once.done(params)
        self._pass = None
