"""`torch.distributed.optim`'s name; it lives in `dptrain.parallel`."""

from dptrain.distributed.later import found_in

__getattr__ = found_in(__name__, {"ZeroRedundancyOptimizer": "dptrain.parallel.zero"})
