"""Communication hooks that send gradients as 8-bit whole numbers.

Owns: PyTorch's two quantisation hooks. Must not know: the reducer.

Values x become round(x / scale) + zero_point, from 0 to 255, so that the smallest and the largest of
them, and 0, have a place: affine quantisation as in Jacob et al., "Quantization and training of neural
networks for efficient integer-arithmetic-only inference", CVPR 2018, section 2.1. Every rank receives
the others' numbers, scales and zero points, and averages in float32. One byte a value travels from each
rank to each: less than an all-reduce for up to eight ranks.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dptrain.core.arrays import namespace_of
from dptrain.core.tensor import Tensor, wrap
from dptrain.futures import Future
from dptrain.parallel.grad_bucket import GradBucket
from dptrain.parallel.process_group import communicator_of

_LEVELS = 255
_LEAST_SCALE = np.finfo(np.float32).eps


def quantization_pertensor_hook(process_group: Any, bucket: GradBucket) -> Future[Tensor]:
    """Average the bucket in 8 bits, with one scale for all of it.

    The error of a value is up to half a 255th of the range of the bucket. Ranks that have run out of data
    cannot take part: the ranks need equal numbers of steps.

    Args:
        process_group: over whose ranks; the default group if None.
        bucket: the gradients.
    """
    return _averaged(process_group, bucket, max(bucket.buffer()._array.size, 1))


def quantization_perchannel_hook(
    process_group: Any, bucket: GradBucket, bucket_size: int = 512
) -> Future[Tensor]:
    """As `quantization_pertensor_hook`, with a scale for each `bucket_size` values that follow each other."""
    return _averaged(process_group, bucket, bucket_size)


def _averaged(process_group: Any, bucket: GradBucket, row: int) -> Future[Tensor]:
    communicator = communicator_of(process_group, "a communication hook")
    flat = bucket.buffer()._array
    xp, size = namespace_of(flat), communicator.world_size
    rows = xp.zeros((-(-flat.size // row) or 1, row), xp.float32)
    rows.reshape(-1)[: flat.size] = flat
    scales = _scales(xp, rows)
    everyones = xp.empty((size, *scales.shape), xp.float32)
    name = f"quantization hook bucket {bucket.index()}"
    work = communicator.all_gather(everyones, scales, name=f"{name} scales")

    def finish() -> Tensor:
        work.wait()
        small = xp.clip(xp.rint(rows / scales[0][:, None]) + scales[1][:, None], 0, _LEVELS)
        numbers = xp.empty((size, *small.shape), xp.uint8)
        communicator.all_gather(numbers, small.astype(xp.uint8), name=name).wait()
        total = xp.zeros_like(rows)
        for (scale, zero_point), theirs in zip(everyones, numbers, strict=True):
            total += scale[:, None] * (theirs - zero_point[:, None])
        return wrap((total / np.float32(size)).reshape(-1)[: flat.size])

    return Future.driven(finish)


def _scales(xp: Any, rows: Any) -> Any:
    """Scale and zero point of each row, (2, rows) float32."""
    low, high = xp.minimum(rows.min(axis=1), 0), xp.maximum(rows.max(axis=1), 0)
    scale = xp.maximum((high - low) / np.float32(_LEVELS), _LEAST_SCALE)
    return xp.stack([scale, xp.clip(-xp.rint(low / scale), 0, _LEVELS)])
