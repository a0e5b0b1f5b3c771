"""NCCL without a GPU: the binding that is called exists as it is called, and what is asked of it.

`fake_nccl` stands in for the library where a driver would be needed; what it recorded is compared with
what has to be asked. `test_nccl_contract.py` runs the whole contract over it.
"""

from __future__ import annotations

import ast
import inspect
import re
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import fake_cupy
import fake_nccl
import ml_dtypes
import numpy as np
import pytest

from dptrain.comm import (
    CommunicatorError,
    flights,
    gpus,
    nccl,
    nccl_local,
    nccl_types,
    run_ranks,
    thread,
)
from dptrain.comm.collectives import TransportCommunicator
from dptrain.comm.errors import CollectiveTimeoutError
from dptrain.comm.nccl import NcclTransport
from dptrain.comm.reduction import DTYPE_NAMES, ReduceOp, check_reducible, dtype_from_name
from dptrain.comm.serial import SerialTransport
from dptrain.core import cuda
from dptrain.core.arrays import device_of, move, to_host
from dptrain.core.cuda import Probe
from dptrain.core.device import as_device

HEALTHY = Probe("14.2.0", toolkit=13020, driver=13000, count=2)


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
    """(receiver, name, number of arguments or None) for all that `comm/nccl.py` uses of the binding."""
    sources = [Path(module.__file__).read_text() for module in (nccl, nccl_local)]
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
        (cuda.Stream, ("record", "wait_event", "is_capturing", "synchronize", "__enter__")),
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
    monkeypatch.setattr(nccl, "_SCRATCH_NBYTES", 2 * 8 * 400)

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


# ---- what never ends ---------------------------------------------------------------------------


class Endless:
    done = False
    index = 0

    def __init__(self, disable_timing=False):
        pass


@pytest.fixture
def stuck(monkeypatch):
    """Two ranks' communicators whose GPU never finishes anything."""
    monkeypatch.setattr(flights, "_LOOK_S", 0.01)
    with fake_cupy.installed(monkeypatch, 2) as library:
        library.cupy.cuda.Event = Endless
        made = []
        fake = fake_nccl.Library()
        for rank, comm in enumerate(thread.connect(2)):
            made.append(TransportCommunicator(NcclTransport(comm._transport, rank, fake)))
        yield made, fake
        for comm in made:
            comm.close()


def together(comms, call):

    threads = [threading.Thread(target=call, args=(comm,)) for comm in comms]
    for one in threads:
        one.start()
    for one in threads:
        one.join(20)


def reduce_something(timeout):
    def call(comm):
        with fake_cupy.Device(comm.rank):
            array = move(np.ones(3), as_device(f"cuda:{comm.rank}"))
            comm.all_reduce(array, name="grads", timeout=timeout).wait()

    return call


def next_error(comm):
    begin_s = time.monotonic()
    while time.monotonic() - begin_s < 10:
        if comm._transport._error is not None:
            with pytest.raises(CommunicatorError) as caught:
                comm.all_reduce(np.ones(2), async_op=False)
            return caught.value
        time.sleep(0.01)
    pytest.fail("nobody noticed")
    return None


def test_a_gpu_that_does_not_finish_in_time_is_aborted_and_named(stuck, capfd):
    comms, fake = stuck
    together(comms, reduce_something(timeout=0.3))
    error = next_error(comms[0])
    assert isinstance(error, CollectiveTimeoutError)
    assert re.search(r"\[rank 0/2\] all_reduce\(.*name='grads'.*timed out after 0.3 s", str(error))
    assert "NCCL was aborted" in capfd.readouterr().err
    assert "abort" in names(fake, 0)
    with pytest.raises(CommunicatorError, match="can no longer be used"):
        comms[0].all_reduce(np.ones(2))


def test_an_error_that_nccl_reports_later_is_raised_by_the_next_call(stuck):
    comms, fake = stuck
    together(comms, reduce_something(timeout=60))
    fake.trouble = "NCCL_ERROR_REMOTE_ERROR"
    assert "failed on the GPU: NCCL_ERROR_REMOTE_ERROR" in str(next_error(comms[1]))


