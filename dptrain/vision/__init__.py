"""Vision: the names of `torchvision` that dptrain has."""

from dptrain.vision import datasets

__all__ = ["datasets"]
