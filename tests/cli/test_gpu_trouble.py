"""What goes wrong with GPUs, by cause: one line from `dptrain doctor`, one where a GPU is asked for.

Each cause is put where it arises: in what CUDA's runtime, CuPy's import or a library's loader answer.
"""

from types import SimpleNamespace

import fake_cupy
import fake_nccl
import numpy as np
import pytest

import dptrain
import dptrain.distributed as dist
from dptrain.cli import doctor
from dptrain.comm import gpus, nccl, run_ranks
from dptrain.core import cuda
from dptrain.core.kernels.cuda import cudnn


class RuntimeTrouble(RuntimeError):
    """In the place of CuPy's CUDARuntimeError: it carries CUDA's number of the error."""

    def __init__(self, status):
        self.status = status
        super().__init__(f"cudaError{status}: described by CUDA\nin more than one line")


def cupy_over(driver=13000, toolkit=13020, count=None, status=0):
    """A CuPy whose runtime answers like this; `status` is raised by the count of GPUs."""

    def device_count():
        if status:
            raise RuntimeTrouble(status)
        return count

    runtime = SimpleNamespace(
        runtimeGetVersion=lambda: toolkit,
        driverGetVersion=lambda: driver,
        getDeviceCount=device_count,
        CUDARuntimeError=RuntimeTrouble,
    )
    return SimpleNamespace(__version__="14.2.0", cuda=SimpleNamespace(runtime=runtime))


def broken_import(name):
    raise ImportError("libcublas.so.13: cannot open shared object file")


#: Cause -> (is CuPy found, what its import gives, CUDA_VISIBLE_DEVICES), words, is it a failure.
CAUSES = {
    "no CuPy": (
        False,
        None,
        None,
        r"CuPy is not installed; pip install \"dptrain\[cuda13\]\"",
        False,
    ),
    "no driver": (True, cupy_over(driver=0, status=35), None, "no NVIDIA driver was found", False),
    "driver of CUDA 11": (
        True,
        cupy_over(driver=11080, status=35),
        None,
        "too old.*CUDA 11.8",
        True,
    ),
    "driver too old": (True, cupy_over(driver=13000, status=35), None, "too old.*13.0.*13.2", True),
    "wrong wheel": (
        True,
        cupy_over(driver=12040, status=35),
        None,
        r"built for CUDA 13, but the driver runs CUDA 12.4.*\"dptrain\[cuda12\]\"",
        True,
    ),
    "broken CuPy": (
        True,
        broken_import,
        None,
        "CuPy cannot be imported: ImportError: libcublas",
        False,
    ),
    "no GPU": (True, cupy_over(status=100), None, "no GPU is visible to the driver", True),
    "hidden GPUs": (
        True,
        cupy_over(status=100),
        "",
        "CUDA_VISIBLE_DEVICES='' hides them all",
        True,
    ),
    "hidden by a number": (True, cupy_over(status=100), "9", "DEVICES='9' hides them all", True),
    "a failure of CUDA": (
        True,
        cupy_over(status=999),
        None,
        "CuPy 14.2.0: RuntimeTrouble: cudaE",
        True,
    ),
}


@pytest.fixture
def cause(monkeypatch, request):
    found, cupy, visible, words, fails = CAUSES[request.param]
    monkeypatch.setattr(cuda, "find_spec", lambda name: object() if found else None)
    monkeypatch.setattr(cuda, "import_module", cupy if cupy is broken_import else lambda name: cupy)
    real = cuda.settings()
    monkeypatch.setattr(
        cuda,
        "settings",
        lambda: SimpleNamespace(**{**vars_of(real), "cuda_visible_devices": visible}),
    )
    cuda.probe.cache_clear()
    yield words, fails
    cuda.probe.cache_clear()


def vars_of(settings):
    return {name: getattr(settings, name) for name in settings.__dataclass_fields__}


DOORS = {
    "a tensor": lambda: dptrain.zeros(2, device="cuda"),
    "a move": lambda: dptrain.zeros(2).to("cuda:1"),
    "a module": lambda: dptrain.nn.Linear(1, 1).cuda(),
    "set_device": lambda: dptrain.cuda.set_device(0),
    "a stream": lambda: dptrain.cuda.Stream(),
    "a graph": lambda: dptrain.cuda.CUDAGraph(),
    "backend nccl": lambda: dist.init_process_group("nccl"),
}


@pytest.mark.parametrize("cause", CAUSES, indirect=True)
def test_one_line_at_every_door_and_from_the_doctor(cause):
    words, fails = cause
    for door, ask in DOORS.items():
        with pytest.raises(RuntimeError, match=words) as error:
            ask()
        assert "\n" not in str(error.value), door
    assert not dptrain.cuda.is_available()
    assert dptrain.cuda.device_count() == 0
    (line,) = doctor._gpus()
    assert (line.what, line.ok) == ("GPUs", not fails)
    assert __import__("re").search(words, line.details)
    assert "\n" not in line.details
    assert list(doctor._gpu_libraries()) == []


