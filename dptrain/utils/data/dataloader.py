"""`torch.utils.data.dataloader`"s names; they live in `dptrain.data`."""

from dptrain.data import (
    DataLoader,
    default_collate,
    default_convert,
    get_worker_info,
)

__all__ = ["DataLoader", "default_collate", "default_convert", "get_worker_info"]
