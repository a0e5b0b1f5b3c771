"""`torch.utils.tensorboard`'s names; they live in `dptrain.tensorboard`."""

from dptrain.tensorboard import FileWriter, SummaryWriter

__all__ = ["FileWriter", "SummaryWriter"]
