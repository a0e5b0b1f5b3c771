"""`torch.distributed.algorithms`' names; they live in `dptrain.parallel`."""

from dptrain.distributed.later import found_in

__getattr__ = found_in(
    __name__,
    {
        "Join": "dptrain.parallel.join",
        "JoinHook": "dptrain.parallel.join",
        "Joinable": "dptrain.parallel.join",
        "ddp_comm_hooks": f"{__name__}.ddp_comm_hooks",
        "join": f"{__name__}.join",
        "model_averaging": f"{__name__}.model_averaging",
    },
)
