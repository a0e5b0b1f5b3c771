"""`dptrain.cuda`: PyTorch's names, silent or refusing without a GPU, and its bookkeeping over a stand-in."""

import gc

import fake_cupy
import numpy as np
import pytest

import dptrain
from dptrain.core import cuda as core_cuda
from dptrain.core.cuda import Probe
from dptrain.core.ops.loss import check_classes

NEEDS_A_GPU = {
    "current_device": (),
    "set_device": (0,),
    "synchronize": (),
    "init": (),
    "get_device_name": (),
    "get_device_capability": (),
    "get_device_properties": (),
    "can_device_access_peer": (0, 1),
    "mem_get_info": (),
    "current_stream": (),
    "default_stream": (),
    "Stream": (),
    "Event": (),
    "CUDAGraph": (),
    "graph_pool_handle": (),
    "initial_seed": (),
    "get_rng_state": (),
    "set_per_process_memory_fraction": (0.5,),
    "device": (0,),
}
ANSWERS = {
    "is_available": False,
    "device_count": 0,
    "is_initialized": False,
    "is_bf16_supported": False,
    "memory_allocated": 0,
    "max_memory_allocated": 0,
    "memory_reserved": 0,
    "max_memory_reserved": 0,
    "memory_stats": {},
    "is_current_stream_capturing": False,
    "get_rng_state_all": [],
    "empty_cache": None,
    "reset_peak_memory_stats": None,
    "seed": None,
    "seed_all": None,
}


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(core_cuda, "probe", lambda: Probe("14.2.0", 13020, 0, status=35))
    monkeypatch.setattr(core_cuda, "_loaded", None)


@pytest.fixture
def library(monkeypatch):
    with fake_cupy.installed(monkeypatch) as found:
        yield found


@pytest.mark.parametrize(("name", "args"), NEEDS_A_GPU.items())
def test_what_needs_a_gpu_says_why_there_is_none(name, args, no_gpu):
    with pytest.raises(
        RuntimeError, match="no CUDA device is available: no NVIDIA driver"
    ) as error:
        getattr(dptrain.cuda, name)(*args)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("name", "answer"), ANSWERS.items())
def test_what_can_be_answered_without_a_gpu_is(name, answer, no_gpu):
    assert getattr(dptrain.cuda, name)() == answer


def test_seeding_and_the_empty_stream_context_do_nothing_without_a_gpu(no_gpu):
    before = dptrain.initial_seed()
    dptrain.cuda.manual_seed(5)
    dptrain.cuda.manual_seed_all(5)
    with dptrain.cuda.stream(None):
        pass
    assert dptrain.initial_seed() == before


@pytest.mark.oracle
def test_names_and_parameters_are_pytorchs():
    torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
    import inspect

    assert set(dptrain.cuda.__all__) - {"OutOfMemoryError"} <= set(torch.cuda.__all__) | {
        "StreamContext"
    }
    for name in dptrain.cuda.__all__:
        ours, theirs = getattr(dptrain.cuda, name), getattr(torch.cuda, name)
        if inspect.isfunction(ours) and inspect.isfunction(theirs):
            assert list(inspect.signature(ours).parameters) == list(
                inspect.signature(theirs).parameters
            ), name


def test_devices_over_the_stand_in(library):
    assert dptrain.cuda.is_available()
    assert dptrain.cuda.device_count() == 2
    with dptrain.cuda.device("cuda:1"):
        assert dptrain.cuda.current_device() == 1
        with dptrain.cuda.device(-1):
            assert dptrain.cuda.current_device() == 1
        assert dptrain.zeros(2, device="cuda").get_device() == 1
    assert dptrain.cuda.current_device() == 0
    with dptrain.cuda.device_of(dptrain.zeros(2, device="cuda:1")):
        assert dptrain.cuda.current_device() == 1
    with dptrain.cuda.device_of(dptrain.zeros(2)):
        assert dptrain.cuda.current_device() == 0
    dptrain.cuda.set_device(1)
    assert dptrain.cuda.current_device() == 1
    dptrain.cuda.set_device(-1)
    assert dptrain.cuda.current_device() == 1
    with pytest.raises(RuntimeError, match="'cuda:2' was asked for"):
        dptrain.cuda.set_device(2)
    with pytest.raises(ValueError, match="Expected a cuda device, but got: cpu"):
        dptrain.cuda.synchronize("cpu")


def test_memory_figures_over_the_stand_in(library):
    cupy = library.cupy
    held = cupy.allocator(3000)
    assert dptrain.cuda.memory_allocated() == dptrain.cuda.max_memory_allocated() == 3072
    assert dptrain.cuda.memory_allocated(1) == 0
    del held
    gc.collect()
    assert dptrain.cuda.memory_allocated("cuda:0") == 0
    assert dptrain.cuda.memory_reserved() == dptrain.cuda.max_memory_reserved() == 3072
    assert dptrain.cuda.max_memory_allocated() == 3072
    dptrain.cuda.reset_peak_memory_stats()
    assert dptrain.cuda.max_memory_allocated() == 0
    assert dptrain.cuda.memory_stats()["reserved_bytes.all.peak"] == 3072
    assert "reserved_bytes.all.current" in dptrain.cuda.memory_summary()
    with pytest.raises(dptrain.cuda.OutOfMemoryError, match="Tried to allocate"):
        cupy.allocator(2**30)


