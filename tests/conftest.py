"""What every test can ask for: starting jobs of real ranks, in sessions of their own, with a limit."""

import gc
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from launcher_environment import clean_environment

from dptrain.core import device
from dptrain.core.settings import settings

# Else every process that a test starts compiles the package anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def pytest_addoption(parser):
    parser.addoption(
        "--require-oracle",
        action="store_true",
        help="a test marked `oracle` that is skipped counts as failed",
    )


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """The collector passes over what stands for the tests, as it would not be there in a program.

    Twenty thousand tests are a million objects; whatever collects or asks what there is (recordings, graphs,
    the report on full memory) would look at all of them each time.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.collect()
        gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if (
        report.skipped
        and item.config.getoption("--require-oracle")
        and item.get_closest_marker("oracle")
    ):
        report.outcome = "failed"
        report.longrepr = (
            f"{item.nodeid} was skipped, but --require-oracle was given: {report.longrepr}"
        )
    return report


ROOT = Path(__file__).resolve().parent.parent


def run_job(command, **options):
    """Run a command as `run_once` does, again where mpirun could not start its own server.

    That happens on a loaded machine before any rank is started; dprun starts it again by itself.
    """
    for _ in range(2):
        done = run_once(command, **options)
        if done.returncode == 0 or "listener thread failed to start" not in done.stderr:
            return done
    return run_once(command, **options)


def run_once(command, timeout_s=90, cwd=None, **environment):
    """Run a command to its end in its own session; at the limit the whole session is killed.

    Returns:
        The finished process with `stdout` and `stderr` as text.
    """
    process = subprocess.Popen(
        [str(part) for part in command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd or ROOT,
        env=clean_environment(**environment),
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        pytest.fail(f"{command} did not end within {timeout_s} s\n{out[-2000:]}\n{err[-4000:]}")
    return subprocess.CompletedProcess(command, process.returncode, out, err)


@pytest.fixture
def host_devices(monkeypatch):
    """Splits the host: `host_devices(4)` makes cpu:0 to cpu:3 for this test."""

    def forget():
        for cached in (settings, device.host_device_count, device.host_device):
            cached.cache_clear()

    def split(count):
        monkeypatch.setenv("DPTRAIN_HOST_DEVICES", str(count))
        forget()

    yield split
    monkeypatch.undo()
    forget()


@pytest.fixture(scope="session")
def job():
    """Runs a command: `job([...])`."""
    return run_job


@pytest.fixture
def dprun():
    """Runs a script on ranks: `dprun(n, script, *args)`."""

    def start(ranks, script, *args, **options):
        return run_job([sys.executable, ROOT / "dprun.py", "-n", ranks, script, *args], **options)

    return start
