"""`torch.distributed.optim`'s names; they live in `dptrain.parallel`."""

from dptrain.distributed.later import found_in

__getattr__ = found_in(
    __name__,
    {
        "PostLocalSGDOptimizer": "dptrain.parallel.local_sgd",
        "ZeroRedundancyOptimizer": "dptrain.parallel.zero",
    },
)
