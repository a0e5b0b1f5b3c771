"""`torch.utils.checkpoint`'s names; they live in `dptrain.core.recompute`."""

from dptrain.core.recompute import (
    CheckpointError,
    checkpoint,
    checkpoint_sequential,
    noop_context_fn,
)

__all__ = ["CheckpointError", "checkpoint", "checkpoint_sequential", "noop_context_fn"]
