"""Averagers of parameters; they live in `dptrain.parallel`."""

from dptrain.distributed.later import found_in

_NAMES = ("ModelAverager", "PeriodicModelAverager")
__getattr__ = found_in(__name__, dict.fromkeys(_NAMES, "dptrain.parallel.local_sgd"))
