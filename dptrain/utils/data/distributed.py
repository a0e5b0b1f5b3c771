"""`torch.utils.data.distributed`"s names; they live in `dptrain.data`."""

from dptrain.data import (
    DistributedSampler,
)

__all__ = ["DistributedSampler"]
