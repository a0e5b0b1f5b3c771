"""CUDA devices without a GPU: what is said when there is none, and guards and copies over a stand-in."""

import copy
import gc
import pickle
from dataclasses import replace

import fake_cupy
import numpy as np
import pytest
from op_samples import SAMPLES
from test_ops import as_list, build, ours, resolve

import dptrain
from dptrain.core import cuda, kernels
from dptrain.core.arrays import address, device_of, move, namespace_of, namespace_on, to_host
from dptrain.core.cuda import Probe, trouble
from dptrain.core.cuda_memory import Ledger, OutOfMemoryError, counting_allocator
from dptrain.core.device import as_device, device
from dptrain.core.kernels.cuda import cudnn, launch
from dptrain.core.ops.shape import Embed

HEALTHY = Probe("14.2.0", toolkit=13020, driver=13000, count=2)


@pytest.fixture
def library(monkeypatch):
    with fake_cupy.installed(monkeypatch) as found:
        yield found


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (Probe(None), r"CuPy is not installed; pip install \"dptrain\[cuda13\]\""),
        (replace(HEALTHY, driver=0, count=0, status=35), "no NVIDIA driver was found"),
        (replace(HEALTHY, driver=11080, count=0, status=35), "runs CUDA 11.8.*update the driver"),
        (
            replace(HEALTHY, driver=12040, count=0, status=35),
            r"built for CUDA 13, but the driver runs CUDA 12.4.*dptrain\[cuda12\]",
        ),
        (replace(HEALTHY, driver=13000, count=0, status=35), "runs CUDA 13.0, .* uses CUDA 13.2"),
        (replace(HEALTHY, count=0, status=100), "no GPU is visible to the driver"),
        (replace(HEALTHY, count=0, status=100, visible=""), "CUDA_VISIBLE_DEVICES='' hides"),
        (replace(HEALTHY, count=0, status=100, visible="7"), "CUDA_VISIBLE_DEVICES='7' hides"),
        (
            Probe("", error="ImportError: libcublas.so.13: cannot open"),
            "CuPy cannot be imported: ImportError: libcublas",
        ),
        (replace(HEALTHY, count=0, status=999, error="E: unknown error"), "unknown error"),
    ],
)
def test_why_there_is_no_gpu_is_one_line_at_every_door(found, words, monkeypatch):
    reason = trouble(found)
    assert "\n" not in reason
    monkeypatch.setattr(cuda, "probe", lambda: found)
    for ask in (
        lambda: dptrain.zeros(2, device="cuda"),
        lambda: dptrain.zeros(2).cuda(),
        lambda: dptrain.zeros(2).to("cuda:1"),
        lambda: dptrain.nn.Linear(1, 1).cuda(),
    ):
        with pytest.raises(RuntimeError, match=words) as error:
            ask()
        assert "was asked for" in str(error.value)
        assert "\n" not in str(error.value)
    assert cuda.device_count() == 0


def test_a_healthy_machine_has_no_trouble_and_an_index_is_checked(monkeypatch):
    assert trouble(HEALTHY) is None
    monkeypatch.setattr(cuda, "probe", lambda: HEALTHY)
    assert cuda.device_count() == 2
    assert as_device("cuda:1") == device("cuda", 1)
    # Also what the third rank of a host with two GPUs is told.
    with pytest.raises(RuntimeError, match=r"sees GPUs cuda:0 to cuda:1; .*dprun -n 2.*% 2"):
        as_device("cuda:2")
    monkeypatch.setattr(cuda, "probe", lambda: replace(HEALTHY, count=1))
    with pytest.raises(RuntimeError, match="sees one GPU, cuda:0"):
        as_device(1)


def test_cuda_without_an_index_is_the_current_gpu(library):
    assert as_device("cuda") == device("cuda", 0)
    with library.on(1):
        assert as_device("cuda") == device("cuda", 1)
        assert dptrain.zeros(2).cuda().device == device("cuda", 1)


def test_questions_about_an_array_of_a_gpu(library):
    array = move(np.arange(6.0).reshape(2, 3), as_device("cuda:1"))
    assert type(array) is fake_cupy.ndarray
    assert device_of(array) == device("cuda", 1)
    assert address(array) == array.host.ctypes.data
    assert namespace_of(array) is namespace_on(device("cuda", 1))
    made = namespace_of(array).zeros(3)  # while GPU 0 is current
    assert device_of(made) == device("cuda", 1)
    np.testing.assert_array_equal(to_host(array), np.arange(6.0).reshape(2, 3))
    back = move(array, as_device("cpu"))
    assert type(back) is np.ndarray
    assert not np.shares_memory(back, array.host)


