"""Which GPU a rank has, GPUs of one process, and why there are none. See `test_nccl.py`."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import fake_cupy
import fake_nccl
import numpy as np
import pytest

from dptrain.comm import (
    gpus,
    nccl,
    nccl_local,
    run_ranks,
)
from dptrain.core import cuda
from dptrain.core.arrays import device_of, move, to_host
from dptrain.core.cuda import Probe
from dptrain.core.device import as_device

HEALTHY = Probe("14.2.0", toolkit=13020, driver=13000, count=2)


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