def test_events_refuse_to_measure_what_was_not_timed(library):
    start, end = dptrain.cuda.Event(enable_timing=True), dptrain.cuda.Event()
    assert start.query()
    with pytest.raises(RuntimeError, match="the end event was made without enable_timing"):
        start.elapsed_time(end)
    with pytest.raises(RuntimeError, match="the start event is not"):
        start.elapsed_time(dptrain.cuda.Event(enable_timing=True))


def test_a_graph_says_what_it_has_not_got(library):
    graph = dptrain.cuda.CUDAGraph()
    with pytest.raises(RuntimeError, match="without a preceding successful capture"):
        graph.replay()
    with pytest.raises(RuntimeError, match="no capture is running"):
        graph.capture_end()


def test_a_gpus_generator_starts_from_the_hosts_seed_and_goes_its_own_way(library, monkeypatch):
    host = dptrain.Generator().manual_seed(11)
    assert host.on(1).initial_seed() == 11
    assert str(host.on(1).device) == "cuda:1"
    host.on(1).manual_seed(5)
    assert (host.on(0).initial_seed(), host.on(1).initial_seed()) == (11, 5)
    host.manual_seed(12)
    assert host.on(1).initial_seed() == 12
    # The state on the GPU starts with the key and place of the host's stream, and travels.
    stream = host.on(0).stream()
    key = host.stream().bit_generator.state["state"]["key"]
    np.testing.assert_array_equal(stream.host_state(), [*key, 0, 0, 0])
    stream.restore(np.array([*key, 7, 1, 9], np.uint64))
    saved = host.on(0).get_state()
    other = dptrain.Generator("cuda:0")
    other.set_state(saved)
    np.testing.assert_array_equal(other.stream().host_state(), [*key, 7, 1, 9])
    with pytest.raises(RuntimeError, match="set_state expected"):
        dptrain.Generator("cuda:0").set_state(
            dptrain.tensor(np.frombuffer(b'{"seed": 1, "streams": [[0, 0, [1]]]}', np.uint8))
        )


def test_the_hosts_state_carries_the_gpus(library):
    # So that a recomputed segment, or a resumed run, draws the masks that it drew.
    host = dptrain.Generator().manual_seed(3)
    key = host.on(1).stream(1).host_state()[:2].tolist()
    host.on(1).stream(1).restore(np.array([*key, 40, 0, 0], np.uint64))
    saved = host.get_state()
    host.on(1).stream(1).restore(np.array([*key, 90, 0, 0], np.uint64))
    host.set_state(saved)
    np.testing.assert_array_equal(host.on(1).stream(1).host_state(), [*key, 40, 0, 0])


def test_what_a_capture_cannot_record_is_left_out_or_refused(library):
    stream = library.cupy.cuda.get_current_stream()
    target = dptrain.tensor([0, 9]).cuda()
    p = dptrain.nn.Parameter(dptrain.ones(2))
    p.grad = dptrain.ones(2)
    adam, sgd = dptrain.optim.Adam([p]), dptrain.optim.SGD([p], lr=0.5)
    with pytest.raises(IndexError, match="Target 9 is out of bounds"):
        check_classes("nll_loss", target._array, 3, -100)
    stream.capturing = True
    assert dptrain.cuda.is_current_stream_capturing()
    check_classes("nll_loss", target._array, 3, -100)
    with pytest.raises(RuntimeError, match=r"CUDA graph capture of step.*Adam"):
        adam.step()
    sgd.step()
    assert p.tolist() == [0.5, 0.5]


def test_a_capture_takes_memory_of_its_own_on_a_stream_of_its_own(library):
    cupy, graph = library.cupy, dptrain.cuda.CUDAGraph()
    outside = cupy.allocator
    with pytest.raises(RuntimeError, match="must be captured on a non-default stream"):
        graph.capture_begin()
    with dptrain.cuda.graph(graph):
        assert dptrain.cuda.is_current_stream_capturing()
        assert cupy.allocator is not outside
        held = cupy.allocator(3000)
    assert cupy.allocator is outside
    assert dptrain.cuda.memory_allocated() == 3072
    assert graph.pool().total_bytes() == 3072
    assert cupy.get_default_memory_pool().total_bytes() == 0
    assert not dptrain.cuda.is_current_stream_capturing()
    graph.replay()
    assert fake_cupy.LOG[-1] == ("launch", 0)
    with pytest.raises(RuntimeError, match=r"call reset\(\) first"), dptrain.cuda.graph(graph):
        pass
    assert cupy.allocator is outside
    graph.reset()
    with pytest.raises(ZeroDivisionError), dptrain.cuda.graph(graph):
        _ = 1 / 0
    assert cupy.allocator is outside
    assert cupy.cuda.get_current_stream().ptr == 0
    del held
