"""``dprun`` with a real mpirun: output, exit statuses, the first failure, and nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from dptrain.launch import mpirun

if TYPE_CHECKING:
    from .conftest import Dprun


def _has_mpirun() -> bool:
    try:
        mpirun.find()
    except mpirun.LaunchError:
        return False
    return True


pytestmark = [
    pytest.mark.launch,
    pytest.mark.skipif(not _has_mpirun(), reason="no mpirun: extra mpi not installed"),
]

_FACTS = """
import json, os, sys
names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "OMP_NUM_THREADS", "MASTER_ADDR")
facts = {name: os.environ.get(name) for name in names}
facts |= {"argv": sys.argv, "path0": sys.path[0], "name": __name__, "cwd": os.getcwd()}
facts["main"] = sys.modules["__main__"].__dict__ is globals()
print(json.dumps(facts))
"""
# Ready once every rank is: rank r makes the file r, then blocks for ever.
_BLOCK = """
import os, pathlib, signal, sys, time
{first}
pathlib.Path(os.environ["RANK"]).write_text(str(os.getpid()))
{then}
while True:
    time.sleep(60)
"""


def _all_facts(text: str) -> list[dict[str, object]]:
    lines = [line.partition("] ")[2] for line in text.splitlines()]
    return sorted(map(json.loads, lines), key=lambda facts: int(facts["RANK"]))


@pytest.mark.parametrize("nproc", [1, 4])
def test_ranks_know_who_they_are(dprun: Dprun, nproc: int) -> None:
    result = dprun.run("-n", str(nproc), "--output", "all", dprun.script(_FACTS))
    assert (result.returncode, result.stderr) == (0, "")
    facts = _all_facts(result.stdout)
    assert [f["RANK"] for f in facts] == [str(r) for r in range(nproc)]
    assert [f["LOCAL_RANK"] for f in facts] == [str(r) for r in range(nproc)]
    assert (
        {f["WORLD_SIZE"] for f in facts} == {f["LOCAL_WORLD_SIZE"] for f in facts} == {str(nproc)}
    )
    assert {f["MASTER_ADDR"] for f in facts} == {"127.0.0.1"}
    threads = max(1, len(os.sched_getaffinity(0)) // nproc)
    assert {f["OMP_NUM_THREADS"] for f in facts} == {str(threads)}


def test_scripts_run_as_under_python(dprun: Dprun, tmp_path: Path) -> None:
    script = dprun.script(_FACTS, "a folder/script.py")
    arguments = ["-n", "5", "--verbose", "two words", "", "$HOME", "*", "--output=all"]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    result = dprun.run("-n", "1", script, *arguments, cwd=elsewhere)
    plain = subprocess.run(
        [sys.executable, script, *arguments],
        cwd=elsewhere,
        capture_output=True,
        text=True,
        timeout=20,
    )
    ours, pythons = json.loads(result.stdout), json.loads(plain.stdout)
    for name in ("argv", "path0", "name", "cwd", "main"):
        assert ours[name] == pythons[name], name


def test_what_lies_in_the_working_folder_does_not_keep_ranks_from_starting(
    dprun: Dprun, tmp_path: Path
) -> None:
    script = dprun.script(_FACTS, "train/script.py")
    here = tmp_path / "here"
    here.mkdir()
    for name in ("pickle", "numpy", "socket"):  # under the names of modules that the start needs
        (here / f"{name}.py").write_text("raise ImportError('the working folder was searched')")
    result = subprocess.run(  # -P: as the installed command, which does not search it either
        [sys.executable, "-P", "-m", "dptrain.launch", "-n", "1", script],
        env=dprun.env,
        cwd=here,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert json.loads(result.stdout)["path0"] == str(Path(script).parent)


@pytest.mark.parametrize(("flags", "shown"), [((), True), (("-r", "3"), False), (("-t3",), True)])
def test_log_files_hold_what_every_rank_wrote(
    dprun: Dprun, tmp_path: Path, flags: tuple[str, ...], shown: bool
) -> None:
    script = dprun.script(
        "import os, sys\n"
        "rank, attempt = os.environ['RANK'], os.environ['TORCHELASTIC_RESTART_COUNT']\n"
        "sys.stdout.write(f'out {rank} {attempt} \\xe9'); sys.stdout.flush()\n"
        "print('err', rank, file=sys.stderr)\n"
        "if attempt == '0': sys.exit(3)\n"
    )
    logs = tmp_path / "logs"
    arguments = ["-n", "2", "--max-restarts", "1", "--log-dir", str(logs), *flags, script]
    result = dprun.run(*arguments)
    assert result.returncode == 0, result.stderr
    (run,) = logs.iterdir()
    assert sorted(path.name for path in run.iterdir()) == ["attempt_0", "attempt_1"]
    for rank in (0, 1):  # of the first attempt a rank may have been ended before it wrote
        folder = run / "attempt_1" / str(rank)
        assert (folder / "stdout.log").read_text() == f"out {rank} 1 \xe9"
        assert (folder / "stderr.log").read_text() == f"err {rank}\n"
    assert ("out 0 1" in result.stdout, "err 1" in result.stderr) == (shown, shown)


def test_modules_run_with_m(dprun: Dprun) -> None:
    dprun.script("", "package/__init__.py")
    dprun.script(_FACTS, "package/train.py")
    result = dprun.run("-n", "1", "-m", "package.train", "-n", "3")
    facts = json.loads(result.stdout)
    assert facts["argv"][1:] == ["-n", "3"]
    assert facts["argv"][0].endswith("train.py")
    assert facts["name"] == "__main__"
    assert facts["path0"] == str(dprun.folder)


def test_classes_of_the_script_can_be_pickled_by_spawned_workers(dprun: Dprun) -> None:
    script = dprun.script(
        "import multiprocessing\n"
        "class Item:\n    value = 21\n"
        "def double(item):\n    return item.value * 2\n"
        "if __name__ == '__main__':\n"
        "    with multiprocessing.get_context('spawn').Pool(1) as pool:\n"
        "        print(pool.apply(double, (Item(),)))\n"
    )
    result = dprun.run("-n", "1", script)
    assert (result.stdout, result.returncode) == ("42\n", 0), result.stderr


def test_rank_0_is_shown_byte_for_byte_and_others_errors_prefixed(dprun: Dprun) -> None:
    script = dprun.script(
        "import os, sys\n"
        "out, err = sys.stdout.buffer, sys.stderr.buffer\n"
        "if os.environ['RANK'] == '0':\n"
        "    out.write(b'\\r 50%\\r100%\\n\\xff\\x00 no newline')\n"
        "else:\n"
        "    out.write(b'hidden\\n')\n"
        "    err.write(b'oh\\nno')\n"
        "    out.flush(); err.flush()\n"
        "    os.system('echo from a child >&2')\n"
    )
    process = dprun.start("-n", "2", script)
    stdout, stderr = process.communicate(timeout=20)
    assert stdout == b"\r 50%\r100%\n\xff\x00 no newline"
    assert stderr == b"[rank 1] oh\n[rank 1] nofrom a child\n"
    assert process.returncode == 0


def test_all_output_prefixes_every_line(dprun: Dprun) -> None:
    script = dprun.script("import sys\nprint('a\\nb', end='')\nprint('e', file=sys.stderr)\n")
    result = dprun.run("-n", "2", "--all-output", script)
    expected = sorted(f"[rank {rank}] {word}" for rank in (0, 1) for word in "ab")
    assert sorted(result.stdout.splitlines()) == expected
    assert sorted(result.stderr.splitlines()) == ["[rank 0] e", "[rank 1] e"]


def test_output_larger_than_any_buffer_arrives_whole(dprun: Dprun) -> None:
    script = dprun.script("for i in range(30_000): print(i, 'x' * 20)\n")
    result = dprun.run("-n", "2", script)
    assert result.stdout == "".join(f"{i} {'x' * 20}\n" for i in range(30_000))


_RANK_1 = "import os, sys, ctypes, signal, time\nif os.environ['RANK'] == '1':\n    {do}\n"
_REST = {
    "asleep": "time.sleep(60)\n",
    "in a collective": "from mpi4py import MPI\nMPI.COMM_WORLD.Barrier()\n",
}


_WAYS = {
    "sys.exit(3)": (3, "sys.exit with status 3"),
    "sys.exit('a reason')": (1, "a reason"),
    "os._exit(7)": (7, "exit status 7"),
    "os.kill(os.getpid(), signal.SIGKILL)": (128 + 9, "killed by signal 9 (SIGKILL)"),
    "ctypes.string_at(0)": (128 + 11, "killed by signal 11 (SIGSEGV)"),
    "ctypes.CDLL(None)._exit(5)": (5, "status 5"),
}


@pytest.mark.parametrize(
    ("do", "rest"),
    [
        *((do, "in a collective") for do in _WAYS),
        ("sys.exit(3)", "asleep"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "asleep"),
    ],
)
def test_the_first_failing_rank_ends_the_job_with_its_status(
    dprun: Dprun, do: str, rest: str
) -> None:
    code, words = _WAYS[do]
    begin = "from mpi4py import MPI\n" if rest == "in a collective" else ""
    result = dprun.run("-n", "3", dprun.script(begin + _RANK_1.format(do=do) + _REST[rest]))
    assert result.returncode == code
    final = result.stderr[result.stderr.index("-" * 80) :]
    assert "rank 1 of 3 failed first" in final
    assert "stopped because of rank 1" in final
    assert words in final


def test_a_crash_report_is_not_lost_and_ends_the_block(dprun: Dprun) -> None:
    script = dprun.script(_RANK_1.format(do="ctypes.string_at(0)") + "time.sleep(60)\n")
    result = dprun.run("-n", "2", script)
    final = result.stderr[result.stderr.index("-" * 80) :]
    assert "Fatal Python error: Segmentation fault" in final
    assert final.rstrip().endswith('script.py", line 3 in <module>')


@pytest.mark.parametrize("rest", list(_REST))
def test_an_exceptions_traceback_comes_last_and_is_the_scripts_own(dprun: Dprun, rest: str) -> None:
    begin = "from mpi4py import MPI\n" if rest == "in a collective" else ""
    begin += "def deep():\n    raise ValueError('wrong shape')\n"
    text = begin + _RANK_1.format(do="deep()") + _REST[rest]
    result = dprun.run("-n", "2", dprun.script(text))
    assert result.returncode == 1
    final = result.stderr[result.stderr.index("Traceback") :].splitlines()
    assert final[-1] == "ValueError: wrong shape"
    files = [line.split('"')[1] for line in final if line.startswith("  File")]
    assert files == [str(dprun.folder / "script.py")] * 2
    assert result.stderr.count("wrong shape") == 3  # the headline, the source line, the last line


def test_a_syntax_error_in_the_script_shows_the_line(dprun: Dprun) -> None:
    result = dprun.run("-n", "1", dprun.script("x = 1\nif x\n"))
    assert result.returncode == 1
    assert "line 2" in result.stderr
    assert "launch" not in result.stderr


def test_the_cause_is_reported_not_its_consequence(dprun: Dprun) -> None:
    # Rank 1 fails because rank 0 did: it waits for the end of rank 0's process.
    script = dprun.script(
        "import os, pathlib, time\n"
        "if os.environ['RANK'] == '0':\n"
        "    pathlib.Path('pid').write_text(str(os.getpid()))\n"
        "    raise RuntimeError('cause')\n"
        "while not pathlib.Path('pid').exists() or not pathlib.Path('pid').read_text():\n"
        "    time.sleep(0.01)\n"
        "pid = pathlib.Path('pid').read_text()\n"
        "while 'Z' not in pathlib.Path('/proc', pid, 'stat').read_text():\n"
        "    time.sleep(0.0001)\n"
        "raise RuntimeError('consequence')\n"
    )
    result = dprun.run("-n", "2", script)
    assert "rank 0 of 2 failed first" in result.stderr
    assert result.stderr.endswith("RuntimeError: cause\n")


def test_a_clean_os_exit_is_no_failure(dprun: Dprun) -> None:
    result = dprun.run("-n", "2", dprun.script("import os\nprint('x', flush=True)\nos._exit(0)\n"))
    assert (result.returncode, result.stdout, result.stderr) == (0, "x\n", "")


def test_a_failing_child_is_not_the_rank(dprun: Dprun) -> None:
    script = dprun.script(
        "import os\n"
        "pid = os.fork()\n"
        "if pid == 0: raise SystemExit(9)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
    )
    result = dprun.run("-n", "1", script)
    assert (result.returncode, result.stdout) == (0, "9\n")


def _wait_for_ranks(dprun: Dprun, until: Callable[..., None], nproc: int) -> list[int]:
    files = [dprun.folder / str(rank) for rank in range(nproc)]
    until(lambda: all(file.exists() and file.read_text() for file in files), "all ranks run")
    return [int(file.read_text()) for file in files]


@pytest.fixture
def blocking(dprun: Dprun, until: Callable[..., None]) -> Iterator[Callable[..., subprocess.Popen]]:
    """Starts two ranks that block for ever, and returns once both do."""
    started = []

    def start(*options: str, first: str = "", then: str = "") -> subprocess.Popen[bytes]:
        script = dprun.script(_BLOCK.format(first=first, then=then))
        process = dprun.start("-n", "2", *options, script)
        started.append(process)
        _wait_for_ranks(dprun, until, 2)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        for pipe in (process.stdout, process.stderr):
            pipe.close()


_IGNORE = "for s in (2, 15): signal.signal(s, signal.SIG_IGN)"
_COLLECTIVE = "from mpi4py import MPI"


_IN_MPI = {"first": _COLLECTIVE, "then": "MPI.COMM_WORLD.recv()"}


@pytest.mark.parametrize(
    ("number", "ways"),
    [
        pytest.param(signal.SIGINT, {}, id="SIGINT"),
        pytest.param(signal.SIGTERM, {}, id="SIGTERM"),
        pytest.param(signal.SIGHUP, {}, id="SIGHUP"),
        pytest.param(signal.SIGINT, _IN_MPI, id="SIGINT in MPI"),
        pytest.param(signal.SIGTERM, _IN_MPI, id="SIGTERM in MPI"),
        pytest.param(signal.SIGINT, {"first": _IGNORE}, id="SIGINT ignored"),
    ],
)
def test_a_signal_ends_every_process(
    dprun: Dprun,
    blocking: Callable[..., subprocess.Popen[bytes]],
    number: int,
    ways: dict[str, str],
) -> None:
    process = blocking(**ways)
    process.send_signal(number)
    assert process.wait(10) == 128 + number
    assert dprun.leftovers() == []


def test_interrupted_scripts_may_clean_up(
    dprun: Dprun, blocking: Callable[..., subprocess.Popen[bytes]]
) -> None:
    begin = (
        "import atexit\n"
        "def on_interrupt(*_):\n"
        "    pathlib.Path('saved' + os.environ['RANK']).touch()\n"
        "    os._exit(0)\n"
        "signal.signal(signal.SIGINT, on_interrupt)\n"
    )
    process = blocking(first=begin)
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 130
    assert (dprun.folder / "saved0").exists()
    assert (dprun.folder / "saved1").exists()


def test_a_second_interrupt_does_not_wait(
    dprun: Dprun, blocking: Callable[..., subprocess.Popen[bytes]], until: Callable[..., None]
) -> None:
    notes = "signal.signal(2, lambda *_: pathlib.Path('noted' + os.environ['RANK']).touch())"
    process = blocking(first=notes)
    process.send_signal(signal.SIGINT)
    until(lambda: (dprun.folder / "noted0").exists(), "the first interrupt arrives")
    begun = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 130
    # A bound on an order, not on speed: the grace that a single interrupt gives is 2 s.
    assert time.monotonic() - begun < 2
    assert dprun.leftovers() == []


@pytest.mark.parametrize("first", ["", _COLLECTIVE, _IGNORE], ids=["plain", "MPI", "ignoring"])
def test_killing_dprun_itself_leaves_no_process(
    dprun: Dprun,
    blocking: Callable[..., subprocess.Popen[bytes]],
    until: Callable[..., None],
    first: str,
) -> None:
    process = blocking(first=first)
    process.kill()
    process.wait(10)
    until(lambda: dprun.leftovers() == [], "every process has ended", limit_s=5)


def test_children_of_ranks_end_with_the_job(dprun: Dprun) -> None:
    script = dprun.script(
        "import os, subprocess\n"
        "subprocess.Popen(['sleep', '60'])\n"
        "subprocess.Popen(['sleep', '60'], start_new_session=True)\n"
        "if os.environ['RANK'] == '1': raise ValueError\n"
        "subprocess.run(['sleep', '60'])\n"
    )
    assert dprun.run("-n", "2", script).returncode == 1
    assert dprun.leftovers() == []


def test_a_killed_mpirun_is_named(
    dprun: Dprun, blocking: Callable[..., subprocess.Popen[bytes]]
) -> None:
    process = blocking()
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[0]), signal.SIGKILL)
    _, stderr = process.communicate(timeout=10)
    assert process.returncode == 128 + 9
    assert b"mpirun was killed by SIGKILL" in stderr


def test_timeout_shows_the_stacks_of_every_rank(dprun: Dprun) -> None:
    script = dprun.script("import time\ndef stuck():\n    time.sleep(60)\nstuck()\n")
    result = dprun.run("-n", "2", "--timeout", "1.5", script)
    assert result.returncode == 124
    for rank in (0, 1):
        lines = [line for line in result.stderr.splitlines() if line.startswith(f"[rank {rank}]")]
        assert any("in stuck" in line for line in lines)
    assert "--timeout" in result.stderr.splitlines()[-1]


def test_dry_run_starts_nothing(dprun: Dprun) -> None:
    result = dprun.run("-n", "2", "--dry-run", dprun.script("open('ran', 'w')\n"), "an argument")
    assert result.returncode == 0
    assert not (dprun.folder / "ran").exists()
    assert result.stdout.rstrip().endswith("script.py 'an argument'")
    assert "OMP_NUM_THREADS=" in result.stdout


def test_jobs_beside_each_other_have_different_ports_and_a_given_one_stays(dprun: Dprun) -> None:
    script = dprun.script("pass\n")
    ports = set()
    for _ in range(3):
        result = dprun.run("-n", "2", "--dry-run", script)
        ports |= {line for line in result.stdout.splitlines() if line.startswith("MASTER_PORT=")}
    assert len(ports) > 1
    given = {**dprun.env, "MASTER_PORT": "29501"}
    result = dprun.run("-n", "2", "--dry-run", script, env=given)
    assert "MASTER_PORT" not in result.stdout


def test_a_failed_job_is_started_again_as_often_as_asked(dprun: Dprun) -> None:
    script = dprun.script(
        """
