"""The default hooks; they live in `dptrain.parallel`."""

from dptrain.distributed.later import found_in

_NAMES = (
    "allreduce_hook",
    "bf16_compress_hook",
    "bf16_compress_wrapper",
    "fp16_compress_hook",
    "fp16_compress_wrapper",
    "noop_hook",
)
__getattr__ = found_in(__name__, dict.fromkeys(_NAMES, "dptrain.parallel.comm_hooks"))