# ---- GPUs are there, and something else is not ---------------------------------------------------


@pytest.fixture
def two_gpus(monkeypatch):
    with fake_cupy.installed(monkeypatch) as library:
        yield library


def without_nccl(name):
    raise ImportError(f"No module named {name!r}")


def unloadable_nccl(name):
    return SimpleNamespace(available=False)


@pytest.mark.parametrize(
    ("find", "words"),
    [(without_nccl, "CuPy has no NCCL"), (unloadable_nccl, "cannot load libnccl")],
)
def test_cupy_without_nccl(two_gpus, monkeypatch, find, words):
    monkeypatch.setattr(nccl, "import_module", find)
    with pytest.raises(RuntimeError, match=words) as error:
        dist.init_process_group("nccl")
    assert "\n" not in str(error.value)
    assert 'backend "mpi"' in str(error.value)
    line = next(line for line in doctor._gpu_libraries() if line.what == "NCCL")
    assert not line.ok
    assert words in line.details
    assert not dist.is_nccl_available()


def test_libraries_that_are_there_are_named_with_their_versions(two_gpus, monkeypatch):
    library = fake_nccl.Library()
    library.get_build_version = lambda: 23203
    frontend = SimpleNamespace(backend_version=lambda: 91900)
    monkeypatch.setattr(nccl, "import_module", lambda name: library)
    monkeypatch.setattr(cudnn, "find_spec", lambda name: object())
    monkeypatch.setattr(cudnn, "import_module", lambda name: frontend)
    monkeypatch.setattr(doctor, "import_module", lambda name: frontend)
    assert [(line.ok, line.what, line.details) for line in doctor._gpu_libraries()] == [
        (True, "NCCL", "2.27.7 (CuPy was built with 2.32.3)"),
        (True, "cuDNN", "9.19.0"),
    ]


def missing_library():
    raise RuntimeError("libcudnn.so.9: cannot open shared object file\nsearched in ...")


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (None, r"nvidia-cudnn-frontend is not installed.*\"dptrain\[cudnn\]\""),
        (object(), "libcudnn.so.9"),
    ],
)
def test_without_cudnn_own_kernels_serve_and_one_warning_says_so(
    two_gpus, monkeypatch, spec, words
):
    monkeypatch.setattr(cudnn, "find_spec", lambda name: spec)
    frontend = SimpleNamespace(backend_version=missing_library)
    monkeypatch.setattr(cudnn, "import_module", lambda name: frontend)
    monkeypatch.setattr(cudnn, "_library", [])
    array = dptrain.zeros(1, 1, 2, 2).to("cuda")._array
    with pytest.warns(UserWarning, match=words) as seen:
        found = [cudnn.available(array) for _ in range(2)]
    assert found == [None, None]
    assert len(seen) == 1
    assert "\n" not in str(seen[0].message)
    line = next(line for line in doctor._gpu_libraries() if line.what == "cuDNN")
    assert line.ok  # slower, but right
    assert "own kernels" in line.details


def test_a_number_beyond_the_gpus(two_gpus):
    words = r"'cuda:2' was asked for, but this process sees GPUs cuda:0 to cuda:1"
    for ask in (
        lambda: dptrain.zeros(2).to("cuda:2"),
        lambda: dptrain.cuda.set_device(2),
        lambda: gpus.choose(2),  # the third rank of the host
    ):
        with pytest.raises(RuntimeError, match=words) as error:
            ask()
        assert "\n" not in str(error.value)


def test_more_ranks_than_gpus_is_a_line_from_the_doctor(two_gpus):
    assert list(doctor._gpus_for_ranks(2)) == []
    (line,) = doctor._gpus_for_ranks(3)
    assert "3 ranks, 2 visible" in line.details
    assert "dprun -n 2" in line.details


def test_tensors_on_two_devices_are_named_with_the_operation(two_gpus):
    a, b = dptrain.ones(2).to("cuda:0"), dptrain.ones(2).to("cuda:1")
    for name, call in (
        ("add", lambda: a + b),
        ("matmul", lambda: a @ b),
        ("where", lambda: dptrain.where(a > 0, a, b)),
    ):
        with pytest.raises(RuntimeError, match=r"cuda:0 and cuda:1|cuda:1 and cuda:0") as error:
            call()
        assert "\n" not in str(error.value), name

    def check(comm):
        with pytest.raises(ValueError, match=r"all_gather was given arrays on cuda:1 and cuda:0"):
            comm.all_gather(dptrain.ones(1, 2).to("cuda:0")._array, b._array)

    run_ranks(1, check)
    assert np.asarray(a.cpu().numpy()).tolist() == [1.0, 1.0]
