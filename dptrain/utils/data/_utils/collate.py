"""`torch.utils.data._utils.collate`'s names; they live in `dptrain.data`."""

from dptrain.data.collate import (
    collate,
    default_collate,
    default_collate_fn_map,
    default_convert,
)

__all__ = ["collate", "default_collate", "default_collate_fn_map", "default_convert"]
