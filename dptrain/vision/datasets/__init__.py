"""Datasets of images, under torchvision's names where torchvision has them."""

from dptrain.vision.datasets.cifar import CIFAR10, CIFAR100
from dptrain.vision.datasets.digits import Digits
from dptrain.vision.datasets.fakedata import FakeData
from dptrain.vision.datasets.folder import DatasetFolder, ImageFolder
from dptrain.vision.datasets.mnist import MNIST, FashionMNIST
from dptrain.vision.datasets.mnist_like import EMNIST, KMNIST
from dptrain.vision.datasets.stl10 import STL10
from dptrain.vision.datasets.svhn import SVHN
from dptrain.vision.datasets.vision_dataset import VisionDataset

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "EMNIST",
    "KMNIST",
    "MNIST",
    "STL10",
    "SVHN",
    "DatasetFolder",
    "Digits",
    "FakeData",
    "FashionMNIST",
    "ImageFolder",
    "VisionDataset",
]
