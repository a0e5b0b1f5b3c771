"""The types of operations with several results: PyTorch's `torch.return_types`."""

from dptrain.core import ops as _ops  # fills RESULTS  # noqa: F401
from dptrain.core.results import RESULTS

globals().update(RESULTS)

__all__ = list(RESULTS)
