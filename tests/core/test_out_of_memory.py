"""Exhausted memory of a GPU: what the error says, over a stand-in for CuPy; `pytest -m gpu`: on a GPU."""

import gc
import re
from contextlib import contextmanager
from types import SimpleNamespace

import fake_cupy
import pytest

import dptrain
from dptrain import nn
from dptrain.core import arrays, cuda, cuda_memory, holders, kernels
from dptrain.core.cuda import probe, trouble
from dptrain.core.kernels.cuda import launch
from dptrain.core.ops.activation import Relu
from dptrain.core.tensor import wrap

KIB = 2**10
OutOfMemoryError = dptrain.cuda.OutOfMemoryError
REASON = trouble(probe())


@pytest.fixture
def library(monkeypatch):
    gc.collect()
    with fake_cupy.installed(monkeypatch, count=1, memory=600 * KIB) as found:
        yield found


def told(kib=600, place="cuda"):
    """The lines of the error for a tensor that is too large."""
    with pytest.raises(OutOfMemoryError) as error:
        dptrain.zeros(1).to(place).expand(kib * KIB // 4).contiguous()
    return str(error.value).split("\n")


def shares(line):
    """KiB by kind of holder."""
    units = {"bytes": 1 / KIB, "KiB": 1, "MiB": KIB, "GiB": KIB**2}
    found = re.findall(r"(\w[\w ]*?) ([\d.]+) (\w+)[,.]", line.removeprefix("It is held by "))
    return {kind: float(number) * units[unit] for kind, number, unit in found}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 256), nn.ReLU())
        self.head = nn.Linear(256, 4, bias=False)
        self.register_buffer("table", dptrain.zeros(16, 64))

    def forward(self, x):
        return self.head(self.body(x))


def test_the_request_who_holds_how_much_and_the_largest_tensors(library):
    net = Net().cuda()
    optimizer = dptrain.optim.Adam(net.parameters())
    x = dptrain.ones(24, 64).cuda()
    net(x).sum().backward()
    optimizer.step()
    out = net(x)
    first, held, *tensors = told()
    assert first.startswith("CUDA out of memory. Tried to allocate 600.00 KiB. GPU 0 has a total ")
    assert "capacity of 600.00 KiB" in first
    # 64 x 256 + 256 + 4 x 256 numbers, twice for Adam, and the buffer; 64 bytes for the alignment.
    whole = 4 * (64 * 256 + 256 + 4 * 256) / KIB
    found = shares(held)
    assert found["parameters"] == pytest.approx(whole + 4, abs=1)
    assert found["gradients"] == pytest.approx(whole, abs=1)
    assert found["optimizer state"] == pytest.approx(2 * whole, abs=1)
    total = sum(found.values())
    assert total == pytest.approx(library.ledger.of(0).allocated / KIB, abs=0.05)
    assert found["activations and others"] == pytest.approx(total - 4 * whole - 4, abs=3)
    assert tensors == [
        "  64.00 KiB: float32 [256, 64], parameter body.0.weight of Net (Linear)",
        "  64.00 KiB: float32 [256, 64], gradient of parameter body.0.weight of Net (Linear)",
        "  64.00 KiB: float32 [256, 64], exp_avg of parameter body.0.weight of Net (Linear)",
        "  64.00 KiB: float32 [256, 64], exp_avg_sq of parameter body.0.weight of Net (Linear)",
        "  24.00 KiB: float32 [24, 256], made by ReluBackward0",
        "  6.00 KiB: float32 [24, 64], saved by AddmmBackward0",
    ]
    del out


