"""`torch.amp.autocast_mode`'s names."""

from dptrain.core.autocast import autocast, is_autocast_available
from dptrain.core.autocast_function import custom_bwd, custom_fwd

__all__ = ["autocast", "custom_bwd", "custom_fwd", "is_autocast_available"]