def test_a_peer_that_left_is_not_waited_for_on_the_gpu(stuck, monkeypatch):
    monkeypatch.setattr(nccl, "_PARTING_S", 0.1)
    comms, _ = stuck
    together(comms, reduce_something(timeout=60))
    comms[1].close()
    assert "cannot end: rank 1 closed its communicator" in str(next_error(comms[0]))


@pytest.fixture
def machine(monkeypatch):
    """`machine(count)`: a machine with so many stand-in GPUs."""
    stack = []

    def make(count):
        entered = fake_cupy.installed(monkeypatch, count)
        stack.append(entered)
        return entered.__enter__()

    yield make
    for entered in stack:
        entered.__exit__(None, None, None)


# ---- GPUs of one process --------------------------------------------------------------------------


class Local:
    """A recorder in the place of the communicators of `initAll`: root 0 gets the sum at the end."""

    def __init__(self, library, group, index):
        self.library, self.group, self.index = library, group, index

    def reduce(self, sendbuf, recvbuf, count, datatype, op, root, stream):
        assert fake_cupy.current() == self.index
        assert (op, root) == (fake_nccl.CONSTANTS["NCCL_SUM"], 0)
        self.library.record(self.index, "reduce", count=count, receives=bool(recvbuf))
        values = fake_nccl._array(sendbuf, count, datatype)
        self.group.append((values, fake_nccl._array(recvbuf, count, datatype) if recvbuf else None))
        fake_nccl._local.group.append((len(self.group) > 0, self._end))

    def _end(self):
        total = sum(values for values, _ in self.group)
        for _, room in self.group:
            if room is not None:
                room[:] = total
        self.group.clear()


def test_gradients_of_one_process_are_summed_by_one_group_of_reductions(machine, monkeypatch):
    machine(3)
    library, made = fake_nccl.Library(), []

    def init_all(indices):
        made.append(indices)
        group = []
        return [Local(library, group, i) for i in indices]

    library.NcclCommunicator = SimpleNamespace(initAll=init_all)
    monkeypatch.setattr(nccl, "binding", lambda: library)
    nccl_local._connected.cache_clear()
    home = as_device("cuda:1")
    arrays = [move(np.full(5, v), as_device(f"cuda:{i}")) for i, v in ((0, 1.0), (2, 10.0))]
    for _ in range(2):
        total = nccl_local.sum_on(home, arrays)
        assert device_of(total) == home
        assert to_host(total).tolist() == [11.0] * 5
    assert made == [[1, 0, 2]]  # once
    assert [c for c in library.calls if c[1] == "reduce"][:3] == [
        (1, "reduce", {"count": 5, "receives": True}),
        (0, "reduce", {"count": 5, "receives": False}),
        (2, "reduce", {"count": 5, "receives": False}),
    ]
    nccl_local._connected.cache_clear()


def test_gpus_that_nccl_cannot_connect_are_left_to_copies_with_one_warning(machine, monkeypatch):
    machine(2)

    def init_all(indices):
        raise fake_nccl.NcclError("unhandled cuda error")

    library = fake_nccl.Library()
    library.NcclCommunicator = SimpleNamespace(initAll=init_all)
    monkeypatch.setattr(nccl, "binding", lambda: library)
    nccl_local._connected.cache_clear()
    there = move(np.ones(2), as_device("cuda:1"))
    with pytest.warns(UserWarning, match=r"cannot connect cuda:0, cuda:1 \(unhandled.*copies"):
        assert nccl_local.sum_on(as_device("cuda:0"), [there]) is None
    assert nccl_local.sum_on(as_device("cuda:0"), [there]) is None
    nccl_local._connected.cache_clear()


