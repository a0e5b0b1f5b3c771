"""PowerSGD: gradients averaged as products of two thin matrices.

Owns: `PowerSGDState`, `powerSGD_hook`, `batched_powerSGD_hook`. Must not know: the reducer.

A gradient, seen as an n x m matrix M, is replaced by P Q^T of rank r: P = M Q, averaged and
orthonormalised; Q = M^T P, averaged. That is one step of subspace iteration, started from the last
step's Q (warm start). What the product misses of this rank's M is added to its next gradient (error
feedback), so that nothing is lost for ever. Source: Vogels, Karimireddy & Jaggi, "PowerSGD: practical
low-rank gradient compression for distributed optimization", NeurIPS 2019, algorithms 1 and 2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dptrain.core.arrays import address, namespace_of
from dptrain.core.half import lift
from dptrain.core.random import numpy_stream
from dptrain.core.tensor import Tensor, wrap
from dptrain.futures import Future
from dptrain.parallel.comm_hooks import allreduce_hook, averaged
from dptrain.parallel.grad_bucket import GradBucket


class PowerSGDState:
    """What `powerSGD_hook` keeps from step to step.

    Args:
        process_group: over whose ranks; the default group if None.
        matrix_approximation_rank: r; more is slower and more exact.
        start_powerSGD_iter: steps that are averaged without compression before the first that is not;
            early gradients change fast, and the optimizer's averages settle.
        min_compression_rate: a gradient is compressed only if (n + m) * r * this < n * m.
        use_error_feedback: add what was missed to the next gradient.
        warm_start: start from the last step's Q; else from a new random one.
        orthogonalization_epsilon: added to the norms by which columns are divided.
        random_seed: of the random Q; the same on all ranks.
        compression_stats_logging_frequency: accepted; `compression_stats()` gives them at any time.
        batch_tensors_with_same_shape: accepted; every gradient has its own matrix product.

    Raises:
        ValueError: error feedback or warm start before the second step.
    """

    def __init__(
        self,
        process_group: Any,
        matrix_approximation_rank: int = 1,
        start_powerSGD_iter: int = 1000,
        min_compression_rate: float = 2,
        use_error_feedback: bool = True,
        warm_start: bool = True,
        orthogonalization_epsilon: float = 0,
        random_seed: int = 0,
        compression_stats_logging_frequency: int = 10000,
        batch_tensors_with_same_shape: bool = False,
    ) -> None:
        if (use_error_feedback or warm_start) and start_powerSGD_iter <= 1:
            raise ValueError(
                "Expect `start_powerSGD_iter` > 1 if `use_error_feedback` or `warm_start` is enabled, because "
                f"PowerSGD can only be applied after the first two iterations in DDP; got {start_powerSGD_iter}"
            )
        self.process_group = process_group
        self.matrix_approximation_rank = matrix_approximation_rank
        self.start_powerSGD_iter = start_powerSGD_iter
        self.min_compression_rate = min_compression_rate
        self.use_error_feedback = use_error_feedback
        self.warm_start = warm_start
        self.orthogonalization_epsilon = orthogonalization_epsilon
        self.random_seed = random_seed
        self.compression_stats_logging_frequency = compression_stats_logging_frequency
        self.batch_tensors_with_same_shape = batch_tensors_with_same_shape
        #: By bucket: what the compressed gradients missed so far.
        self.error_dict: dict[int, np.ndarray] = {}
        #: By bucket and place in it: the last Q.
        self.q_memory_dict: dict[tuple[int, int], np.ndarray] = {}
        self.iter = 0
        self.total_numel_before_compression = 0
        self.total_numel_after_compression = 0

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the process group, which does not outlive its processes."""
        return {k: v for k, v in self.__dict__.items() if k != "process_group"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, process_group=None)

    def compression_stats(self) -> tuple[float, int, int]:
        """Compression rate, and the numbers of elements before and after, over all steps."""
        before, after = self.total_numel_before_compression, self.total_numel_after_compression
        return (before / after if after else 0.0), before, after


@dataclass
class _Low:
    """One gradient on its way: the matrices and where they lie in the messages."""

    matrix: np.ndarray
    p: np.ndarray
    q: np.ndarray


def powerSGD_hook(state: PowerSGDState, bucket: GradBucket) -> Future[Tensor]:
    """Average the bucket in low rank; small gradients and vectors as they are.

    Three messages per bucket: the gradients that are not compressed, all P and all Q.

    Args:
        state: made once, the same on all ranks.
        bucket: the gradients.
    """
    if not _begins(state, bucket):
        return allreduce_hook(state.process_group, bucket)
    flat = bucket.buffer()._array
    work = lift(flat)  # the same memory, unless it has 16 bits
    chosen, rest = _divided([_at(work, flat, g._array) for g in bucket.gradients()], state)
    return _averaged(state, bucket, work, chosen, rest)


def batched_powerSGD_hook(state: PowerSGDState, bucket: GradBucket) -> Future[Tensor]:
    """Average the whole bucket, padded with zeros, as one square matrix in low rank.

    Two messages per bucket and less to compute than with `powerSGD_hook`, but the matrix has no
    meaning, and its low-rank approximation is worse.

    Args:
        state: made once, the same on all ranks.
        bucket: the gradients.
    """
    if not _begins(state, bucket):
        return allreduce_hook(state.process_group, bucket)
    flat = lift(bucket.buffer()._array)
    side = math.isqrt(max(flat.size - 1, 0)) + 1
    work = namespace_of(flat).zeros(side * side, flat.dtype)
    work[: flat.size] = flat
    return _averaged(state, bucket, work, [work.reshape(side, side)], [])


