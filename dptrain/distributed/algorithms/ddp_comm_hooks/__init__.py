"""`torch.distributed.algorithms.ddp_comm_hooks`' places; the hooks live in `dptrain.parallel`."""

from dptrain.distributed.later import found_in

__getattr__ = found_in(
    __name__, {name: f"{__name__}.{name}" for name in ("default_hooks", "powerSGD_hook")}
)
