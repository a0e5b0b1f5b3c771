"""NCCL without a GPU: the binding that is called exists as it is called, and what is asked of it.

`fake_nccl` stands in for the library where a driver would be needed; what it recorded is compared with
what has to be asked. `test_nccl_contract.py` runs the whole contract over it.
"""

from __future__ import annotations

import ast
import inspect
import threading
from pathlib import Path

import fake_cupy
import fake_nccl
import ml_dtypes
import numpy as np
import pytest

from dptrain.comm import (
    CommunicatorError,
    nccl,
    nccl_local,
    nccl_moves,
    nccl_types,
    run_ranks,
)
from dptrain.comm.collectives import TransportCommunicator
from dptrain.comm.nccl import NcclTransport
from dptrain.comm.reduction import DTYPE_NAMES, ReduceOp, check_reducible, dtype_from_name
from dptrain.comm.serial import SerialTransport
from dptrain.core import cuda
from dptrain.core.arrays import move, to_host
from dptrain.core.device import as_device


@pytest.fixture(scope="module")
def real():
    """CuPy's binding over a libnccl that it can load; neither needs a GPU."""
    pytest.importorskip("cupy", reason="CuPy is not installed (extra cuda13)")
    try:
        return nccl.binding()
    except RuntimeError as error:
        pytest.skip(str(error))


# ---- the binding -------------------------------------------------------------------------------


def parameters(function):
    """The names of a Cython function's parameters, from the signature in its documentation."""
    line = function.__doc__.splitlines()[0]
    inside = line[line.index("(") + 1 : line.rindex(")")]
    names = [part.split("=")[0].split()[-1] for part in inside.split(",") if part.strip()]
    return [name for name in names if name != "self"]