def test_a_copy_between_gpus_waits_for_its_source_and_its_source_for_it(library):
    array = move(np.arange(4.0), as_device("cuda:0"))
    fake_cupy.LOG.clear()
    moved = move(array, as_device("cuda:1"))
    assert device_of(moved) == device("cuda", 1)
    assert fake_cupy.LOG == [
        ("record", 0),
        ("wait", 1, 0),
        ("copy", 0, 1),
        ("record", 1),
        ("wait", 0, 1),
    ]
    assert move(moved, as_device("cuda:1")) is moved


def test_forward_and_backward_run_with_the_arrays_gpu_as_the_current_one(library):
    # The stand-in raises if any of this touches GPU 1 while GPU 0 is current.
    x = dptrain.arange(6.0).reshape(2, 3).to("cuda:1").requires_grad_()
    w = dptrain.ones(3, 2).to("cuda:1").requires_grad_()
    y = ((x @ w).relu() * 2 + x.sum()).mean()
    y.backward()
    assert y.device == x.grad.device == w.grad.device == device("cuda", 1)
    assert library.current() == 0
    plain = dptrain.arange(6.0).reshape(2, 3).requires_grad_()
    other = dptrain.ones(3, 2).requires_grad_()
    ((plain @ other).relu() * 2 + plain.sum()).mean().backward()
    np.testing.assert_array_equal(x.grad.cpu().numpy(), plain.grad.numpy())
    np.testing.assert_array_equal(w.grad.cpu().numpy(), other.grad.numpy())


def test_a_graph_over_two_gpus_and_the_host(library):
    x = dptrain.arange(3.0).requires_grad_()
    on_one = x.to("cuda:1") * 2
    on_zero = x.to("cuda:0") * 3 + on_one.to("cuda:0")
    on_zero.sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), [5.0, 5.0, 5.0])
    with pytest.raises(RuntimeError, match=r"found at least two devices, cuda:\d and cuda:\d"):
        on_one + on_zero
    with pytest.raises(RuntimeError, match="found at least two devices"):
        on_one + x


SCALAR_OPS = {
    "add": lambda x, s: x + s,
    "add, reversed": lambda x, s: s + x,
    "sub with alpha": lambda x, s: dptrain.sub(x, s, alpha=2),
    "div": lambda x, s: x / s,
    "pow": lambda x, s: x.abs() ** s,
    "maximum": lambda x, s: dptrain.maximum(x, s),
    "atan2": lambda x, s: dptrain.atan2(x, s),
    "lerp": lambda x, s: dptrain.lerp(x, x * 2, s.float()),
    "addcmul": lambda x, s: dptrain.addcmul(x, x, s),
    "where": lambda x, s: dptrain.where(x > 0, x, s),
}


@pytest.mark.parametrize("op", SCALAR_OPS)
def test_a_hosts_tensor_of_no_dimension_meets_a_gpus_as_in_pytorch(library, op):
    def run(place):
        x = dptrain.tensor([[-1.0, 0.5, 2.0]]).to(place).requires_grad_()
        s = dptrain.tensor(1.5, dtype=dptrain.float64, requires_grad=True)  # on the host
        out = SCALAR_OPS[op](x, s)
        out.sum().backward()
        assert out.device == x.grad.device == device(place)
        assert s.grad.device == device("cpu")
        assert s.grad.shape == ()
        return [t.detach().cpu().numpy() for t in (out, x.grad, s.grad)]

    for found, expected in zip(run("cuda:1"), run("cpu"), strict=True):
        assert found.dtype == expected.dtype  # it does not promote, either
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert library.current() == 0


def test_only_the_hosts_and_only_tensors_of_no_dimension_do(library):
    there, host = dptrain.ones(2).to("cuda:1"), dptrain.tensor(2.0)
    assert (there > host).tolist() == [False, False]
    assert (there[0] + host).device == device("cuda", 1)
    there += host
    assert there.tolist() == [3.0, 3.0]
    for call in (
        lambda: there + host.reshape(1),
        lambda: there + dptrain.tensor(2.0).to("cuda:0"),
        lambda: there[0] + dptrain.ones(2),
        lambda: dptrain.stack([there[0], host]),
        lambda: host.add_(there[0]),
    ):
        with pytest.raises(RuntimeError, match="found at least two devices"):
            call()
    assert host.item() == 2.0


def test_a_failing_operation_leaves_the_current_gpu_as_it_was(library):
    x = dptrain.zeros(2, 3).to("cuda:1")
    with pytest.raises(RuntimeError):
        x @ x
    assert library.current() == 0


