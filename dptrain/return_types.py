"""`torch.return_types`'s names: the classes of results with named parts."""

from dptrain.core import ops as _ops  # defines them  # noqa: F401
from dptrain.core.named_results import RETURN_TYPES

globals().update(RETURN_TYPES)
__all__ = sorted(RETURN_TYPES)
