"""What all metrics have in common: counts of this rank, and their sums over the ranks.

Owns: `Metric`. Must not know: what is counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np

from dptrain.comm.communicator import Communicator
from dptrain.comm.default import default_communicator, is_initialized
from dptrain.comm.env import discover
from dptrain.core.arrays import to_host
from dptrain.core.lent_memory import from_numpy
from dptrain.core.tensor import Tensor

Counts = np.ndarray[Any, np.dtype[np.int64]]


class Metric:
    """Whole numbers that are counted per rank and added up over the ranks.

    Args:
        communicator: connects the ranks; the default one, at the time of each call.
    """

    def __init__(self, communicator: Communicator | None = None) -> None:
        self._communicator = communicator
        self.reset()

    def reset(self) -> Self:
        """Forget what this rank has counted."""
        self._take(None)
        return self

    def compute(self) -> Tensor:
        """The figure over all ranks' samples, the same on all of them. Collective.

        Raises:
            RuntimeError: no rank has counted a sample.
        """
        return self._figure(self._of_all_ranks())

    def state_dict(self) -> dict[str, Tensor]:
        """What all ranks have counted together. Collective; to be saved by any one of them."""
        return {"counts": from_numpy(self._of_all_ranks())}

    def load_state_dict(self, state_dict: Mapping[str, Tensor]) -> None:
        """Go on from a saved state, on any number of ranks; call it on all of them.

        Raises:
            KeyError: it is no state of a metric.
            ValueError: it is that of a metric of another kind or size.
        """
        counts = np.array(to_host(state_dict["counts"]._array), np.int64)
        if counts.shape != self._counted().shape:
            raise ValueError(
                f"{type(self).__name__}: the state has counts of shape {list(counts.shape)}, expected "
                f"{list(self._counted().shape)}"
            )
        # Once among the ranks: the sum over them is then what was saved.
        self._take(counts if self._ranks().rank == 0 else None)

    def _ranks(self) -> Communicator:
        found = discover()
        if self._communicator is None and found.world_size > 1 and not is_initialized():
            raise RuntimeError(
                f"{type(self).__name__}: {found.launcher} started {found.world_size} ranks, which are not connected "
                "yet; call init_process_group first"
            )
        return self._communicator or default_communicator()

    def _of_all_ranks(self) -> Counts:
        counts = self._counted().copy()
        self._ranks().all_reduce(counts, name=f"metric {type(self).__name__}", async_op=False)
        return counts

    def nothing(self) -> RuntimeError:
        """The error of a figure of no samples."""
        return RuntimeError(
            f"{type(self).__name__}: compute() before update(): no rank has counted a sample"
        )

    def _counted(self) -> Counts:
        """This rank's counts."""
        raise NotImplementedError

    def _take(self, counts: Counts | None) -> None:
        """Replace this rank's counts; None are zeros."""
        raise NotImplementedError

    def _figure(self, counts: Counts) -> Tensor:
        """The figure from all ranks' counts."""
        raise NotImplementedError