def test_every_kind_of_holder_is_named(library):
    layer = nn.BatchNorm1d(2048).cuda()  # never used: its parameters are on their own
    loose = dptrain.ones(30 * KIB // 4).cuda()
    raw = library.cupy.zeros(20 * KIB // 4, "float32")
    w = dptrain.ones(40 * KIB // 4, device="cuda").requires_grad_()
    (w * 1).exp().sum().backward()
    lines = "\n".join(told())
    assert "float32 [10240], gradient of a tensor of shape [10240]" in lines
    assert "float32 [7680], a tensor without grad_fn" in lines
    assert "float32 [5120], an array that no tensor holds" in lines
    assert "float32 [2048], parameter weight of BatchNorm1d" in lines
    del loose, w
    assert "float32 [2048], buffer running_var of BatchNorm1d" in "\n".join(told())
    del layer, raw


def test_a_result_of_which_only_the_graph_knows_is_named_by_what_made_it(library):
    x = dptrain.ones(10 * KIB).cuda().requires_grad_()
    out = (x * 2).exp().log().sum()
    lines = told()
    assert any("made by ExpBackward0" in line for line in lines)
    mask = dptrain.ones(10 * KIB).cuda().requires_grad_()
    out2 = dptrain.where(mask > 0, x, mask).sum()
    assert any(re.search(r"bool \[10240\], (saved|made) by Where", line) for line in told())
    del out, out2


def test_views_of_one_memory_count_once_and_expanded_ones_as_little(library):
    x = dptrain.ones(20 * KIB).cuda()
    views = [x.reshape(20, KIB), x[: 10 * KIB], x.expand(5, 20 * KIB), x.reshape(5, -1).T]
    _, held, *tensors = told()
    assert shares(held)["activations and others"] == pytest.approx(80, abs=1)
    assert sum("80.00 KiB" in line for line in tensors) == 1
    assert len(tensors) <= 2
    del views


def test_memory_that_a_small_view_keeps_is_shown_whole(library):
    part = dptrain.ones(20, KIB).cuda()[:, :3]
    assert "  80.00 KiB: float32 [20, 1024], a tensor without grad_fn" in told()
    del part


def test_what_the_pool_does_not_use_and_cycles_are_given_back_before_giving_up(library):
    kept = dptrain.ones(100 * KIB).cuda()  # 400 KiB
    del kept
    assert library.cupy.get_default_memory_pool().total_bytes() >= 400 * KIB
    kept = dptrain.ones(120 * KIB).cuda()  # fits only without the former
    assert kept.shape == (120 * KIB,)
    ring = [kept]
    ring.append(ring)
    gc.disable()
    try:
        del kept, ring
        assert dptrain.ones(110 * KIB).cuda().shape == (110 * KIB,)
    finally:
        gc.enable()


def test_memory_is_usable_after_the_error(library):
    told()
    assert dptrain.ones(3).cuda().sum().item() == 3


def test_nothing_is_asked_of_the_collector_before_memory_is_exhausted(library, monkeypatch):
    monkeypatch.setattr(holders.gc, "get_objects", lambda: pytest.fail("on the good path"))
    monkeypatch.setattr(cuda_memory.gc, "collect", lambda: pytest.fail("on the good path"))
    net = Net().cuda()
    net(dptrain.ones(2, 64).cuda()).sum().backward()
    assert cuda.is_loaded()


def test_an_explanation_that_fails_does_not_hide_the_error(library, monkeypatch):
    def broken(index):
        raise KeyError("half-made")

    monkeypatch.setattr(cuda_memory, "_explain", broken)
    first, why = told()
    assert "Tried to allocate 600.00 KiB" in first
    assert "KeyError: 'half-made'" in why


class CUBLASError(RuntimeError):
    """As CuPy's, which is told by its words."""


def refuse(*args, **kwargs):
    raise CUBLASError("CUBLAS_STATUS_ALLOC_FAILED")


WORDS = r"CUDA out of memory\. CUBLASError: CUBLAS_STATUS_ALLOC_FAILED\. GPU 0 has a total"


def test_what_a_library_takes_past_the_pool_is_the_same_error(library, monkeypatch):
    x = dptrain.ones(3).cuda().requires_grad_()
    y = x.relu()
    monkeypatch.setattr(Relu, "forward", refuse)
    with pytest.raises(OutOfMemoryError, match=WORDS) as error:
        x.relu()
    assert "It is held by" in str(error.value)
    with pytest.raises(OutOfMemoryError, match=WORDS):
        nn.ReLU()(x)
    monkeypatch.setattr(Relu, "backward", refuse)
    with pytest.raises(OutOfMemoryError, match=WORDS):
        y.sum().backward()
    graph = dptrain.cuda.CUDAGraph()
    graph._graph = SimpleNamespace(launch=refuse)
    with pytest.raises(OutOfMemoryError, match=WORDS):
        graph.replay()
    monkeypatch.setattr(kernels, "_cuda", fake_cupy.real_kernels)
    monkeypatch.setattr(launch, "driver", refuse)
    monkeypatch.setattr(kernels, "_cuda", fake_cupy.real_kernels)
    weight = nn.Parameter(dptrain.ones(3).cuda())
    weight.grad = dptrain.ones(3).cuda()
    with pytest.raises(OutOfMemoryError, match=WORDS):
        dptrain.optim.Adam([weight]).step()


@pytest.mark.parametrize(
    ("words", "free", "is_memory"),
    [
        ("cudaErrorMemoryAllocation: out of memory", 2**30, True),
        ("CUDA_ERROR_OUT_OF_MEMORY: out of memory", 2**30, True),
        ("CURAND_STATUS_ALLOCATION_FAILED", 2**30, True),
        ("CUBLAS_STATUS_NOT_INITIALIZED", 2**20, True),
        ("CUBLAS_STATUS_NOT_INITIALIZED", 2**30, False),
        ("CUBLAS_STATUS_EXECUTION_FAILED", 2**20, False),
        ("NVRTC_ERROR_OUT_OF_MEMORY (1)", 2**20, False),
    ],
)
def test_other_errors_of_a_library_stay_what_they_are(library, monkeypatch, words, free, is_memory):
    def fail(*args):
        raise CUBLASError(words)

    x = dptrain.ones(3).cuda()
    library.cupy.cuda.runtime.memGetInfo = lambda: (free, 80 * 2**30)
    monkeypatch.setattr(Relu, "forward", fail)
    kind = OutOfMemoryError if is_memory else CUBLASError
    with pytest.raises(kind, match=re.escape(words)):
        x.relu()


def test_over_cupys_own_arrays_half_made_ones_among_them(monkeypatch):
    cupy = pytest.importorskip("cupy", reason="CuPy's own classes, no driver")
    found = cuda.CudaLibrary(cupy)
    monkeypatch.setitem(arrays.REMOTE, cupy.ndarray, found)
    found.ledger.take(0, 4096, 4096)
    memory, start = cupy.cuda.memory, 1 << 20  # nobody looks at what lies there
    held = cuda_memory.Held(SimpleNamespace(ptr=start), found.ledger, 0, 4096)
    block = memory.MemoryPointer(memory.UnownedMemory(start, 4096, held, 0), 0)
    weight = wrap(cupy.ndarray((32, 32), "float32", memptr=block))
    views = [wrap(weight._array[:, :4]), wrap(cupy.broadcast_to(weight._array[0], (1000, 32)))]

    def allocate(nbytes):  # CuPy has made the array already, without memory
        raise OutOfMemoryError("\n".join(holders.explain(0)))

    with memory_allocator(cupy, allocate), pytest.raises(OutOfMemoryError) as error:
        cupy.ndarray((3, 4), "float32")
    lines = str(error.value).split("\n")
    if REASON is not None:  # else there may be larger ones
        assert "  4.00 KiB: float32 [32, 32], a tensor without grad_fn" in lines
    assert not any("[32, 4]" in line or "[1000, 32]" in line or "[3, 4]" in line for line in lines)
    del views


@contextmanager
def memory_allocator(cupy, allocate):
    before = cupy.cuda.get_allocator()
    cupy.cuda.set_allocator(allocate)
    try:
        yield
    finally:
        cupy.cuda.set_allocator(before)


@pytest.mark.gpu
@pytest.mark.skipif(REASON is not None, reason=f"no GPU: {REASON}")
def test_on_a_gpu_what_is_held_adds_up_and_memory_is_usable_afterwards():
    net = nn.Sequential(nn.Linear(2048, 4096), nn.ReLU(), nn.Linear(4096, 8)).cuda()
    optimizer = dptrain.optim.Adam(net.parameters())
    x = dptrain.ones(512, 2048).cuda()
    net(x).sum().backward()
    optimizer.step()
    out = net(x)
    gc.collect()
    _, total = dptrain.cuda.mem_get_info()
    allocated = dptrain.cuda.memory_allocated()
    first, held, *tensors = told(total // KIB, "cuda")
    assert re.search(r"Tried to allocate \d+\.\d+ GiB\. GPU 0 has a total capacity of", first)
    parts = [f"{m:.2f} MiB" for m in (32,) * 4]
    assert [line.strip().split(":")[0] for line in tensors[:4]] == parts, tensors
    assert "parameter 0.weight of Sequential (Linear)" in "\n".join(tensors)
    assert "gradient of parameter 0.weight" in "\n".join(tensors)
    assert "exp_avg_sq of parameter 0.weight" in "\n".join(tensors)
    assert re.search(r"made by \w+Backward0", "\n".join(tensors))
    assert sum(shares(held).values()) == pytest.approx(allocated / KIB, rel=0.01)
    assert out.sum().isfinite().item()


@pytest.mark.gpu
@pytest.mark.skipif(REASON is not None, reason=f"no GPU: {REASON}")
def test_on_a_gpu_the_pool_within_its_limit_gives_back_what_it_does_not_use():
    gc.collect()
    dptrain.cuda.empty_cache()
    held, (_, total) = dptrain.cuda.memory_reserved(), dptrain.cuda.mem_get_info()
    dptrain.cuda.set_per_process_memory_fraction((held + (96 << 20)) / total)
    try:
        for mib in (64, 80, 48):  # by itself the pool keeps the former one and refuses
            assert dptrain.zeros(mib << 18, device="cuda")[-1].item() == 0
        with pytest.raises(OutOfMemoryError, match=r"Tried to allocate 112\.00 MiB"):
            dptrain.zeros(112 << 18, device="cuda")
    finally:
        dptrain.cuda.set_per_process_memory_fraction(1.0)