def _begins(state: PowerSGDState, bucket: GradBucket) -> bool:
    """Whether this step compresses; counts the steps."""
    compresses = state.iter >= state.start_powerSGD_iter
    state.iter += bucket.is_last()
    return compresses


def _averaged(
    state: PowerSGDState,
    bucket: GradBucket,
    work: np.ndarray,
    chosen: Sequence[np.ndarray],
    rest: Sequence[np.ndarray],
) -> Future[Tensor]:
    """Average `work`, the bucket's values: the matrices `chosen` in it in low rank, `rest` as it is."""
    index, flat = bucket.index(), bucket.buffer()._array
    if state.use_error_feedback and index in state.error_dict:
        work += state.error_dict[index]
    mine = work.copy() if state.use_error_feedback else None
    lows, ps, qs = _low_rank(chosen, state.matrix_approximation_rank, work[:0])
    state.total_numel_before_compression += sum(g.size for g in (*chosen, *rest))
    state.total_numel_after_compression += ps.size + qs.size + sum(g.size for g in rest)
    for position, low in enumerate(lows):
        _start(low.q, state, index, position)
        _orthonormalise(low.q, state.orthogonalization_epsilon)
        np.matmul(low.matrix, low.q, out=low.p)
    plain = np.concatenate([work[:0], *(g.ravel() for g in rest)])
    group, name = state.process_group, f"powerSGD bucket {index}"
    plain_arrives = averaged(group, wrap(plain), f"{name} rest")
    p_arrives = averaged(group, wrap(ps), f"{name} P")

    def find_q(done: Future[Tensor]) -> Tensor:
        done.value()
        for low in lows:
            _orthonormalise(low.p, state.orthogonalization_epsilon)
            np.matmul(low.matrix.T, low.p, out=low.q)
        return averaged(group, wrap(qs), f"{name} Q").wait()

    def restore(done: Future[Tensor]) -> Tensor:
        done.value()
        plain_arrives.wait()
        for position, low in enumerate(lows):
            np.matmul(low.p, low.q.T, out=low.matrix)
            if state.warm_start:
                state.q_memory_dict[index, position] = low.q.copy()
        if mine is not None:
            # Of the gradients that were not compressed nothing was missed.
            missed = state.error_dict[index] = mine - work
            for g in rest:
                _at(missed, work, g)[...] = 0
        start = 0
        for g in rest:
            g[...] = plain[start : start + g.size].reshape(g.shape)
            start += g.size
        if work is not flat:
            np.copyto(flat, work[: flat.size], casting="same_kind")
        return bucket.buffer()

    return p_arrives.then(find_q).then(restore)


def _at(target: np.ndarray, source: np.ndarray, view: np.ndarray) -> np.ndarray:
    """The part of `target` that lies in it as the contiguous `view` lies in `source`."""
    if not view.size:
        return target[:0].reshape(view.shape)
    start = (address(view) - address(source)) // source.itemsize
    return target[start : start + view.size].reshape(view.shape)


def _divided(
    gradients: Sequence[np.ndarray], state: PowerSGDState
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The gradients that are worth compressing, as matrices, and the others."""
    chosen: list[np.ndarray] = []
    rest: list[np.ndarray] = []
    for g in gradients:
        matrix = g.reshape(g.shape[0], -1) if g.ndim > 1 and g.size else None
        if matrix is not None:
            n, m = matrix.shape
            r = min(n, m, state.matrix_approximation_rank)
            if (n + m) * r * state.min_compression_rate < n * m:
                chosen.append(matrix)
                continue
        rest.append(g)
    return chosen, rest


def _low_rank(
    matrices: Sequence[np.ndarray], rank: int, like: np.ndarray
) -> tuple[list[_Low], np.ndarray, np.ndarray]:
    """P and Q of each matrix, as views of two arrays that travel, on the device of `like`."""
    xp, kind = namespace_of(like), like.dtype
    ranks = [min(*m.shape, rank) for m in matrices]
    ps = xp.zeros(sum(m.shape[0] * r for m, r in zip(matrices, ranks, strict=True)), kind)
    qs = xp.zeros(sum(m.shape[1] * r for m, r in zip(matrices, ranks, strict=True)), kind)
    lows: list[_Low] = []
    p_start = q_start = 0
    for m, r in zip(matrices, ranks, strict=True):
        p_stop, q_stop = p_start + m.shape[0] * r, q_start + m.shape[1] * r
        p, q = ps[p_start:p_stop].reshape(-1, r), qs[q_start:q_stop].reshape(-1, r)
        lows.append(_Low(m, p, q))
        p_start, q_start = p_stop, q_stop
    return lows, ps, qs


def _start(q: np.ndarray, state: PowerSGDState, index: int, position: int) -> None:
    """The last step's Q, or a random one, the same on every rank."""
    held = state.q_memory_dict.get((index, position))
    if held is not None and held.shape == q.shape:
        np.copyto(q, held)
        return
    step = 0 if state.warm_start else state.iter
    stream = numpy_stream(state.random_seed, step, index, position)
    q[...] = namespace_of(q).asarray(stream.standard_normal(q.shape))


def _orthonormalise(matrix: np.ndarray, epsilon: float) -> None:
    """Orthonormal columns that span those of `matrix`, in place (modified Gram-Schmidt).

    A column that depends on those before it becomes 0: it adds nothing to the product.
    """
    for i in range(matrix.shape[1]):
        column = matrix[:, i]
        before = float(np.linalg.norm(column))
        if i:  # twice is enough (Kahan, Parlett): the first round leaves rounding errors
            for _ in range(2):
                column -= matrix[:, :i] @ (matrix[:, :i].T @ column)
        norm = float(np.linalg.norm(column))
        if norm <= before * matrix.shape[0] * np.finfo(matrix.dtype).eps:
            column[...] = 0
        else:
            column /= norm + epsilon
