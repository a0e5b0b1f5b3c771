"""Data parallelism over tensors and communicators: the one room that knows both."""

from dptrain.parallel.ddp import DistributedDataParallel
from dptrain.parallel.statistics import StepTimes

__all__ = ["DistributedDataParallel", "StepTimes"]