def asked_for():
    """(receiver, name, number of arguments or None) for all that `comm/nccl*.py` use of the binding."""
    sources = [Path(module.__file__).read_text() for module in (nccl, nccl_moves, nccl_local)]
    for node in (node for text in sources for node in ast.walk(ast.parse(text))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            receiver = ast.unparse(node.func.value)
            if receiver == "nccl.NcclCommunicator":
                receiver = "comm"
            receiver = "self._nccl" if receiver == "nccl" else receiver
            if receiver in ("comm", "self._comm", "self._nccl"):
                assert not node.keywords
                yield receiver, node.func.attr, len(node.args)
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "self._nccl":
            yield "self._nccl", node.attr, None
    yield from (("comm", how, 0) for how in ("abort", "destroy"))  # by `_end`


def test_every_call_of_the_binding_is_there_with_that_many_arguments(real):
    found = {name for _, name, _ in asked_for()}
    assert {"allReduce", "reduceScatter", "send", "groupStart", "check_async_error"} <= found
    for receiver, name, count in asked_for():
        owner = real if receiver == "self._nccl" else real.NcclCommunicator
        assert hasattr(owner, name), (receiver, name)
        if count is None:
            continue
        if name == "NcclCommunicator":
            assert parameters(real.NcclCommunicator)[:count] == ["ndev", "commId", "rank"]
        else:
            assert len(parameters(getattr(owner, name))) == count, name


def test_the_stand_in_takes_what_the_binding_takes(real):
    for name in ("allReduce", "reduce", "broadcast", "allGather", "reduceScatter", "send", "recv"):
        ours = inspect.signature(getattr(fake_nccl._Communicator, name)).parameters
        assert list(ours)[1:] == parameters(getattr(real.NcclCommunicator, name)), name
    assert {name: getattr(real, name) for name in fake_nccl.CONSTANTS} == fake_nccl.CONSTANTS
    assert issubclass(real.NcclError, RuntimeError)
    identity = bytes(real.get_unique_id())
    assert len(identity) == 128
    assert real.get_version() >= 21800


def test_cupy_has_the_streams_events_and_copies_that_are_used(real):
    from cupy import cuda

    for owner, used in (
        (cuda.Stream, ("record", "wait_event", "is_capturing", "synchronize", "use")),
        (cuda.Stream.null, ("ptr",)),
        (cuda.Event, ("done",)),
        (cuda, ("alloc_pinned_memory", "get_current_stream", "Device")),
        (
            cuda.runtime,
            ("memcpyAsync", "memcpyDeviceToHost", "memcpyHostToDevice", "setDevice", "getDevice"),
        ),
        (cuda.runtime, ("getDeviceProperties",)),
    ):
        assert [name for name in used if not hasattr(owner, name)] == []


def test_constants_of_the_table_are_the_bindings_and_its_sizes_are_the_types(real):
    names = {*nccl_types.TYPES.values(), *nccl_types.OPS.values(), nccl_types.BYTES}
    assert all(isinstance(getattr(real, name), int) for name in names)
    for kind, name in nccl_types.TYPES.items():
        assert np.dtype(fake_nccl._KINDS[getattr(real, name)]) == dtype_from_name(kind)


def test_what_cannot_connect_is_one_line(real, monkeypatch):
    if cuda.trouble(cuda.probe()) is None:
        pytest.skip("there is a GPU")
    with fake_cupy.installed(monkeypatch, 1):
        comm = TransportCommunicator(NcclTransport(SerialTransport(), 0, real))
        array = move(np.ones(3), as_device("cuda:0"))
        with pytest.raises(CommunicatorError, match=r"NCCL cannot connect cuda:0.*NCCL_DEBUG"):
            comm.all_reduce(array).wait()


# ---- element types and operators ---------------------------------------------------------------


@pytest.mark.parametrize("kind", DTYPE_NAMES)
@pytest.mark.parametrize("op", ReduceOp)
def test_every_reduction_is_ncclS_or_gathered_with_numpys_values(op, kind):
    dtype = dtype_from_name(kind)
    try:
        check_reducible(op, dtype)
    except TypeError:
        return
    found = nccl_types.native(op, dtype)
    if found is None:
        small = dtype.itemsize == 2 and dtype.kind in "iu"
        bitwise = op in (ReduceOp.BAND, ReduceOp.BOR, ReduceOp.BXOR)
        extreme = op in (ReduceOp.MAX, ReduceOp.MIN) and kind.endswith(("float16", "32", "64"))
        assert small or bitwise or extreme
        return
    # NCCL's arithmetic over its type, by the stand-in, against the definition.
    from dptrain.comm.reduction import reduce_arrays

    stream = np.random.default_rng(0)
    rows = [stream.integers(0, 2 if kind == "bool" else 5, 50).astype(dtype) for _ in range(2)]
    expected = np.empty_like(rows[0])
    reduce_arrays(rows, [expected], op)
    type_, operator = (fake_nccl.CONSTANTS[name] for name in found)
    seen = [row.view(fake_nccl._KINDS[type_]) for row in rows]
    np.testing.assert_array_equal(fake_nccl._combine(seen, operator).view(dtype), expected)
    # A rank that has run out of data changes nothing.
    neutral = np.full(50, nccl_types.neutral(op, dtype), dtype)
    if op is not ReduceOp.AVG:
        alone = fake_nccl._combine([seen[0], neutral.view(seen[0].dtype)], operator)
        np.testing.assert_array_equal(alone.view(dtype), rows[0])


# ---- what is asked -----------------------------------------------------------------------------


@pytest.fixture
def ranks(monkeypatch):
    """Runs `check(comm, give, library)` on ranks with a stand-in GPU each; `give` puts arrays there."""

    def run(world_size, check):
        library = fake_nccl.Library()

        def on_gpu(comm):
            made = TransportCommunicator(NcclTransport(comm._transport, comm.rank, library))
            with made, fake_cupy.Device(comm.rank):
                place = as_device(f"cuda:{comm.rank}")
                return check(made, lambda array: move(np.asarray(array), place), library)

        with fake_cupy.installed(monkeypatch, world_size):
            run_ranks(world_size, on_gpu)
        return library

    return run


def names(library, rank=0):
    return [call.name for call in fake_nccl.calls_of(library, rank)]


def test_a_bucket_is_one_call_in_place_on_the_ranks_own_gpu(ranks):
    def check(comm, give, library):
        bucket = give(np.full(1000, comm.rank + 1, np.float32))
        comm.all_reduce(bucket[100:900], "avg", name="bucket").wait()
        values = to_host(bucket)
        assert (values[100:900] == 1.5).all()
        assert (values[:100] == comm.rank + 1).all()

    library = ranks(2, check)
    for rank in range(2):
        first, reduced, last = fake_nccl.calls_of(library, rank)
        assert (first.name, first.size, first.gpu) == ("NcclCommunicator", 2, rank)
        assert (reduced.name, reduced.count) == ("allReduce", 800)
        assert (reduced.datatype, reduced.op) == (7, 4)  # NCCL_FLOAT32, NCCL_AVG
        assert last.name == "destroy"


@pytest.mark.parametrize(
    ("world_size", "dtype", "op", "divides"),
    [(2, np.float32, 4, False), (3, np.float32, 0, True), (3, np.float16, 4, False)],
)
def test_averages_are_ncclS_where_that_is_exact_or_a_sum_would_overflow(
    ranks, world_size, dtype, op, divides
):
    def check(comm, give, library):
        array = give(np.full(4, 30000, dtype))
        comm.all_reduce(array, "avg").wait()
        np.testing.assert_allclose(to_host(array).astype(float), 30000, rtol=2e-3)

    library = ranks(world_size, check)
    (call,) = fake_nccl.calls_of(library, 0, "allReduce")
    assert call.op == op


def test_parts_are_one_group_of_bytes_without_the_empty_ones_and_the_own(ranks):
    lengths = [[0, 3, 1], [2, 5, 0], [0, 4, 2]]  # [from][to]

    def check(comm, give, library):
        mine = lengths[comm.rank]
        outs = [give(np.zeros(row[comm.rank], np.int16)) for row in lengths]
        comm.all_to_all_uneven(outs, [give(np.full(n, comm.rank, np.int16)) for n in mine]).wait()
        for source, out in enumerate(outs):
            assert to_host(out).tolist() == [source] * lengths[source][comm.rank]

    library = ranks(3, check)
    sends = {(r, c.peer, c.count) for r in range(3) for c in fake_nccl.calls_of(library, r, "send")}
    assert sends == {(0, 1, 6), (0, 2, 2), (1, 0, 4), (2, 1, 8)}
    received = {
        (c.peer, r, c.count) for r in range(3) for c in fake_nccl.calls_of(library, r, "recv")
    }
    assert received == sends


def test_what_nccl_cannot_reduce_is_gathered_in_pieces_of_limited_size(ranks, monkeypatch):
    monkeypatch.setattr(nccl_moves, "_SCRATCH_NBYTES", 2 * 8 * 400)

    def check(comm, give, library):
        values = np.arange(1000.0)
        values[comm.rank] = np.nan
        array = give(values)
        comm.all_reduce(array, "max").wait()
        found = to_host(array)
        assert np.isnan(found[:2]).all()  # NCCL would have passed over them
        assert (found[2:] == np.arange(2, 1000)).all()

    library = ranks(2, check)
    counts = [call.count for call in fake_nccl.calls_of(library, 1, "allGather")]
    assert counts == [400 * 8, 400 * 8, 200 * 8]


def test_nccl_waits_for_the_callers_stream_and_whoever_waits_for_nccl(ranks):
    def check(comm, give, library):
        array = give(np.ones(3))
        comm.all_reduce(array).wait()  # connects
        fake_cupy.LOG.clear()
        work = comm.all_reduce(array, async_op=False)
        assert fake_cupy.LOG == [
            ("record", 0),  # what the caller's stream was given before the call
            ("wait", 0, 0),  # NCCL's stream waits for that,
            ("record", 0),  # and marks its end,
            ("wait", 0, 0),  # which the caller's stream waits for
        ]
        fake_cupy.LOG.clear()
        work.wait()  # on another stream, say
        assert fake_cupy.LOG == [("wait", 0, 0)]

    ranks(1, check)


def test_parts_of_a_group_connect_for_themselves(ranks):
    def check(comm, give, library):
        part = comm.split(comm.rank % 2)
        array = give(np.full(2, comm.rank))
        part.all_reduce(array).wait()
        assert to_host(array).tolist() == [2, 2] if comm.rank % 2 == 0 else [1, 1]

    library = ranks(3, check)
    sizes = [c.size for c in fake_nccl.calls_of(library, 0, "NcclCommunicator")]
    assert sorted(sizes) == [1, 2]  # rank 0 of each part
    everywhere = [name for _, name, _ in library.calls]
    assert everywhere.count("NcclCommunicator") == everywhere.count("destroy") == 3


def test_nothing_is_connected_for_the_hosts_arrays_and_for_messages(ranks):
    def check(comm, give, library):
        comm.all_reduce(np.ones(3)).wait()
        if comm.rank == 0:
            comm.send(give(np.arange(3)), 1, tag=5).wait()
        else:
            room = give(np.zeros(3, int))
            comm.recv(room, None, tag=5).wait()
            assert to_host(room).tolist() == [0, 1, 2]
        comm.barrier()

    assert ranks(2, check).calls == []


def test_ranks_without_data_take_part_in_what_the_others_reduce(ranks):
    def check(comm, give, library):
        if comm.rank == 2:
            assert comm.join().shadowed == 4
            return
        for op, dtype, expected in (
            ("avg", np.float32, 1.5),
            ("avg", ml_dtypes.bfloat16, 1.5),
            ("min", np.int32, 1),
        ):
            array = give(np.full(5, comm.rank + 1, dtype))
            comm.all_reduce(array, op, joinable=True).wait()
            assert to_host(array).astype(float).tolist() == [expected] * 5
        buffer = give(np.full(3, comm.rank))
        comm.broadcast(buffer, None, joinable=True).wait()
        assert to_host(buffer).tolist() == [0] * 3
        comm.join()

    ranks(3, check)


def test_an_array_on_another_gpu_than_the_ranks_is_refused_by_name(ranks):
    def check(comm, give, library):
        far = move(np.ones(2), as_device(f"cuda:{1 - comm.rank}"))
        with pytest.raises(
            ValueError, match=rf"lives on cuda:{1 - comm.rank}.*from cuda:{comm.rank}"
        ):
            comm.all_reduce(far)
        with pytest.raises(ValueError, match=r"all_gather was given arrays on cuda:\d and cpu"):
            comm.all_gather(np.ones((2, 2)), give(np.ones(2)))

    ranks(2, check)


def test_a_host_array_here_and_a_gpus_array_there_is_a_mismatch(ranks):
    def check(comm, give, library):
        array = np.ones(3) if comm.rank else give(np.ones(3))
        with pytest.raises(CommunicatorError, match="on GPUs"):
            comm.all_reduce(array).wait()

    ranks(2, check)


def test_the_stream_that_was_chosen_stays_the_current_one(ranks):
    def check(comm, give, library):
        array, cupy = give(np.ones(3)), cuda.library().cupy
        before, chosen = cupy.cuda.get_current_stream(), fake_cupy._Stream(comm.rank)
        chosen.use()
        comm.all_reduce(array).wait()
        assert cupy.cuda.get_current_stream() is chosen
        before.use()

    ranks(2, check)


# ---- capture -----------------------------------------------------------------------------------


def test_a_captured_call_runs_on_the_capturing_thread_and_is_not_watched(ranks):

    def check(comm, give, library):
        array, stream = give(np.ones(3)), fake_cupy._Stream(comm.rank)
        watched = []
        comm._transport._flights.add = lambda *args: watched.append(args)
        with stream:
            stream.begin_capture(2)
            with pytest.raises(CommunicatorError, match="make one before the capture"):
                comm.all_reduce(array)
            stream.end_capture()
            comm.all_reduce(array).wait()
            assert len(watched) == 1
            seen = []
            comm.add_listener(lambda work: seen.append(threading.current_thread()))
            stream.begin_capture(2)
            comm.all_reduce(array)
            stream.end_capture()
        assert seen == [threading.current_thread()]
        assert len(watched) == 1

    ranks(2, check)
