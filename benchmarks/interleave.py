"""Runs two sides in turn on one machine and prints the ratio of their medians.

Owns: worker processes, their turns and the statistics. On a shared machine only a ratio within one
interleaved run means something, so no time is printed without its counterpart beside it.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from argparse import SUPPRESS, ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Client, Listener


def parser(description: str | None, workers: Sequence[str], rounds: int) -> ArgumentParser:
    """The options that every comparison has; what `Side` gives a job is not shown.

    Args:
        description: the benchmark's docstring, shown as it is.
        workers: what a job can be.
        rounds: how often both sides measure, by default.
    """
    made = ArgumentParser(description=description, formatter_class=RawDescriptionHelpFormatter)
    made.add_argument("--torch-python", default=sys.executable, help="interpreter that has torch")
    made.add_argument("--rounds", type=int, default=rounds)
    made.add_argument("--worker", choices=workers, help=SUPPRESS)
    made.add_argument("--address", help=SUPPRESS)
    return made


class Side:
    """One side of a comparison: a job that measures once whenever it is asked.

    The job's command is given `--address PATH`; its first process calls `serve`.
    """

    def __init__(self, label: str, command: Sequence[str], threads: int) -> None:
        self.label = label
        limits = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
        environment = {**os.environ, **dict.fromkeys(limits, str(threads))}
        self._folder = tempfile.TemporaryDirectory()
        address = os.path.join(self._folder.name, "socket")
        self._listener = Listener(address, "AF_UNIX")
        self._process = subprocess.Popen([*command, "--address", address], env=environment)
        self._listener._listener._socket.settimeout(120)  # a job that dies never connects
        self._connection = self._listener.accept()

    def measure(self) -> dict:
        """Let the job measure once."""
        try:
            self._connection.send("go")
            return self._connection.recv()
        except (EOFError, OSError):
            raise SystemExit(
                f"{self.label} ended with exit status {self._process.wait()}"
            ) from None

    def close(self) -> None:
        """Let the job end."""
        self._connection.close()
        self._process.wait(timeout=60)
        self._listener.close()
        self._folder.cleanup()


@dataclass
class Comparison:
    """The measurements of two sides, taken in turn."""

    ours: list[float] = field(default_factory=list)
    theirs: list[float] = field(default_factory=list)

    def line(self, what: str) -> str:
        """Both medians, their quartiles, and the ratio of the medians (above 1: we are faster)."""
        ratio = statistics.median(self.theirs) / statistics.median(self.ours)
        return f"{what:44} {_spread(self.ours)}   {_spread(self.theirs)}   {ratio:5.2f}"


def _spread(values: list[float]) -> str:
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:8.3f} [{low:7.3f} {high:7.3f}]"


HEADER = f"{'':44} {'dptrain, ms [quartiles]':26}   {'PyTorch, ms [quartiles]':26}   ratio"


def compare(ours: Side, theirs: Side, rounds: int) -> Comparison:
    """Measure in turn; the order within a pair alternates."""
    result = Comparison()
    for i in range(rounds):
        for side, store in ((ours, result.ours), (theirs, result.theirs))[:: 1 if i % 2 else -1]:
            store.append(side.measure()["ms"])
    return result


def serve(address: str, measure: Callable[[], dict]) -> None:
    """The job's end: one measurement for every request, until the connection is closed."""
    with Client(address, "AF_UNIX") as connection:
        while True:
            try:
                connection.recv()
            except EOFError:
                return
            connection.send(measure())
