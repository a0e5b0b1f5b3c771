"""Batch normalisation without running statistics, as transforms of functions need it."""

from __future__ import annotations

from dptrain.nn.batchnorm import _BatchNorm
from dptrain.nn.module import Module


def replace_all_batch_norm_modules_(root: Module) -> Module:
    """Let every batch normalisation in a module use the statistics of its batch only; in place.

    A running statistic is a side effect, which a function that is to be transformed must not have.
    """
    for module in root.modules():
        if isinstance(module, _BatchNorm):
            module.running_mean = None
            module.running_var = None
            module.num_batches_tracked = None
            module.track_running_stats = False
    return root
