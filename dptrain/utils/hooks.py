"""`torch.utils.hooks`' public name."""

from dptrain.core.hooks import RemovableHandle

__all__ = ["RemovableHandle"]
