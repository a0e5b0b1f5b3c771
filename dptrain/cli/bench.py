"""`dptrain bench comm`: how fast the ranks of this machine communicate, and whether they do it right.

Owns: the sweep, the table (nccl-tests' columns) and the fit. Must not know: how bytes move.

Under `dprun` it measures the ranks that it finds; alone it starts `-n` of them itself.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from dptrain.comm import Communicator, ReduceOp, discover, init, set_default
from dptrain.comm.reduction import DTYPE_NAMES, accumulator, dtype_from_name
from dptrain.core.kernels import prepare_sums

Array = np.ndarray[Any, Any]
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}
_COLUMNS = f"{'size':>12} {'count':>12} {'type':>9} {'redop':>8} {'time':>10} {'algbw':>8} {'busbw':>8} {'#wrong':>7}"
_UNITS_LINE = (
    f"{'(B)':>12} {'(elements)':>12} {'':>9} {'':>8} {'(us)':>10} {'(GB/s)':>8} {'(GB/s)':>8}"
)
# A call is repeated until about this many bytes have moved, so that the clock's steps do not count.
_BYTES_PER_MEASUREMENT = 16 << 20


def nbytes_of(text: str) -> int:
    """1024 for "1K", 26214400 for "25M".

    Raises:
        ValueError: no positive size.
    """
    number, unit = (text[:-1], text[-1].upper()) if text[-1:].upper() in _UNITS else (text, "")
    found = int(number) * _UNITS.get(unit, 1)
    if found < 1:
        raise ValueError(f"{text} is no positive size")
    return found


class Row(NamedTuple):
    """One line of the table; bandwidths in bytes per second, the time in seconds."""

    nbytes: int
    elements: int
    time_s: float
    algbw: float
    busbw: float
    wrong: int


class Collective(NamedTuple):
    """How a collective is measured, for a buffer of `ranks * columns` elements.

    Attributes:
        call: makes the call: (communicator, whole buffer, this rank's row, op).
        expected: what the call leaves where `result` looks: (everybody's buffers, rank, op).
        result: the part of the buffer, or of the row, that holds the result.
        bus_factor: bytes on the busiest link per byte of the buffer, for n ranks.
        reduces: whether there is an operator.
    """

    call: Callable[[Communicator, Array, Array, ReduceOp], object]
    expected: Callable[[list[Array], int, ReduceOp], Array]
    result: Callable[[Array, Array], Array]
    bus_factor: Callable[[int], float]
    reduces: bool = False


def _reduced(buffers: list[Array], op: ReduceOp) -> Array:
    """The reduction in rank order by another path: one `reduce` of NumPy over a stack."""
    ufunc = {
        ReduceOp.SUM: np.add,
        ReduceOp.AVG: np.add,
        ReduceOp.PRODUCT: np.multiply,
        ReduceOp.MAX: np.maximum,
        ReduceOp.MIN: np.minimum,
        ReduceOp.BAND: np.bitwise_and,
        ReduceOp.BOR: np.bitwise_or,
        ReduceOp.BXOR: np.bitwise_xor,
    }[op]
    dtype = buffers[0].dtype
    wide = [buffer.astype(accumulator(dtype)) for buffer in buffers]
    total = ufunc.reduce(wide, axis=0, dtype=wide[0].dtype)
    return (total / len(buffers) if op is ReduceOp.AVG else total).astype(dtype)


def _row(buffer: Array, rank: int, ranks: int) -> Array:
    return buffer.reshape(ranks, -1)[rank]


COLLECTIVES = {
    "all_reduce": Collective(
        lambda comm, whole, row, op: comm.all_reduce(whole, op, async_op=False),
        lambda buffers, rank, op: _reduced(buffers, op),
        lambda whole, row: whole,
        lambda n: 2 * (n - 1) / n,
        reduces=True,
    ),
    "broadcast": Collective(
        lambda comm, whole, row, op: comm.broadcast(whole, 0, async_op=False),
        lambda buffers, rank, op: buffers[0],
        lambda whole, row: whole,
        lambda n: 1.0,
    ),
    "reduce": Collective(
        lambda comm, whole, row, op: comm.reduce(whole, 0, op, async_op=False),
        lambda buffers, rank, op: buffers[rank] if rank else _reduced(buffers, op),
        lambda whole, row: whole,
        lambda n: 1.0,
        reduces=True,
    ),
    "all_gather": Collective(
        lambda comm, whole, row, op: comm.all_gather(
            whole.reshape(comm.world_size, -1), row, async_op=False
        ),
        lambda buffers, rank, op: np.concatenate(
            [_row(buffer, r, len(buffers)) for r, buffer in enumerate(buffers)]
        ),
        lambda whole, row: whole,
        lambda n: (n - 1) / n,
    ),
    "reduce_scatter": Collective(
        lambda comm, whole, row, op: comm.reduce_scatter(
            row.reshape(1, -1), whole.reshape(comm.world_size, -1), op, async_op=False
        ),
        lambda buffers, rank, op: _row(_reduced(buffers, op), rank, len(buffers)),
        lambda whole, row: row,
        lambda n: (n - 1) / n,
        reduces=True,
    ),
}


def contribution(rank: int, count: int, dtype: np.dtype[Any], op: ReduceOp) -> Array:
    """What rank `rank` puts in: small whole numbers, so that every type holds the results exactly."""
    spread = 2 if op is ReduceOp.PRODUCT or dtype.name == "bool" else 5
    return ((np.arange(count) + rank) % spread + (op is ReduceOp.PRODUCT)).astype(dtype)


def measure(
    comm: Communicator, what: Collective, buffer: Array, op: ReduceOp, iterations: int | None
) -> Row:
    """Check one call and time some more. Collective."""
    ranks, rank, dtype = comm.world_size, comm.rank, buffer.dtype
    row = buffer.reshape(ranks, -1)[rank]
    buffer[:] = contribution(rank, buffer.size, dtype, op)
    what.call(comm, buffer, row, op)
    put_in = [contribution(r, buffer.size, dtype, op) for r in range(ranks)]
    expected, found = what.expected(put_in, rank, op), what.result(buffer, row)
    wrong = np.array([np.count_nonzero(found != expected)], np.int64)
    comm.all_reduce(wrong, ReduceOp.SUM, async_op=False)
    count = iterations or max(3, min(200, _BYTES_PER_MEASUREMENT // buffer.nbytes))
    buffer[:] = 0  # Repeated sums of anything else would overflow.
    comm.barrier()
    begin_s = time.perf_counter()
    for _ in range(count):
        what.call(comm, buffer, row, op)
    spent_s = np.array([(time.perf_counter() - begin_s) / count])
    comm.all_reduce(spent_s, ReduceOp.MAX, async_op=False)
    time_s = float(spent_s[0])
    algbw = buffer.nbytes / time_s
    return Row(
        buffer.nbytes, buffer.size, time_s, algbw, algbw * what.bus_factor(ranks), int(wrong[0])
    )


def sizes(low: int, high: int, factor: int, unit: int) -> Iterator[int]:
    """Sizes in bytes from `low` on, each `factor` times the one before, rounded up to `unit`."""
    nbytes = low
    while nbytes <= high:
        yield -(-nbytes // unit) * unit
        nbytes *= factor


def fit(rows: Sequence[Row]) -> tuple[float, float] | None:
    """The latency in seconds and the bandwidth in bytes per second that explain the times best.

    Least squares of the relative errors of `time = latency + nbytes / bandwidth`, so that small sizes
    count as much as large ones.

    Returns:
        None where the sizes do not tell: fewer than two, or times that do not grow.
    """
    if len({row.nbytes for row in rows}) < 2:
        return None
    times = np.array([row.time_s for row in rows])
    terms = np.array([[1.0, row.nbytes] for row in rows]) / times[:, None]
    (latency_s, per_byte_s), *_ = np.linalg.lstsq(terms, np.ones(len(rows)), rcond=None)
    return None if per_byte_s <= 0 else (max(float(latency_s), 0.0), 1 / float(per_byte_s))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `dptrain bench`."""
    benches = parser.add_subparsers(dest="bench", required=True)
    comm = benches.add_parser("comm", help="collectives over a sweep of sizes")
    add = comm.add_argument
    add("collective", nargs="?", choices=COLLECTIVES, default="all_reduce")
    add("-n", "--ranks", type=int, default=2, help="ranks to start, where no launcher has")
    add("-b", "--min-bytes", type=nbytes_of, default="1K", metavar="SIZE", help="such as 1K")
    add("-e", "--max-bytes", type=nbytes_of, default="32M", metavar="SIZE", help="such as 100M")
    add("-f", "--step-factor", type=int, default=4, help="from one size to the next")
    add("-o", "--op", choices=[op.value for op in ReduceOp], default="sum")
    add("-d", "--dtype", choices=DTYPE_NAMES, default="float32")
    add("--iterations", type=int, help="calls per size; default: by size")
    memory = comm.add_mutually_exclusive_group()
    memory.add_argument(
        "--window", action="store_true", help="memory of allocate, as DDP's buckets (default)"
    )
    memory.add_argument("--private", action="store_true", help="ordinary arrays")
    comm.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the table on rank 0; 1 if a result was wrong."""
    if args.step_factor < 2 or args.ranks < 1 or (args.iterations or 1) < 1:
        print("dptrain bench: --step-factor has to be 2 or more, the others 1", file=sys.stderr)
        return 2
    if discover().world_size == 1 and args.ranks > 1:
        return _start_ranks(args)
    comm = init()
    try:
        return _sweep(comm, args)
    finally:
        comm.close()
        set_default(None, process_wide=True)


def _start_ranks(args: argparse.Namespace) -> int:
    command = [sys.executable, "-m", "dptrain.launch", "-n", str(args.ranks), "-m", "dptrain.cli"]
    command += ["bench", "comm", args.collective, "--op", args.op, "--dtype", args.dtype]
    command += ["--min-bytes", str(args.min_bytes), "--max-bytes", str(args.max_bytes)]
    command += ["--step-factor", str(args.step_factor), "-n", str(args.ranks)]
    command += ["--iterations", str(args.iterations)] if args.iterations else []
    command += ["--private"] if args.private else []
    return subprocess.call(command)


def _sweep(comm: Communicator, args: argparse.Namespace) -> int:
    what, op, dtype = (
        COLLECTIVES[args.collective],
        ReduceOp.of(args.op),
        dtype_from_name(args.dtype),
    )
    prepare_sums()  # as training does
    show = print if comm.rank == 0 else lambda *_args, **_options: None
    memory = "private arrays" if args.private else "memory of allocate"
    show(f"# {args.collective} over {comm.world_size} ranks ({comm.backend}), {memory}")
    show(f"{_COLUMNS}\n{_UNITS_LINE}", flush=True)
    rows = []
    for nbytes in sizes(
        args.min_bytes, args.max_bytes, args.step_factor, dtype.itemsize * comm.world_size
    ):
        room = np.zeros(nbytes, np.uint8) if args.private else comm.allocate(nbytes)
        row = measure(comm, what, room.view(dtype), op, args.iterations)
        if not args.private:
            comm.release(room)
        rows.append(row)
        redop = op.value if what.reduces else "none"
        show(
            f"{row.nbytes:12} {row.elements:12} {args.dtype:>9} {redop:>8} {row.time_s * 1e6:10.2f} "
            f"{row.algbw / 1e9:8.2f} {row.busbw / 1e9:8.2f} {row.wrong:7}",
            flush=True,
        )
    found = fit(rows)
    if found is not None:
        latency_s, bandwidth = found
        show(
            f"# fit: latency {latency_s * 1e6:.2f} us, bandwidth {bandwidth / 1e9:.2f} GB/s "
            f"(bus {bandwidth * what.bus_factor(comm.world_size) / 1e9:.2f} GB/s)"
        )
    return int(any(row.wrong for row in rows))
