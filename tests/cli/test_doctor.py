"""`dptrain doctor` reports what it found out on this machine, and fails where something needed fails."""

import sys
from types import SimpleNamespace

import numpy
import pytest

import dptrain
from dptrain.cli import doctor
from dptrain.cli.main import main
from dptrain.core import cuda
from dptrain.core.cuda import Probe


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
    assert "CUDA 13.2, driver up to 13.0" in lines[0].details
    assert lines[1].details == "NVIDIA H100, 80 GiB, sm_90"