import os, pathlib, sys, time
count = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
printed = pathlib.Path(f"printed {sys.argv[1]} {count}")
if os.environ["RANK"] == "0":
    print("attempt", count, flush=True)
    printed.touch()
if count < int(sys.argv[1]):
    while os.environ["RANK"] == "0" or not printed.exists():
        time.sleep(0.01)
    raise ValueError(f"attempt {count} fails")
"""
    )
    done = dprun.run("-n", "2", "--max-restarts", "2", script, "1")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "attempt 0\nattempt 1\n"
    assert "ValueError: attempt 0 fails" in done.stderr
    assert done.stderr.splitlines()[-1] == "dprun: starting the job again (1 of 2)"
    done = dprun.run("-n", "2", "--max-restarts", "1", script, "9")
    assert done.returncode == 1
    assert done.stdout == "attempt 0\nattempt 1\n"
    assert done.stderr.count("starting the job again") == 1
    assert "ValueError: attempt 1 fails" in done.stderr


def test_a_job_that_is_stopped_is_not_started_again(dprun: Dprun) -> None:
    script = dprun.script("import time; print('runs', flush=True); time.sleep(60)\n")
    done = dprun.run("-n", "1", "--max-restarts", "5", "--timeout", "2", script)
    assert done.returncode == 124
    assert done.stdout == "runs\n"


def test_a_reader_that_leaves_is_a_broken_pipe_in_the_script(dprun: Dprun) -> None:
    process = dprun.start("-n", "1", dprun.script("while True: print('y' * 1000)\n"))
    assert process.stdout is not None
    process.stdout.read(10)
    process.stdout.close()
    process.stdout = None
    _, stderr = process.communicate(timeout=20)
    assert process.returncode == 1
    assert stderr.splitlines()[-1].startswith((b"BrokenPipeError", b"ConnectionResetError"))


def test_standard_input_reaches_rank_0(dprun: Dprun) -> None:
    script = dprun.script("import os\nif os.environ['RANK'] == '0': print(input()[::-1])\n")
    process = dprun.start("-n", "2", script, stdin=subprocess.PIPE)
    stdout, _ = process.communicate(b"hello\n", timeout=20)
    assert (stdout, process.returncode) == (b"olleh\n", 0)


def test_a_bare_clone_needs_no_installation(dprun: Dprun) -> None:
    clone = Path(mpirun.__file__).resolve().parent.parent
    script = dprun.script(
        "from dptrain.launch.protocol import Channel\nprint(Channel.current() is not None)\n"
    )
    result = subprocess.run(
        [sys.executable, "-m", "launch", "-n", "1", script],
        cwd=clone,
        env=dprun.env,
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert (result.stdout, result.stderr) == ("True\n", "")


def test_an_mpirun_that_loses_its_start_race_is_started_again(dprun: Dprun) -> None:
    real = mpirun.find()
    fake = dprun.folder / "mpirun"
    fake.write_text(
        "#!/bin/sh\n"
        f'[ "$1" = --version ] && exec {real} --version\n'
        f"if [ ! -e {dprun.folder}/raced ]; then\n"
        f"  touch {dprun.folder}/raced\n"
        '  echo "The PMIx server\'s listener thread failed to start. We cannot" >&2\n'
        "  exit 213\n"
        "fi\n"
        f'exec {real} "$@"\n'
    )
    fake.chmod(0o755)
    done = dprun.run("-n", "2", "--mpi", str(fake), dprun.script("print('ran')\n"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "ran\n", "")


def test_an_mpirun_that_never_starts_is_reported(dprun: Dprun) -> None:
    real = mpirun.find()
    fake = dprun.folder / "mpirun"
    fake.write_text(
        "#!/bin/sh\n"
        f'[ "$1" = --version ] && exec {real} --version\n'
        f"echo try >> {dprun.folder}/tries\n"
        'echo "The PMIx server\'s listener thread failed to start. We cannot" >&2\n'
        "exit 213\n"
    )
    fake.chmod(0o755)
    done = dprun.run("-n", "2", "--mpi", str(fake), dprun.script(""))
    assert done.returncode == 213
    assert "listener thread failed to start" in done.stderr
    assert done.stderr.endswith("mpirun ended with status 213 while 2 of 2 ranks had not started\n")
    assert (dprun.folder / "tries").read_text().count("try") == 3
