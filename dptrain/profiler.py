"""Where a run's time goes, over all ranks, as one table.

Owns: `RunTimes`. Must not know: how data is read or gradients travel; both keep their own times.
"""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

import numpy as np

from dptrain.comm.default import default_communicator
from dptrain.data.loader import DataLoader
from dptrain.parallel.ddp import DistributedDataParallel


class RunTimes:
    """Measures training inside `with` blocks and prints samples/s, data, compute, communication.

    Example::

        times = RunTimes(model, loader)
        with times:
            for images, labels in loader: ...
            times.add_samples(len(loader.dataset))
        print(times.table())            # on all ranks: the figures are averaged over them

    Args:
        model: the wrapped model, whose averaging is measured.
        loader: the training loader, whose waiting time is measured.
    """

    def __init__(self, model: DistributedDataParallel, loader: DataLoader) -> None:
        self._model, self._loader = model, loader
        self._wall_s = self._data_s = 0.0
        self._samples = 0
        self._from = (0.0, 0.0)

    def __enter__(self) -> RunTimes:
        self._from = (time.perf_counter(), self._loader.data_time_s)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._wall_s += time.perf_counter() - self._from[0]
        self._data_s += self._loader.data_time_s - self._from[1]

    def add_samples(self, count: int) -> None:
        """Count samples of this rank."""
        self._samples += count

    def figures(self) -> dict[str, float]:
        """The figures over all ranks: samples/s together, seconds as the mean. Collective."""
        times, communicator = self._model.times, default_communicator()
        compute_s = max(0.0, self._wall_s - self._data_s - times.exposed_s)
        mine = np.array(
            [
                self._samples,
                self._wall_s,
                self._data_s,
                compute_s,
                times.communication_s,
                times.exposed_s,
            ]
        )
        communicator.all_reduce(mine, name="run times").wait()
        samples, wall, data, compute, communication, exposed = mine.tolist()
        n = communicator.world_size
        return {
            "samples/s": samples / (wall / n) if wall else 0.0,
            "total s": wall / n,
            "data s": data / n,
            "compute s": compute / n,
            "communication s": communication / n,
            "overlapped": max(0.0, 1 - exposed / communication) if communication else 0.0,
        }

    def table(self) -> str:
        """The figures as two aligned lines. Collective: call it on all ranks."""
        formats: dict[str, Any] = {"samples/s": "{:.0f}", "overlapped": "{:.0%}"}
        cells = [
            (name, formats.get(name, "{:.2f}").format(v)) for name, v in self.figures().items()
        ]
        widths = [max(len(name), len(value)) for name, value in cells]
        rows = (
            "  ".join(cell[i].rjust(w) for cell, w in zip(cells, widths, strict=True))
            for i in (0, 1)
        )
        return "\n".join(rows)