def test_the_ledger_counts_what_lies_there_and_the_most_that_did():
    cupy, ledger = fake_cupy.make(), Ledger()
    allocate = counting_allocator(cupy, ledger)
    first, second = allocate(100), allocate(1000)
    with fake_cupy.Device(1):
        other = allocate(1)
    assert (ledger.of(0).allocated, ledger.of(1).allocated) == (512 + 1024, 512)
    del first
    gc.collect()
    assert ledger.of(0).allocated == 1024
    assert ledger.of(0).peak_allocated == 1536
    ledger.reset_peak(0, reserved=2048)
    assert (ledger.of(0).peak_allocated, ledger.of(0).peak_reserved) == (1024, 2048)
    del second, other
    gc.collect()
    assert ledger.of(0).allocated == ledger.of(1).allocated == 0


def test_exhausted_memory_is_one_error_that_says_how_much():
    cupy, ledger = fake_cupy.make(), Ledger()
    allocate = counting_allocator(cupy, ledger)
    held = allocate(2**19)
    with pytest.raises(
        OutOfMemoryError, match=r"Tried to allocate 1\.00 MiB.*512\.00 KiB is alloc"
    ):
        allocate(2**20)
    assert isinstance(OutOfMemoryError(), RuntimeError)  # as PyTorch's
    del held


def test_arrays_of_a_gpu_are_served_by_the_cuda_kernels_with_that_gpu_current(library, monkeypatch):
    started = []

    def driver(program, kernel, declared, grid, block, values):
        started.append((program.family, kernel, program.kind, library.current()))

    monkeypatch.setattr(launch, "driver", driver)
    monkeypatch.setattr(kernels, "_cuda", fake_cupy.real_kernels)
    x = dptrain.zeros(2, 3, 8, 8).to("cuda:1").requires_grad_()
    dptrain.nn.functional.max_pool2d(x, 2).sum().backward()
    p = dptrain.nn.Parameter(dptrain.ones(5).to("cuda:1"))
    optimizer = dptrain.optim.RMSprop([p])
    (p * 2).sum().backward()
    optimizer.step()
    assert started == [
        ("order", "turn_few", "float32", 1),
        ("images", "max_pool", "float32", 1),
        ("images", "max_pool_scatter", "float32", 1),
        ("updates", "rmsprop", "float32", 1),
    ]
    assert x.grad.device == p.grad.device == device("cuda", 1)


def test_copies_of_a_tensor_stay_on_its_gpu(library):
    x = dptrain.arange(6.0).reshape(2, 3).to("cuda:1")
    p = dptrain.nn.Parameter(x)
    for made in (copy.deepcopy(x), copy.deepcopy(p), pickle.loads(pickle.dumps(x)), x.clone()):
        assert made.device == device("cuda", 1)
        assert made.tolist() == x.tolist()
        assert made.data_ptr() != x.data_ptr()
    assert library.current() == 0


def test_no_operation_touches_a_gpu_that_is_not_the_current_one(library, monkeypatch):
    monkeypatch.setattr(cudnn, "_library", [None])
    wrong, ran = set(), 0
    for name, calls in SAMPLES.items():
        if not calls:
            continue

        def there(array, arg):
            tensor = ours(array, arg).to("cuda:1")
            return tensor.requires_grad_() if arg.kind == "x" else tensor

        args, kwargs = build(calls[0], np.float32, there)
        try:
            outs = as_list(resolve(name, dptrain, dptrain.nn.functional)(*args, **kwargs))
            wanted = [o for o in outs if getattr(o, "requires_grad", False)]
            if wanted:
                sum(o.sum() for o in wanted).backward()
            ran += 1
        except fake_cupy.WrongDeviceError:
            wrong.add(name)
        except Exception:  # does not compute beside its arguments yet, or asks CuPy for cuBLAS
            continue
        finally:
            assert library.current() == 0, name
    assert not wrong
    assert ran > 0.7 * len(SAMPLES)


@pytest.mark.parametrize("place", ["cpu", "cuda:1"])
def test_gradients_of_parts_are_added_into_one_array(library, monkeypatch, place):
    """Not each one embedded in zeros of the size of the whole."""
    made = []
    embed = Embed.call
    monkeypatch.setattr(Embed, "call", lambda *args: made.append(args) or embed(*args))
    x = dptrain.arange(12.0).reshape(2, 6).to(place).requires_grad_()
    whole = x * 2
    a, b, c = (whole[:, i : i + 2] for i in (0, 2, 4))
    (a + b * 3 + c * c).sum().backward()
    assert len(made) == 1
    expected = np.tile(np.array([2.0, 2, 6, 6, 0, 0]), (2, 1))
    expected[:, 4:] = 8 * np.arange(12).reshape(2, 6)[:, 4:]
    np.testing.assert_array_equal(x.grad.cpu().numpy(), expected)
