"""Communication hooks that average buckets as they are or in 16 bits.

Owns: PyTorch's default hooks and wrappers. Must not know: the reducer.

A hook takes a state and a `GradBucket` and returns a `Future` of the averaged gradients. Averages
are over the ranks that take part, so that these hooks also serve ranks that have run out of data.
"""

from __future__ import annotations

from enum import Enum, member
from typing import Any

import ml_dtypes
import numpy as np

from dptrain.core.tensor import Tensor, wrap
from dptrain.futures import Future
from dptrain.parallel.grad_bucket import CommHook, GradBucket
from dptrain.parallel.process_group import communicator_of

_HALF, _BFLOAT16 = np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)


def averaged(process_group: Any, tensor: Tensor, name: str) -> Future[Tensor]:
    """A future of `tensor`, averaged in place over the ranks that take part."""
    communicator = communicator_of(process_group, "a communication hook")
    work = communicator.all_reduce(tensor._array, "avg", name=name, joinable=True)

    def finish() -> Tensor:
        work.wait()
        return tensor

    return Future.driven(finish)


def allreduce_hook(process_group: Any, bucket: GradBucket) -> Future[Tensor]:
    """Average the bucket as it is: what happens without a hook.

    Args:
        process_group: over whose ranks; the default group if None.
        bucket: the gradients.
    """
    return averaged(process_group, bucket.buffer(), f"allreduce_hook bucket {bucket.index()}")


def fp16_compress_hook(process_group: Any, bucket: GradBucket) -> Future[Tensor]:
    """Average the bucket in float16: half the bytes. Sums are made in float32 and cannot overflow."""
    return _compressed(process_group, bucket, _HALF)


def bf16_compress_hook(process_group: Any, bucket: GradBucket) -> Future[Tensor]:
    """Average the bucket in bfloat16: half the bytes, the range of float32, three digits."""
    return _compressed(process_group, bucket, _BFLOAT16)


def _compressed(process_group: Any, bucket: GradBucket, kind: np.dtype[Any]) -> Future[Tensor]:
    buffer = bucket.buffer()
    small = wrap(buffer._array.astype(kind))
    name = f"{kind.name} compress hook bucket {bucket.index()}"
    return averaged(process_group, small, name).then(lambda done: _restored(done.value(), buffer))


def _restored(found: Tensor, buffer: Tensor) -> Tensor:
    np.copyto(buffer._array, found._array, casting="same_kind")
    return buffer


def fp16_compress_wrapper(hook: CommHook) -> CommHook:
    """The hook with its bucket, and what it communicates, in float16."""
    return _wrapped(hook, _HALF, "fp16_compress_wrapper_hook")


def bf16_compress_wrapper(hook: CommHook) -> CommHook:
    """The hook with its bucket, and what it communicates, in bfloat16."""
    return _wrapped(hook, _BFLOAT16, "bf16_compress_wrapper_hook")


def _wrapped(hook: CommHook, kind: np.dtype[Any], name: str) -> CommHook:
    def wrapper(state: Any, bucket: GradBucket) -> Future[Tensor]:
        buffer = bucket.buffer()
        bucket.set_buffer(wrap(buffer._array.astype(kind)))

        def restore(done: Future[Any]) -> Tensor:
            value = done.value()
            return _restored(value[0] if isinstance(value, (list, tuple)) else value, buffer)

        return hook(state, bucket).then(restore)

    wrapper.__name__ = wrapper.__qualname__ = name
    return wrapper


def noop_hook(_: Any, bucket: GradBucket) -> Future[Tensor]:
    """Leave the gradients this rank's. To measure how much time communication costs."""
    future: Future[Tensor] = Future()
    future.set_result(bucket.buffer())
    return future


class BuiltinCommHookType(Enum):
    """The hooks that PyTorch has in C++ too, for `_register_builtin_comm_hook`."""

    ALLREDUCE = member(allreduce_hook)
    FP16_COMPRESS = member(fp16_compress_hook)
