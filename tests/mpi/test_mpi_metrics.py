"""Metrics on real ranks, with shares of different sizes and one that is empty."""

from __future__ import annotations

import numpy as np
import pytest

import dptrain
from dptrain import metrics
from dptrain.comm.serial import SerialCommunicator

pytestmark = pytest.mark.mpi


def test_figures_are_those_of_all_ranks_samples(comm):
    stream = np.random.default_rng(0)  # the same on every rank
    scores = stream.standard_normal((100, 5)).astype(np.float32)
    classes = stream.integers(0, 5, 100)
    losses = stream.standard_normal(100)
    # Rank 0 has nothing unless it is alone; the others have 1, 3, 5, ... parts.
    ends = np.cumsum(
        [0, *(0 if r == 0 and comm.world_size > 1 else 2 * r + 1 for r in range(comm.world_size))]
    )
    start, stop = 100 * ends[comm.rank] // ends[-1], 100 * ends[comm.rank + 1] // ends[-1]
    mine, everyone = slice(start, stop), slice(None)

    def made(**options):
        return (
            metrics.Accuracy(top_k=2, **options),
            metrics.Mean(**options),
            metrics.ConfusionMatrix(5, **options),
        )

    def count(figures, share):
        accuracy, mean, matrix = figures
        output, target = dptrain.from_numpy(scores[share]), dptrain.from_numpy(classes[share])
        accuracy.update(output, target)
        matrix.update(output, target)
        mean.update(dptrain.from_numpy(losses[share]))
        return figures

    alone = [
        metric.compute() for metric in count(made(communicator=SerialCommunicator()), everyone)
    ]
    ours, resumed = count(made(communicator=comm), mine), made(communicator=comm)
    for metric, again, expected in zip(ours, resumed, alone, strict=True):
        assert dptrain.equal(metric.compute(), expected)
        again.load_state_dict(metric.state_dict())
        assert dptrain.equal(again.compute(), expected)
