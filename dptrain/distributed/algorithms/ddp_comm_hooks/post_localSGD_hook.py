"""Local SGD's hook; it lives in `dptrain.parallel`."""

from dptrain.distributed.later import found_in

_NAMES = ("PostLocalSGDState", "post_localSGD_hook")
__getattr__ = found_in(__name__, dict.fromkeys(_NAMES, "dptrain.parallel.local_sgd"))
