"""`torch.distributed.algorithms.join`'s names; they live in `dptrain.parallel`."""

from dptrain.distributed.later import found_in

__getattr__ = found_in(
    __name__, dict.fromkeys(("Join", "JoinHook", "Joinable"), "dptrain.parallel.join")
)
