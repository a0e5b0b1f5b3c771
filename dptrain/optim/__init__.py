"""PyTorch's `torch.optim`: optimizers over flat storage, and learning rate schedulers."""

from dptrain.optim import lr_scheduler
from dptrain.optim.adam import Adam, AdamW
from dptrain.optim.optimizer import Optimizer
from dptrain.optim.sgd import SGD

__all__ = ["SGD", "Adam", "AdamW", "Optimizer", "lr_scheduler"]
