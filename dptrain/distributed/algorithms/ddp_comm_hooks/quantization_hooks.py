"""8-bit gradients; they live in `dptrain.parallel`."""

from dptrain.distributed.later import found_in

_NAMES = ("quantization_perchannel_hook", "quantization_pertensor_hook")
__getattr__ = found_in(__name__, dict.fromkeys(_NAMES, "dptrain.parallel.quantization_hooks"))
