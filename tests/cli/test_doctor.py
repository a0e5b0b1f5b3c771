"""`dptrain doctor` reports what it found out on this machine, and fails where something needed fails."""

import sys

import numpy
import pytest

import dptrain
from dptrain.cli import doctor
from dptrain.cli.main import main


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
