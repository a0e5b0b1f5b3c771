"""What is left of the workers: nothing, however the training process goes on or ends.

Every script runs in a session of its own; afterwards no process of that session may be there.
"""

import os
import signal
import subprocess
import sys
import time

import pytest

from dptrain.data import server

PREAMBLE = """
import os, signal, sys, threading, time
import dptrain
from dptrain.data import DataLoader, Dataset

class Slow(Dataset):
    def __init__(self, seconds=0.0):
        self.seconds = seconds
    def __len__(self):
        return 50
    def __getitem__(self, index):
        if index > 3:
            time.sleep(self.seconds)
        return dptrain.full((20000,), float(index))

def processes():
    "Everything in this session but this process."
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            try:
                fields = open(f"/proc/{name}/stat").read().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == os.getsid(0) and fields[0] != "Z":
                found.append(int(name))
    return found

def command_of(pid):
    try:
        return open(f"/proc/{pid}/cmdline").read()
    except OSError:  # it has ended
        return ""

def wait_until(condition):
    end = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < end, "too late"
        time.sleep(0.02)

def shared_memory():
    return sum("dptrain" in line for line in open("/proc/self/maps")) + sum(
        "dptrain" in os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")
        if os.path.islink(f"/proc/self/fd/{fd}"))
"""


def in_session(sid):
    """The processes of a session, those that have ended and were not waited for left out."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat") as file:
                fields = file.read().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == sid and fields[0] != "Z":
            found.append(int(name))
    return found


@pytest.fixture
def script(tmp_path):
    """Starts a script; at the end, nothing of its session may be left within a few seconds."""
    started = []

    def start(text):
        path = tmp_path / "train.py"
        path.write_text(PREAMBLE + text)
        process = subprocess.Popen(
            [sys.executable, path],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    shared_before = set(os.listdir("/dev/shm"))
    yield start
    for process in started:
        try:
            end = time.monotonic() + 8
            while in_session(process.pid) and time.monotonic() < end:
                time.sleep(0.05)
            assert in_session(process.pid) == []
        finally:
            for pid in in_session(process.pid):
                os.kill(pid, signal.SIGKILL)
            process.communicate()
    left = {name for name in set(os.listdir("/dev/shm")) - shared_before if "dptrain" in name}
    assert left == set()


def finished(process, status=0):
    out, err = process.communicate(timeout=60)
    assert process.returncode == status, err[-3000:]
    return out, err


def test_an_unguarded_script_runs_once_and_its_classes_and_lambdas_travel(script):
    out, err = finished(
        script("""
print("script", flush=True)
scale = 2
class Mine(Dataset):
    def __init__(self):
        self.double = lambda x: x * scale
    def __len__(self):
        return 5
    def __getitem__(self, index):
        return self.double(index)
def collate(samples):
    return sum(samples)
print(list(DataLoader(Mine(), 2, num_workers=4, collate_fn=collate)))
""")
    )
    assert out.splitlines() == ["script", "[2, 10, 8]"]
    assert err.count("UserWarning") <= 1  # more workers than cores


def test_after_break_exception_and_garbage_collection_no_worker_is_left(script):
    finished(
        script("""
import gc
def loop(fail=False):
    for _ in DataLoader(Slow(0.05), 1, num_workers=2):
        if fail:
            raise ValueError("in the loop")
        break
loop()
try:
    loop(True)
except ValueError:
    pass
half = iter(DataLoader(Slow(0.05), 1, num_workers=2, persistent_workers=True))
next(half)
half.me = half
del half
gc.collect()
server, = [pid for pid in processes() if "serve(" in command_of(pid)
           and os.getpid() == int(open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[1])]
wait_until(lambda: processes() == [server])
assert shared_memory() == 0
""")
    )


def test_a_worker_in_the_middle_of_a_long_sample_is_ended(script):
    finished(
        script("""
pass_ = iter(DataLoader(Slow(100), 1, num_workers=2))
next(pass_)
assert len(processes()) == 3
start = time.monotonic()
del pass_
assert time.monotonic() - start < 1
wait_until(lambda: len(processes()) == 1)
""")
    )


def test_ctrl_c_ends_the_workers_and_is_a_keyboard_interrupt(script):
    process = script("""
pass_ = iter(DataLoader(Slow(0.3), 1, num_workers=2))
next(pass_)
print("ready", flush=True)
try:
    for _ in pass_:
        pass
except KeyboardInterrupt:
    print("interrupted", flush=True)
    raise
""")
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.3)
    os.killpg(process.pid, signal.SIGINT)  # as the terminal does: to all of them
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (-signal.SIGINT, "interrupted\n")
    assert err.count("Traceback") == 1


@pytest.mark.parametrize("seconds", [0.01, 100])
def test_when_the_training_process_is_killed_the_workers_end(script, seconds):
    process = script(f"""
pass_ = iter(DataLoader(Slow({seconds}), 1, num_workers=2))
next(pass_)
print("ready", len(processes()), flush=True)
time.sleep(60)
""")
    assert process.stdout.readline() == "ready 3\n"
    process.kill()
    process.wait()
    start = time.monotonic()
    while in_session(process.pid) and time.monotonic() - start < 8:
        time.sleep(0.02)
    assert time.monotonic() - start < 5


def test_without_the_server_the_next_pass_starts_another(script):
    finished(
        script("""
loader = DataLoader(Slow(), 10, num_workers=1)
assert len(list(loader)) == 5
wait_until(lambda: len(processes()) == 1)
server, = processes()
pass_ = iter(loader)
os.kill(server, signal.SIGKILL)
try:
    list(pass_)
except RuntimeError as error:
    assert "worker 0 (pid" in str(error), error
else:
    raise AssertionError("its workers end with it")
assert len(list(loader)) == 5
""")
    )


def test_a_process_forked_from_the_training_process_leaves_the_workers_alone(script):
    out, _ = finished(
        script("""
import warnings
warnings.simplefilter("ignore", DeprecationWarning)
loader = DataLoader(Slow(), 10, num_workers=1)
pass_ = iter(loader)
next(pass_)
child = os.fork()
if child == 0:
    del pass_
    assert len(list(loader)) == 5  # with workers of its own
    sys.exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert len(list(pass_)) == 4
if os.fork() == 0:
    os.setsid()  # out of sight
    time.sleep(4)
    os._exit(0)
print("killed", flush=True)
os.kill(os.getpid(), signal.SIGTERM)
"""),
        -signal.SIGTERM,
    )
    assert out == "killed\n"


def test_a_number_that_was_given_back_twice_is_not_ended_twice(monkeypatch):
    """The process that has it by then may be anybody's."""
    monkeypatch.setattr(server, "GRACE_S", -1.0)
    monkeypatch.setattr(server.os, "kill", lambda pid, number: pytest.fail(f"killed {pid}"))
    children = server._Children()
    pid = os.posix_spawn("/bin/true", ["true"], {})
    children.add(pid)
    while children.status(pid) is None:
        time.sleep(0.01)
    for _ in range(2):
        children.release([pid])
        assert not children.tend()
