"""PowerSGD; it lives in `dptrain.parallel`."""

from dptrain.distributed.later import found_in

__getattr__ = found_in(
    __name__,
    dict.fromkeys(
        ("PowerSGDState", "batched_powerSGD_hook", "powerSGD_hook"), "dptrain.parallel.power_sgd"
    ),
)