def test_what_nccl_does_not_serve_is_left_to_copies(machine, monkeypatch):
    machine(2)
    monkeypatch.setattr(nccl_local, "nccl_trouble", lambda: "no libnccl")
    nccl_local._connected.cache_clear()
    there = [move(np.ones(2), as_device(f"cuda:{i}")) for i in range(2)]
    assert nccl_local.sum_on(as_device("cuda:1"), there[:1]) is None  # no NCCL
    assert nccl_local.sum_on(as_device("cuda:0"), there[:1]) is None  # one GPU twice
    assert nccl_local.sum_on(as_device("cpu"), [np.ones(2)]) is None
    nccl_local._connected.cache_clear()


# ---- which GPU, and why none -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "local_rank", "chosen", "asked", "expected"),
    [
        (4, 2, 0, None, 2),
        (4, 2, 3, None, 3),  # set_device was called before
        (4, 2, 0, 1, 1),
        (4, 2, 0, "cuda", 2),
        (4, 2, 0, "cuda:3", 3),
        (1, 2, 0, None, 0),  # the launcher shows each rank another GPU
    ],
)
def test_a_rank_takes_the_gpu_of_its_local_rank(
    machine, count, local_rank, chosen, asked, expected
):
    found = machine(count)
    found.cupy.cuda.runtime.setDevice(chosen)
    assert gpus.choose(local_rank, asked) == expected
    assert found.current() == expected


def test_more_ranks_than_gpus_and_a_wrong_device_are_one_line(machine):
    machine(2)
    with pytest.raises(
        RuntimeError, match=r"'cuda:2' was asked for, .*cuda:0 to cuda:1.*dprun -n 2"
    ):
        gpus.choose(2)
    with pytest.raises(ValueError, match="has to be a CUDA device with backend 'nccl', got cpu"):
        gpus.choose(0, "cpu")


def test_ranks_that_share_a_gpu_are_named_on_every_rank(machine, monkeypatch):
    machine(1)
    words = r"ranks 0 and 1 share cuda:0 of .*one rank per GPU; 2 ranks run there on 1 .*dprun -n 1"

    def check(comm, version, allowed):
        if allowed:
            gpus.check_distinct(comm, 0, version)
            return
        with pytest.raises(RuntimeError, match=words):
            gpus.check_distinct(comm, 0, version)

    run_ranks(2, check, 22707, False)
    run_ranks(2, check, 23000, False)
    monkeypatch.setenv("NCCL_MULTI_RANK_GPU_ENABLE", "1")
    run_ranks(2, check, 22907, False)
    run_ranks(2, check, 23000, True)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (Probe(None), "CuPy is not installed"),
        (replace(HEALTHY, driver=0, count=0, status=35), "no NVIDIA driver"),
        (replace(HEALTHY, driver=12040, count=0, status=35), "built for CUDA 13, .* CUDA 12.4"),
        (replace(HEALTHY, count=0, status=100, visible=""), "CUDA_VISIBLE_DEVICES='' hides"),
    ],
)
def test_without_a_gpu_the_backend_says_why_in_one_line(found, words, monkeypatch):
    monkeypatch.setattr(cuda, "probe", lambda: found)
    with pytest.raises(
        RuntimeError, match=rf"backend 'nccl' was asked for, but .*{words}"
    ) as error:
        gpus.choose(0)
    assert "\n" not in str(error.value)
    assert "backend 'mpi'" in str(error.value)


@pytest.mark.parametrize("how", ["not built", "not found"])
def test_cupy_without_nccl_is_one_line_that_names_the_wheel(how, monkeypatch):
    def find(name):
        assert name == "cupy.cuda.nccl"
        if how == "not built":
            raise ImportError("No module named 'cupy_backends.cuda.libs.nccl'")
        return SimpleNamespace(available=False)

    monkeypatch.setattr(nccl, "import_module", find)
    with pytest.raises(RuntimeError, match=r"NCCL|libnccl") as error:
        nccl.binding()
    assert "dptrain[cuda13]" in str(error.value)
    assert "\n" not in str(error.value)
