"""Datasets of images, under torchvision's names where torchvision has them."""

from dptrain.vision.datasets.digits import Digits
from dptrain.vision.datasets.mnist import MNIST, FashionMNIST

__all__ = ["MNIST", "Digits", "FashionMNIST"]
