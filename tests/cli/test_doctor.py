"""`dptrain doctor` reports what it found out on this machine, and fails where something needed fails."""

import sys
from types import SimpleNamespace

import fake_cupy
import numpy
import pytest

import dptrain
from dptrain.cli import doctor
from dptrain.cli.main import main
from dptrain.core import cuda
from dptrain.core.cuda import Probe
from dptrain.core.ops.matmul import Matmul


def test_a_healthy_machine_passes_and_ranks_meet(job):
    done = job([sys.executable, "-m", "dptrain.cli", "doctor", "-n", 3])
    assert done.returncode == 0, done.stdout + done.stderr
    assert dptrain.__version__ in done.stdout
    assert numpy.__version__ in done.stdout
    assert "FAIL" not in done.stdout
    assert "conv_algo auto" in done.stdout
    assert "3 ranks" in done.stdout
    assert "all_reduce correct" in done.stdout


def test_what_does_not_work_is_named_and_fails(monkeypatch, capsys):
    monkeypatch.setattr(
        doctor, "_packages", lambda: iter([doctor.Finding(False, "numpy", "not installed")])
    )
    assert main(["doctor", "-n", "0"]) == 1
    assert "FAIL  numpy" in capsys.readouterr().out


def test_ranks_that_fail_are_reported(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    (finding,) = doctor._ranks(2)
    assert not finding.ok
    assert "exit 1" in finding.details


def test_a_subcommand_is_required(capsys):
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 2
    assert "required" in capsys.readouterr().err


def gpu_lines(monkeypatch, probe):
    monkeypatch.setattr(cuda, "probe", lambda: probe)
    return list(doctor._gpus())


def test_gpus_are_one_line_each_or_one_line_why_there_is_none(monkeypatch):
    none = Probe("14.2.0", 13020, driver=0, status=35)
    (line,) = gpu_lines(monkeypatch, none)
    assert line.ok  # nobody who has no driver asked for a GPU
    assert "no NVIDIA driver" in line.details
    (line,) = gpu_lines(monkeypatch, Probe("14.2.0", 13020, driver=12040, status=35))
    assert not line.ok
    assert "built for CUDA 13" in line.details
    properties = SimpleNamespace(name="NVIDIA H100", total_memory=80 * 2**30, major=9, minor=0)
    monkeypatch.setattr(doctor, "get_device_properties", lambda index: properties)
    lines = gpu_lines(monkeypatch, Probe("14.2.0", 13020, 13000, count=2))
    assert [line.what for line in lines] == ["CUDA", "cuda:0", "cuda:1"]
    assert "for CUDA 13.2; driver up to CUDA 13.0" in lines[0].details
    assert lines[1].details == "NVIDIA H100, 80 GiB, sm_90"


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.124.06  Wed Feb 26\n", " 570.124.06"),
        (
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release\nGCC 12.3.0",
            " 580.65.06",
        ),
        ("something else 1.0\n", ""),
        (None, ""),
    ],
)
def test_the_driver_has_the_number_that_the_kernel_tells(monkeypatch, tmp_path, text, number):
    path = tmp_path / "version"
    if text is not None:
        path.write_text(text)
    monkeypatch.setattr(doctor, "_DRIVER", path)
    assert doctor._driver() == number


def test_each_gpu_computes_and_says_how_much_is_free(monkeypatch):
    with fake_cupy.installed(monkeypatch) as found:
        first, second = doctor._gpus_at_work()
        assert first.ok
        assert (first.what, second.what) == ("cuda:0 at work", "cuda:1 at work")
        assert first.details == "product and sum correct; 0.0 of 0.0 GiB free"
        found.cupy.cuda.runtime.memGetInfo = lambda: (3 << 30, 80 << 30)
        first, _ = doctor._gpus_at_work()
        assert "3.0 of 80.0 GiB free; other processes" in first.details
        monkeypatch.setattr(Matmul, "forward", lambda *args: numpy.zeros((2, 2)))
        assert not next(doctor._gpus_at_work()).ok

        def broken(*args):
            raise RuntimeError("CuPy failed to load libnvrtc.so.13: cannot open\nmore lines")

        monkeypatch.setattr(Matmul, "forward", broken)
        first, _ = doctor._gpus_at_work()
        assert not first.ok
        assert first.details.startswith(
            "cannot compute: RuntimeError: CuPy failed to load libnvrtc"
        )
        assert "\n" not in first.details


@pytest.mark.parametrize(
    ("installed", "line", "ok"),
    [
        ([], "cupy-cuda13x not installed (needed only on GPUs)", True),
        (["cupy-cuda12x"], "cupy-cuda12x 1.0", True),
        (
            ["cupy-cuda12x", "cupy-cuda13x"],
            "cupy-cuda13x 1.0; beside cupy-cuda12x and cupy-cuda13x, keep one",
            False,
        ),
    ],
)
def test_of_the_packages_for_cuda_12_and_13_one_is_enough(monkeypatch, installed, line, ok):
    monkeypatch.setattr(doctor, "_version_of", lambda name: "1.0" if name in installed else None)
    lines = {f"{f.what} {f.details}": f.ok for f in doctor._packages() if "cupy" in f.what}
    assert lines[line] == ok
    assert len(lines) == max(1, len(installed))
