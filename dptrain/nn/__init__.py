"""PyTorch's `torch.nn`: modules, layers, losses, initial values, gradient clipping."""

from typing import Any

from dptrain.nn import functional, init, parallel, utils
from dptrain.nn.activation import LogSoftmax, ReLU, Sigmoid, Softmax, Tanh
from dptrain.nn.container import ModuleList, Sequential
from dptrain.nn.conv import Conv2d
from dptrain.nn.dropout import Dropout
from dptrain.nn.flatten import Flatten
from dptrain.nn.linear import Identity, Linear
from dptrain.nn.loss import CrossEntropyLoss, MSELoss, NLLLoss
from dptrain.nn.module import Module
from dptrain.nn.parameter import Parameter
from dptrain.nn.pooling import AvgPool2d, MaxPool2d

__all__ = [
    "AvgPool2d",
    "Conv2d",
    "CrossEntropyLoss",
    "Dropout",
    "Flatten",
    "Identity",
    "Linear",
    "LogSoftmax",
    "MSELoss",
    "MaxPool2d",
    "Module",
    "ModuleList",
    "NLLLoss",
    "Parameter",
    "ReLU",
    "Sequential",
    "Sigmoid",
    "Softmax",
    "Tanh",
    "functional",
    "init",
    "parallel",
    "utils",
]


def __getattr__(name: str) -> Any:
    if name == "DataParallel":
        return parallel.DataParallel
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
