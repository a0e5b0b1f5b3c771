"""`torch.distributed.algorithms.model_averaging`'s places; what is in them lives in `dptrain.parallel`."""

from dptrain.distributed.later import found_in

_MODULES = ("averagers", "hierarchical_model_averager", "utils")
__getattr__ = found_in(__name__, {name: f"{__name__}.{name}" for name in _MODULES})
