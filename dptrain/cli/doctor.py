"""`dptrain doctor`: what is installed on this machine, and whether ranks can talk to each other.

Owns: the checks and their wording. Every line is found out here and now; a check that fails says
what to do.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import dptrain
from dptrain.comm.default import nccl_trouble
from dptrain.core import cuda
from dptrain.core.kernels import describe, fingerprint
from dptrain.core.kernels.cuda import cudnn
from dptrain.cuda.devices import get_device_properties

#: Needed only on GPUs: of each line one, for CUDA 12 or 13.
_OPTIONAL = (
    ("cupy-cuda12x", "cupy-cuda13x"),
    ("nvidia-nccl-cu12", "nvidia-nccl-cu13"),
    ("nvidia-cudnn-cu12", "nvidia-cudnn-cu13"),
    ("nvidia-cudnn-frontend",),
)
_PACKAGES = ("numpy", "mpi4py", "numba", "ml_dtypes", "safetensors", "threadpoolctl")


_DRIVER = Path("/proc/driver/nvidia/version")


class Finding(NamedTuple):
    """One line of the report."""

    ok: bool
    what: str
    details: str


def _packages() -> Iterator[Finding]:
    for name in _PACKAGES:
        found = _version_of(name)
        yield Finding(found is not None, name, found or "not installed; reinstall dptrain")
    for names in _OPTIONAL:
        installed = [name for name in names if _version_of(name) is not None]
        for name in installed:
            # Two CuPys overwrite each other's files.
            clash = f"; beside {' and '.join(installed)}, keep one" if len(installed) > 1 else ""
            yield Finding(not clash or "cupy" not in name, name, f"{_version_of(name)}{clash}")
        if not installed:
            yield Finding(True, names[-1], "not installed (needed only on GPUs)")


def _version_of(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _machine() -> Iterator[Finding]:
    yield Finding(True, "dptrain", f"{dptrain.__version__}, Python {platform.python_version()}")
    yield Finding(True, "cores", f"{len(os.sched_getaffinity(0))} usable of {os.cpu_count()}")
    yield Finding(True, "kernels", fingerprint())
    yield Finding(True, "convolution", describe())


def _gpus() -> Iterator[Finding]:
    found = cuda.probe()
    reason = cuda.trouble(found)
    if reason is not None:
        # Nobody who has no driver, or did not install CuPy, asked for a GPU.
        wanted = found.cupy is not None and found.driver > 0
        yield Finding(not wanted, "GPUs", f"none: {reason}")
        return
    yield Finding(
        True,
        "CUDA",
        f"CuPy {found.cupy} for CUDA {cuda.release(found.toolkit)}; driver{_driver()} up to CUDA "
        f"{cuda.release(found.driver)}",
    )
    if found.visible is not None:
        yield Finding(
            True, "visible GPUs", f"{found.count}, by CUDA_VISIBLE_DEVICES={found.visible!r}"
        )
    for index in range(found.count):
        gpu = get_device_properties(index)
        size = f"{gpu.total_memory / 2**30:.0f} GiB, sm_{gpu.major}{gpu.minor}"
        yield Finding(True, f"cuda:{index}", f"{gpu.name}, {size}")


def _driver() -> str:
    """The number of the kernel's driver, where the kernel tells it."""
    try:
        text = _DRIVER.read_text()
    except OSError:
        return ""
    found = re.search(r"Kernel Module.*?\s(\d+(?:\.\d+)+)\s", text)
    return f" {found[1]}" if found else ""


def _gpus_at_work() -> Iterator[Finding]:
    """Whether each GPU computes: its memory, a product (cuBLAS), a kernel compiled now (NVRTC)."""
    for index in range(cuda.device_count()):
        try:
            x = dptrain.arange(6.0).reshape(2, 3).to(f"cuda:{index}")
            found = (x @ x.T + 1).sum().item()
            free, total = dptrain.cuda.mem_get_info(index)
        except Exception as error:  # of the driver, of libraries that are missing or do not fit
            text = f"cannot compute: {type(error).__name__}: {_first_line(str(error))}"
            yield Finding(False, f"cuda:{index} at work", text)
            continue
        memory = f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
        if free < total / 2:
            memory += "; other processes (nvidia-smi lists them) have the rest"
        right = found == 87
        text = "product and sum correct" if right else f"a sum that is 87 came out as {found}"
        yield Finding(right, f"cuda:{index} at work", f"{text}; {memory}")


