"""Data parallelism over tensors and communicators: the one room that knows both."""

from dptrain.parallel.data_parallel import DataParallel, data_parallel
from dptrain.parallel.ddp import DistributedDataParallel
from dptrain.parallel.primitives import parallel_apply, replicate
from dptrain.parallel.scatter_gather import gather, scatter
from dptrain.parallel.statistics import StepTimes
from dptrain.parallel.sync_batchnorm import SyncBatchNorm
from dptrain.parallel.zero import ZeroRedundancyOptimizer

__all__ = [
    "DataParallel",
    "DistributedDataParallel",
    "StepTimes",
    "SyncBatchNorm",
    "ZeroRedundancyOptimizer",
    "data_parallel",
    "gather",
    "parallel_apply",
    "replicate",
    "scatter",
]
