"""`torch.distributed.distributed_c10d`'s place for the names of `dptrain.distributed`."""

from dptrain.distributed import *  # noqa: F403
from dptrain.distributed.groups import world as _get_default_group

__all__ = ["_get_default_group"]
