"""`torch.distributed.algorithms.ddp_comm_hooks`' places; the hooks live in `dptrain.parallel`."""

from dptrain.distributed.later import found_in

_MODULES = (
    "debugging_hooks",
    "default_hooks",
    "post_localSGD_hook",
    "powerSGD_hook",
    "quantization_hooks",
)
_TYPES = ("DDPCommHookType", "register_ddp_comm_hook")
__getattr__ = found_in(
    __name__,
    {name: f"{__name__}.{name}" for name in _MODULES}
    | dict.fromkeys(_TYPES, "dptrain.parallel.hook_types"),
)
