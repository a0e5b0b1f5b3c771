"""PyTorch's `torch.optim`: optimizers over flat storage, and learning rate schedulers."""

from dptrain.optim import lr_scheduler, swa_utils
from dptrain.optim.adadelta import Adadelta
from dptrain.optim.adafactor import Adafactor
from dptrain.optim.adagrad import Adagrad
from dptrain.optim.adam import Adam, AdamW
from dptrain.optim.adamax import Adamax
from dptrain.optim.asgd import ASGD
from dptrain.optim.lbfgs import LBFGS
from dptrain.optim.muon import Muon
from dptrain.optim.nadam import NAdam
from dptrain.optim.optimizer import Optimizer
from dptrain.optim.radam import RAdam
from dptrain.optim.rmsprop import RMSprop
from dptrain.optim.rprop import Rprop
from dptrain.optim.sgd import SGD

__all__ = [
    "ASGD",
    "LBFGS",
    "SGD",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Muon",
    "NAdam",
    "Optimizer",
    "RAdam",
    "RMSprop",
    "Rprop",
    "lr_scheduler",
    "swa_utils",
]
