"""The averager with levels; it lives in `dptrain.parallel`."""

from dptrain.distributed.later import found_in

__getattr__ = found_in(__name__, {"HierarchicalModelAverager": "dptrain.parallel.local_sgd"})
