"""Functions that average parameters; they live in `dptrain.parallel`."""

from dptrain.distributed.later import found_in

_NAMES = ("average_parameters", "average_parameters_or_parameter_groups", "get_params_to_average")
__getattr__ = found_in(__name__, dict.fromkeys(_NAMES, "dptrain.parallel.local_sgd"))
