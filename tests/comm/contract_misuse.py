"""Bad use of the collectives by several ranks: each is an error on every rank, soon, with both sides.

Owns: the table of cases, `CASES`: for each collective the ways in which a rank can differ from the
others. `check_case` runs one of them, in a group of its own, as it breaks the communicator.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

from dptrain.comm import CollectiveMismatchError, Communicator, CommunicatorError, RankLeftError

LIMIT_S = 2.0
FLOAT, INT = np.float32, np.int32


def _sized(comm: Communicator, size: int, dtype) -> list[np.ndarray]:
    return [np.zeros(size, dtype) for _ in range(comm.world_size)]


# One correct call of each collective: (communicator, size of a rank's part, dtype, other arguments).
CALLS: dict[str, Callable] = {
    "all_reduce": lambda c, n, dt, **k: c.all_reduce(np.zeros(n, dt), **k),
    "reduce": lambda c, n, dt, **k: c.reduce(np.zeros(n, dt), **k),
    "broadcast": lambda c, n, dt, **k: c.broadcast(np.zeros(n, dt), **k),
    "all_gather": lambda c, n, dt, **k: c.all_gather(
        np.zeros((c.world_size, n), dt), np.zeros(n, dt), **k
    ),
    "reduce_scatter": lambda c, n, dt, **k: c.reduce_scatter(
        np.zeros((1, n), dt), np.zeros((c.world_size, n), dt), **k
    ),
    "all_to_all": lambda c, n, dt, **k: c.all_to_all(
        np.zeros((c.world_size, n), dt), np.zeros((c.world_size, n), dt), **k
    ),
    "gather": lambda c, n, dt, **k: c.gather(np.zeros((c.world_size, n), dt), np.zeros(n, dt), **k),
    "scatter": lambda c, n, dt, **k: c.scatter(
        np.zeros(n, dt), np.zeros((c.world_size, n), dt), **k
    ),
    "all_gather_uneven": lambda c, n, dt, **k: c.all_gather_uneven(
        _sized(c, n, dt), np.zeros(n, dt), **k
    ),
    "reduce_scatter_uneven": lambda c, n, dt, **k: c.reduce_scatter_uneven(
        np.zeros(n, dt), _sized(c, n, dt), **k
    ),
    "all_to_all_uneven": lambda c, n, dt, **k: c.all_to_all_uneven(
        _sized(c, n, dt), _sized(c, n, dt), **k
    ),
    "barrier": lambda c, n, dt, **k: c.barrier(**k),
    "join": lambda c, n, dt, **k: c.join(),
}
WITH_OP = ("all_reduce", "reduce", "reduce_scatter", "reduce_scatter_uneven")
WITH_ROOT = ("reduce", "broadcast", "gather", "scatter")
WITHOUT_ARRAY = ("barrier", "join")

# What the last rank does otherwise: (collective, size, dtype, other arguments) and what has to be
# named of both sides, (the others', the last one's).
Case = tuple[str, tuple, tuple, tuple[str, str]]


def _cases() -> dict[str, Case]:
    found: dict[str, Case] = {}
    usual_size = 3
    for call in CALLS:
        usual = (call, usual_size, FLOAT, {})
        short = call.removesuffix("_uneven")
        other = "broadcast" if short != "broadcast" else "all_reduce"
        found[f"{call}: another collective"] = (
            call,
            usual,
            (other, usual_size, FLOAT, {}),
            (f"{short}(", f"{other}("),
        )
        if call == "join":
            continue
        named = (call, usual_size, FLOAT, {"name": "a"})
        other_name = (call, usual_size, FLOAT, {"name": "b"})
        found[f"{call}: name"] = (call, named, other_name, ("name='a'", "name='b'"))
        if call in WITHOUT_ARRAY:
            continue
        found[f"{call}: dtype"] = (
            call,
            usual,
            (call, usual_size, INT, {}),
            ("dtype=float32", "dtype=int32"),
        )
        for size in (4, 200_000):
            shapes = (rf"\b{usual_size}\b", rf"\b{size}\b")
            if call.endswith("_uneven"):
                shapes = (r"sends \d+ bytes to rank", r"room for \d+")
            found[f"{call}: size {size}"] = (call, usual, (call, size, FLOAT, {}), shapes)
        if call in WITH_OP:
            odd = (call, usual_size, FLOAT, {"op": "max"})
            found[f"{call}: op"] = (call, usual, odd, ("op=sum", "op=max"))
        if call in WITH_ROOT:
            odd = (call, usual_size, FLOAT, {"root": 1})
            found[f"{call}: root"] = (call, usual, odd, ("root=0", "root=1"))
    return found


CASES = _cases()


def _run(comm: Communicator, call: str, size: int, dtype, options: dict) -> None:
    work = CALLS[call](comm, size, dtype, **options)
    if hasattr(work, "wait"):
        work.wait()


def check_case(comm: Communicator, name: str) -> None:
    """The last rank differs: an error on all ranks that names both calls and where they were made."""
    call, usual, odd, words = CASES[name]
    last = comm.rank == comm.world_size - 1
    comm.barrier()
    begin_s = time.monotonic()
    with pytest.raises(CollectiveMismatchError) as caught:
        _run(comm, *(odd if last else usual))
    assert time.monotonic() - begin_s < LIMIT_S
    message = str(caught.value)
    assert message.startswith(f"[rank {comm.rank}/{comm.world_size}] ")
    for word in words:
        assert re.search(re.escape(word) if "(" in word or "=" in word else word, message), message
    # Each side's ranks are named, with the line of the call.
    assert f"rank {comm.world_size - 1}" in message or last
    assert "this rank" in message
    assert message.count(f"{os.path.basename(__file__)}:") >= (1 if "uneven" in call else 2)
    with pytest.raises(CommunicatorError, match="can no longer be used"):
        comm.all_reduce(np.zeros(3))


def one_call_more_than_the_others(comm: Communicator, call: str) -> None:
    """Rank 0 makes a call that no other makes; they leave, and it learns who and what."""
    comm.barrier()
    if comm.rank:
        comm.close()
        return
    begin_s = time.monotonic()
    with pytest.raises(RankLeftError, match=r"rank \d+ closed its communicator") as caught:
        _run(comm, call, 3, FLOAT, {})
    assert time.monotonic() - begin_s < LIMIT_S
    assert f"{call.removesuffix('_uneven')}(" in str(caught.value)
    assert f"{os.path.basename(__file__)}:" in str(caught.value)


def use_after_close(comm: Communicator, call: str) -> None:
    """Every call of a closed communicator says so, and asks nobody."""
    comm.close()
    with pytest.raises(CommunicatorError, match=rf"\[rank {comm.rank}/.* is closed"):
        _run(comm, call, 3, FLOAT, {})


def gaps_in_memory(comm: Communicator, call: str) -> None:
    """Arrays with gaps are refused before anybody is asked, so that the ranks stay in step."""
    if call in WITHOUT_ARRAY:
        return
    wide, n = np.zeros((comm.world_size, 6), FLOAT), comm.world_size
    gappy, row = wide[:, ::2], np.zeros((12,), FLOAT)[::4]
    calls = {
        "all_gather": lambda: comm.all_gather(gappy, np.zeros(3, FLOAT)),
        "reduce_scatter": lambda: comm.reduce_scatter(np.zeros((1, 3), FLOAT), gappy),
        "all_to_all": lambda: comm.all_to_all(gappy, np.zeros((n, 3), FLOAT)),
        "gather": lambda: comm.gather(None, row),
        "scatter": lambda: comm.scatter(row, None),
        "all_gather_uneven": lambda: comm.all_gather_uneven([row] * n, np.zeros(3, FLOAT)),
        "reduce_scatter_uneven": lambda: comm.reduce_scatter_uneven(row, [np.zeros(3, FLOAT)] * n),
        "all_to_all_uneven": lambda: comm.all_to_all_uneven([row] * n, [np.zeros(3, FLOAT)] * n),
    }
    with pytest.raises(ValueError, match="C-contiguous"):
        calls.get(call, lambda: getattr(comm, call)(row))()
    comm.barrier()


def two_threads_in_another_order(comm: Communicator) -> None:
    """Two threads of a rank whose order differs from the others': an error, no wrong numbers."""
    names = ["first", "second"] if comm.rank else ["second", "first"]
    caught: list[BaseException] = []
    comm.barrier()
    begin_s = time.monotonic()

    def call(name: str) -> None:
        try:
            comm.all_reduce(np.zeros(3), name=name).wait()
        except CommunicatorError as error:
            caught.append(error)

    threads = [threading.Thread(target=call, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
        thread.join(LIMIT_S)
    assert time.monotonic() - begin_s < LIMIT_S
    assert isinstance(caught[0], CollectiveMismatchError)
    assert "name='first'" in str(caught[0])
    assert "name='second'" in str(caught[0])
    assert len(caught) == 2
