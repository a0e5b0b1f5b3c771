"""`torch.backends`'s names: which backends there are, and their flags."""

from dptrain.backends import cuda, cudnn, mps

__all__ = ["cuda", "cudnn", "mps"]