def _first_line(text: str) -> str:
    return (text.strip() or "no message").splitlines()[0]


def _gpu_libraries() -> Iterator[Finding]:
    """What GPUs communicate and convolve with; of no interest where there is none."""
    count = cuda.device_count()
    if count == 0:
        return
    reason = nccl_trouble()
    if reason is not None:
        # One GPU has no other to talk to.
        yield Finding(count == 1, "NCCL", f"ranks' GPUs meet through the host's memory: {reason}")
    else:
        from dptrain.comm.nccl import binding

        found = binding()
        versions = [_version(v) for v in (found.get_version(), found.get_build_version())]
        yield Finding(True, "NCCL", f"{versions[0]} (CuPy was built with {versions[1]})")
    reason = cudnn.trouble()
    if reason is not None:
        yield Finding(True, "cuDNN", f"not used, own kernels serve, slower: {reason}")
    else:
        yield Finding(True, "cuDNN", _version(import_module("cudnn").backend_version()))


def _version(number: int) -> str:
    """NVIDIA's way to write a version: 91900 is 9.19.0."""
    return f"{number // 10000}.{number // 100 % 100}.{number % 100}"


def _gpus_for_ranks(ranks: int) -> Iterator[Finding]:
    count = cuda.device_count()
    if 0 < count < ranks:
        yield Finding(
            True,
            "GPUs for ranks",
            f"{ranks} ranks, {count} visible: NCCL takes one rank per GPU (dprun -n {count}); with backend 'mpi' more "
            "ranks share them through the host's memory",
        )


def _mpi_library() -> Iterator[Finding]:
    # In a process of its own: MPI may abort the process that loads it.
    code = "from mpi4py import MPI; print(MPI.Get_library_version().splitlines()[0])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    if found.returncode == 0:
        yield Finding(True, "MPI library", found.stdout.strip())
    else:
        reason = found.stderr.strip().splitlines()[-1] if found.stderr.strip() else "no message"
        yield Finding(
            False,
            "MPI library",
            f'cannot be loaded ({reason}); pip install "dptrain[mpi]", or load your cluster\'s MPI module',
        )


def _ranks(world_size: int) -> Iterator[Finding]:
    command = [
        sys.executable,
        "-m",
        "dptrain.launch",
        "-n",
        str(world_size),
        "-m",
        "dptrain.cli.probe",
    ]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=120)
    except subprocess.TimeoutExpired:
        yield Finding(False, f"{world_size} ranks", "did not answer within 120 s")
        return
    expected = f"sum {world_size * (world_size + 1) // 2}"
    ok = found.returncode == 0 and found.stdout.strip() == expected
    lines = (found.stderr or found.stdout).strip().splitlines()
    yield Finding(
        ok,
        f"{world_size} ranks",
        "started by dprun, all_reduce correct"
        if ok
        else f"exit {found.returncode}: {lines[-1] if lines else ''}",
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `dptrain doctor`."""
    parser.add_argument(
        "-n", "--ranks", type=int, default=2, help="ranks to start as a test; 0: none"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the report; 1 if something that is needed does not work."""
    checks: list[Callable[[], Iterator[Finding]]] = [
        _machine,
        _packages,
        _gpus,
        _gpus_at_work,
        _gpu_libraries,
        lambda: _gpus_for_ranks(args.ranks),
        _mpi_library,
    ]
    if args.ranks > 0:
        checks.append(lambda: _ranks(args.ranks))
    healthy = True
    for check in checks:
        for ok, what, details in check():
            healthy &= ok
            print(f"{'ok  ' if ok else 'FAIL'}  {what:14} {details}", flush=True)
    return 0 if healthy else 1
