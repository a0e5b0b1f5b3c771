"""The contract of `Communicator`: values of the collectives. See `comm_contract`."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from contract_values import (
    DTYPES,
    FLOATS,
    INTS,
    SIZES,
    all_values,
    bits,
    reduced,
    same_on_all_ranks,
    values,
)

from dptrain.comm import (
    CollectiveMismatchError,
    Communicator,
    ReduceOp,
)


def all_reduce_is_the_rank_ordered_reduction(comm: Communicator) -> None:
    for dtype in DTYPES:
        for op in ("sum", "max", "min", "product"):
            array = values(comm.rank, (3, 5), dtype)
            work = comm.all_reduce(array, op)
            assert work.wait()
            assert bits(array) == bits(reduced(all_values(comm, (3, 5), dtype), op)), (dtype, op)
            assert work.result is array


def bits_of_integers_are_combined(comm: Communicator) -> None:
    for dtype in INTS:
        for op in ("band", "bor", "bxor"):
            for size in (5, 70_001):
                array = values(comm.rank, (size,), dtype)
                comm.all_reduce(array, op).wait()
                assert bits(array) == bits(reduced(all_values(comm, (size,), dtype), op))


def all_reduce_works_for_every_size(comm: Communicator) -> None:
    for size in SIZES:
        for dtype in (np.dtype(np.float32), np.dtype(np.float16), np.dtype(np.int16)):
            array = values(comm.rank, (size,), dtype)
            comm.all_reduce(array).wait()
            assert bits(array) == bits(reduced(all_values(comm, (size,), dtype), "sum"))
    scalar = np.array(float(comm.rank))
    comm.all_reduce(scalar, async_op=False)
    assert scalar.shape == ()
    assert scalar == sum(range(comm.world_size))


def average_divides_by_the_number_of_ranks(comm: Communicator) -> None:
    for dtype in FLOATS:
        for size in (5, 40_001):
            array = values(comm.rank, (size,), dtype)
            comm.all_reduce(array, ReduceOp.AVG).wait()
            assert bits(array) == bits(reduced(all_values(comm, (size,), dtype), "avg"))


def sixteen_bit_sums_accumulate_in_float32(comm: Communicator) -> None:
    # 2048 + 1 is 2048 in float16, so that adding rank by rank in float16 would lose every 1.
    for dtype, large in ((np.dtype(np.float16), 2048), (np.dtype(ml_dtypes.bfloat16), 256)):
        array = np.full(4, large if comm.rank == 0 else 1, dtype)
        comm.all_reduce(array).wait()
        expected = np.float32(large + comm.world_size - 1).astype(dtype)
        assert (array == expected).all()


def infinities_and_overflow_travel_without_a_warning(comm: Communicator) -> None:
    array = np.array([np.inf, np.finfo(np.float32).max, np.nan], np.float32)
    comm.all_reduce(array).wait()
    assert array[0] == np.inf
    assert np.isinf(array[1]) == (comm.world_size > 1)
    assert np.isnan(array[2])


def results_are_bitwise_equal_on_all_ranks(comm: Communicator) -> None:
    for size in (11, 100_003):
        array = values(comm.rank, (size,), np.dtype(np.float32), salt=1)
        comm.all_reduce(array, "avg").wait()
        assert same_on_all_ranks(comm, array)


def reduce_gives_the_result_to_the_root_only(comm: Communicator) -> None:
    for root in range(comm.world_size):
        for size in (3, 20_000, 200_000):
            array = values(comm.rank, (size,), np.dtype(np.float32))
            before = array.copy()
            comm.reduce(array, root, "sum").wait()
            total = reduced(all_values(comm, (size,), np.dtype(np.float32)), "sum")
            assert bits(array) == bits(total if comm.rank == root else before)


def broadcast_copies_the_root(comm: Communicator) -> None:
    for root in range(comm.world_size):
        for size in SIZES:
            for dtype in (np.dtype(np.float64), np.dtype(bool), np.dtype(ml_dtypes.bfloat16)):
                array = values(comm.rank, (size,), dtype)
                if comm.rank == root:
                    array.flags.writeable = False  # The root's array is only read.
                comm.broadcast(array, root).wait()
                assert bits(array) == bits(values(root, (size,), dtype))


def all_gather_collects_by_rank(comm: Communicator) -> None:
    for shape in ((), (0,), (3, 1), (70_001,), (2, 150_000)):
        for dtype in (np.dtype(np.float32), np.dtype(np.uint8)):
            out = np.zeros((comm.world_size, *shape), dtype)
            comm.all_gather(out, values(comm.rank, shape, dtype)).wait()
            assert bits(out) == bits(np.stack(all_values(comm, shape, dtype)))


def all_gather_takes_a_part_of_its_own_output(comm: Communicator) -> None:
    for size in (4, 150_000):
        out = np.zeros((comm.world_size, size), np.float32)
        out[comm.rank] = values(comm.rank, (size,), out.dtype)
        comm.all_gather(out, out[comm.rank]).wait()
        assert bits(out) == bits(np.stack(all_values(comm, (size,), out.dtype)))


def reduce_scatter_gives_each_rank_its_part(comm: Communicator) -> None:
    for length in (0, 1, 5, 60_001):
        shape = (comm.world_size * length, 2)
        array = values(comm.rank, shape, np.dtype(np.float32))
        total = reduced(all_values(comm, shape, array.dtype), "sum")
        part = slice(comm.rank * length, (comm.rank + 1) * length)
        out = np.zeros((length, 2), np.float32)
        comm.reduce_scatter(out, array).wait()
        assert bits(out) == bits(total[part])
        comm.reduce_scatter(array[part], array).wait()
        assert bits(array[part]) == bits(total[part])


def all_to_all_transposes_parts(comm: Communicator) -> None:
    for length in (0, 1, 3, 50_000):
        shape = (comm.world_size, length)
        out = np.zeros(shape, np.int32)
        comm.all_to_all(out, values(comm.rank, shape, out.dtype)).wait()
        expected = [array[comm.rank] for array in all_values(comm, shape, out.dtype)]
        assert bits(out) == bits(np.stack(expected))


# Lengths by rank: none, one, odd, more than a staging piece.
LENGTHS = [3, 0, 200_003, 1]


def all_gather_takes_arrays_of_different_sizes(comm: Communicator) -> None:
    for dtype in (np.dtype(np.float32), np.dtype(bool), np.dtype(ml_dtypes.bfloat16)):
        outs = [np.zeros((length, 2), dtype) for length in LENGTHS[: comm.world_size]]
        mine = values(comm.rank, (LENGTHS[comm.rank], 2), dtype)
        comm.all_gather_uneven(outs, mine).wait()
        for rank, out in enumerate(outs):
            assert bits(out) == bits(values(rank, (LENGTHS[rank], 2), dtype))
        outs[comm.rank][:] = mine  # Its own part of the output as the input.
        comm.all_gather_uneven(outs, outs[comm.rank], async_op=False)
        assert bits(outs[comm.rank]) == bits(mine)


def reduce_scatter_takes_parts_of_different_sizes(comm: Communicator) -> None:
    lengths = LENGTHS[: comm.world_size]
    for dtype, op in ((np.float32, "sum"), (np.float16, "avg"), (np.int64, "bxor"), (bool, "max")):
        dtype = np.dtype(dtype)
        parts = [values(comm.rank, (length,), dtype, salt=2) for length in lengths]
        out = np.zeros(lengths[comm.rank], dtype)
        comm.reduce_scatter_uneven(out, parts, op).wait()
        everyone = [values(rank, out.shape, dtype, salt=2) for rank in range(comm.world_size)]
        assert bits(out) == bits(reduced(everyone, op)), (dtype, op)


def all_to_all_takes_parts_of_different_sizes(comm: Communicator) -> None:
    def length(src: int, dst: int) -> int:
        return (0, 1, 1001, 90_001)[(src + 2 * dst) % 4]

    for dtype in (np.dtype(np.int16), np.dtype(np.float64)):
        ranks = range(comm.world_size)
        sent = [values(comm.rank, (length(comm.rank, dst),), dtype, salt=dst) for dst in ranks]
        outs = [np.zeros(length(src, comm.rank), dtype) for src in ranks]
        comm.all_to_all_uneven(outs, sent).wait()
        for src, out in enumerate(outs):
            assert bits(out) == bits(values(src, out.shape, dtype, salt=comm.rank))


def gather_and_scatter_go_by_the_root(comm: Communicator) -> None:
    for root in range(comm.world_size):
        at_root = comm.rank == root
        for shape in ((), (0,), (3, 1), (150_001,)):
            for dtype in (np.dtype(np.float32), np.dtype(np.uint16)):
                mine = values(comm.rank, shape, dtype)
                everyone = np.stack(all_values(comm, shape, dtype))
                out = np.zeros_like(everyone) if at_root else None
                comm.gather(out, mine, root).wait()
                assert out is None or bits(out) == bits(everyone)
                part = np.zeros(shape, dtype)
                work = comm.scatter(part, everyone if at_root else None, root)
                work.wait()
                assert bits(part) == bits(mine)
                assert work.result is part


def sizes_that_disagree_are_an_error_on_every_rank(comm: Communicator) -> None:
    n = comm.world_size
    outs = [np.zeros(2 + (rank == n - 1)) for rank in range(n)]
    with pytest.raises(CollectiveMismatchError, match=r"sends 16 bytes to rank 0, .* room for 24"):
        comm.all_gather_uneven(outs, np.zeros(2)).wait()
