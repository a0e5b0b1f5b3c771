"""The command line: whose argument is whose, and one clear line for each misuse."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from dptrain.launch import cli, mpirun


@pytest.fixture
def script(tmp_path: Path) -> str:
    path = tmp_path / "train me.py"
    path.touch()
    return str(path)


def test_options_after_the_script_belong_to_the_script(script: str) -> None:
    arguments = ["-n", "7", "--timeout", "-m", "x", "--", "--help", "a b"]
    options = cli.parse(["-n", "2", "--verbose", script, *arguments])
    assert options.program == [script, *arguments]
    assert (options.nproc, options.timeout, options.verbose) == (2, None, True)


def test_options_after_a_module_belong_to_the_module() -> None:
    options = cli.parse(["--np", "3", "-m", "package.train", "-n", "9", "--verbose"])
    assert options.program == ["-m", "package.train", "-n", "9", "--verbose"]
    assert (options.nproc, options.verbose) == (3, False)


def test_torchruns_words_for_one_host_are_understood(script: str) -> None:
    options = cli.parse(["--standalone", "--nnodes=1", "--nproc_per_node=2", script, "--nnodes=9"])
    assert (options.nproc, options.program) == (2, [script, "--nnodes=9"])
    options = cli.parse(["--nproc-per-node", "3", "--max_restarts", "2", script])
    assert (options.nproc, options.max_restarts) == (3, 2)
    cores = len(os.sched_getaffinity(0))
    assert cli.parse(["--nproc-per-node=cpu", script]).nproc == cores
    gpus = mpirun.gpu_count(os.environ)
    assert cli.parse(["--nproc-per-node=auto", script]).nproc == (gpus or cores)


def test_torchruns_words_for_the_meeting_place_are_understood(script: str) -> None:
    options = cli.parse(
        "--nproc_per_node=1 --node_rank=0 --master_addr=localhost --master-port=29507 "
        f"--rdzv_backend=c10d --rdzv-endpoint=localhost:0 --rdzv_id=7 --max-restarts=3 -- {script}".split(
            " ", 9
        )
    )
    _, env, _, _ = cli.prepare(options, {"PATH": os.environ["PATH"], "MASTER_PORT": "1"})
    assert (env["MASTER_ADDR"], env["MASTER_PORT"]) == ("localhost", "29507")
    assert (env["TORCHELASTIC_RUN_ID"], env["TORCHELASTIC_MAX_RESTARTS"]) == ("7", "3")


def test_a_double_dash_may_precede_the_script(script: str) -> None:
    assert cli.parse(["--", script, "--x"]).program == [script, "--x"]


@pytest.mark.parametrize(("flags", "output"), [([], "rank0"), (["--all-output"], "all")])
def test_output_is_rank0_unless_asked(script: str, flags: list[str], output: str) -> None:
    assert cli.parse([*flags, script]).output == output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-n", "0", "SCRIPT"], ["-n 0", "at least 1"]),
        (["--node-rank", "1", "SCRIPT"], ["--node-rank 1", "--hostfile"]),
        (["--log-dir", "logs", "--tee", "0:3", "SCRIPT"], ["--tee 0:3", "for all ranks"]),
        (["--tee", "3", "SCRIPT"], ["--tee", "--log-dir"]),
        (["-n", "-3", "SCRIPT"], ["-n -3", "at least 1"]),
        (["-n", "x", "SCRIPT"], ["-n x", "whole number"]),
        (["-n", "1.5", "SCRIPT"], ["-n 1.5", "whole number"]),
        (["--threads", "0", "SCRIPT"], ["--threads 0", "at least 1"]),
        (["--timeout", "nan", "SCRIPT"], ["--timeout nan", "positive"]),
        (["--timeout", "-1", "SCRIPT"], ["--timeout -1", "positive"]),
        ([], ["no script given"]),
        (["-m"], ["module name"]),
        (["nowhere.py"], ["nowhere.py", "no such script"]),
        (["FOLDER"], ["is a directory"]),
        (["--hostfile", "nowhere", "SCRIPT"], ["--hostfile nowhere", "no such file"]),
        (["--nonsense", "SCRIPT"], ["--nonsense"]),
        (["--output", "some", "SCRIPT"], ["--output", "rank0"]),
        (["--nproc_per_node=some", "SCRIPT"], ["-n some", "whole number"]),
        (["--nnodes=2", "SCRIPT"], ["--nnodes 2", "--hostfile"]),
        (["--max-restarts=-1", "SCRIPT"], ["--max-restarts -1", "0 or more"]),
    ],
)
def test_misuse_is_one_line_and_status_2(
    arguments: list[str],
    words: list[str],
    script: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = {"SCRIPT": script, "FOLDER": str(tmp_path)}
    with pytest.raises(SystemExit) as stop:
        cli.parse([places.get(argument, argument) for argument in arguments])
    assert stop.value.code == 2
    text = capsys.readouterr().err
    assert text.count("\n") == 1
    assert all(word in text for word in ["dprun: error: ", *words])


def test_no_mpi_is_one_line_and_status_2(
    script: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("sys.prefix", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert cli.main([script]) == 2
    text = capsys.readouterr().err
    assert text.count("\n") == 1
    assert "dptrain[mpi]" in text


def test_version_and_help_need_no_script(capsys: pytest.CaptureFixture[str]) -> None:
    for flag, word in (("--version", "dprun"), ("--help", "exit status")):
        with pytest.raises(SystemExit) as stop:
            cli.parse([flag])
        assert stop.value.code == 0
        assert word in capsys.readouterr().out


def test_the_command_does_not_wait_for_the_library() -> None:
    code = (
        "import sys, dprun\n"
        "sys.argv = ['dprun', '--version']\n"
        "try:\n    dprun.main()\nexcept SystemExit:\n    pass\n"
        "print('dptrain.launch.cli' in sys.modules, 'numpy' in sys.modules)\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "True False"
