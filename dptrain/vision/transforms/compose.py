"""Transforms made of transforms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from dptrain import nn
from dptrain.vision.transforms import draws


def _listing(name: str, transforms: Sequence[Any], *first: str) -> str:
    return "\n".join([f"{name}(", *(f"    {line}" for line in (*first, *transforms)), ")"])


class Compose:
    """Several transforms one after the other.

    Args:
        transforms: callables.
    """

    def __init__(self, transforms: Sequence[Callable[[Any], Any]]) -> None:
        self.transforms = transforms

    def __call__(self, img: Any) -> Any:
        """The image after all of them."""
        for transform in self.transforms:
            img = transform(img)
        return img

    def __repr__(self) -> str:
        return _listing(type(self).__name__, self.transforms)


class Lambda:
    """A function of the user's as a transform.

    Args:
        lambd: the function.

    Raises:
        TypeError: it cannot be called.
    """

    def __init__(self, lambd: Callable[[Any], Any]) -> None:
        if not callable(lambd):
            raise TypeError(f"Argument lambd should be callable, got {type(lambd).__name__!r}")
        self.lambd = lambd

    def __call__(self, img: Any) -> Any:
        """What the function makes of the image."""
        return self.lambd(img)

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class RandomApply(nn.Module):
    """All of some transforms, or none.

    Args:
        transforms: callables.
        p: probability of all.
    """

    def __init__(self, transforms: Sequence[Callable[[Any], Any]], p: float = 0.5) -> None:
        super().__init__()
        self.transforms = transforms
        self.p = p

    def forward(self, img: Any) -> Any:
        """The image after all of them, or the image."""
        if not draws.chance(self.p):
            return img
        for transform in self.transforms:
            img = transform(img)
        return img

    def __repr__(self) -> str:
        return _listing(type(self).__name__, self.transforms, f"p={self.p}")


class _RandomTransforms:
    """Base of the transforms that draw from a list.

    Raises:
        TypeError: it is no sequence.
    """

    def __init__(self, transforms: Sequence[Callable[[Any], Any]]) -> None:
        if not isinstance(transforms, Sequence):
            raise TypeError("Argument transforms should be a sequence")
        self.transforms = transforms

    def __repr__(self) -> str:
        return _listing(type(self).__name__, self.transforms)


class RandomOrder(_RandomTransforms):
    """Several transforms in an order that is drawn anew each time.

    Args:
        transforms: callables.
    """

    def __call__(self, img: Any) -> Any:
        """The image after all of them."""
        for position in draws.permutation(len(self.transforms)):
            img = self.transforms[position](img)
        return img


class RandomChoice(_RandomTransforms):
    """One of several transforms, drawn anew each time.

    Args:
        transforms: callables.
        p: weights of the draw; equal if None.

    Raises:
        TypeError: weights that are no sequence.
    """

    def __init__(
        self, transforms: Sequence[Callable[[Any], Any]], p: Sequence[float] | None = None
    ) -> None:
        super().__init__(transforms)
        if p is not None and not isinstance(p, Sequence):
            raise TypeError("Argument p should be a sequence")
        self.p = p

    def __call__(self, *args: Any) -> Any:
        """The image after the one that was drawn."""
        chosen = draws.position(self.p or [1.0] * len(self.transforms))
        return self.transforms[chosen](*args)

    def __repr__(self) -> str:
        return f"{super().__repr__()}(p={self.p})"
