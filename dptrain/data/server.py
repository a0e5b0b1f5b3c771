"""The process that workers are forked from: small, single-threaded, and never the training process.

Owns: `WorkerServer` (the training process's side) and `serve` (the server's). Must not know: datasets, batches.

A training process may have MPI, CUDA and compute threads, none of which survive a fork. It starts one
server by fork and exec instead, in which nothing runs but this module and the imports below it, and
which forks the workers in milliseconds. The server is the workers' parent: it ends with the training
process, however that ends, and takes the workers with it (source of the idea: the forkserver of
Python's multiprocessing).
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import importlib
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import Any

import cloudpickle  # noqa: F401 - Here once, instead of in every worker.
import numpy.random  # noqa: F401

from dptrain.comm.env import adopt_environment, helper_environment
from dptrain.core.settings import settings
from dptrain.data.channel import ChannelClosed, receive_packet, send_packet
from dptrain.data.worker import work

_MOST_BYTES = 64 * 1024
_MOST_DESCRIPTORS = 64
#: How long a worker that is no longer needed may go on with the sample that it is at.
GRACE_S = 3.0
#: Modules that start no threads: worth importing once, before the forks, if the training process has them.
_PRELOAD = ("dptrain.core.", "dptrain.nn.", "dptrain.vision.", "PIL.", "numpy.")
_START = (
    "import sys; sys.path[:] = {path!r}; from dptrain.data.server import serve; serve({descriptor})"
)


class WorkerServer:
    """Starts workers and says how they ended."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        code = _START.format(path=sys.path, descriptor=theirs.fileno())
        # Without a preexec_fn this is a vfork and an exec: nothing of this process runs in between.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", code],
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            env=helper_environment(),
        )
        theirs.close()
        self._socket = ours
        self._lock = threading.Lock()

    def start(self, end: socket.socket, descriptors: list[int], number: int) -> int:
        """Fork a worker that talks over `end` and works on the payload in `descriptors`.

        Returns:
            Its process id.
        """
        modules = [name for name in list(sys.modules) if name.startswith(_PRELOAD)]
        pid: int = self._ask(("start", number, modules), [end.fileno(), *descriptors])
        return pid

    def exit_status(self, pid: int, timeout_s: float) -> int | None:
        """The exit status of a worker (negative: of the signal), None if it is still there."""
        deadline = time.monotonic() + timeout_s
        while True:
            status: int | None = self._ask(("status", pid))
            if status is not None or time.monotonic() > deadline:
                return status
            time.sleep(0.005)

    def release(self, pids: list[int]) -> None:
        """See to it that these workers end, now that their connections are closed."""
        with contextlib.suppress(ChannelClosed), self._lock:
            send_packet(self._socket, [pickle.dumps(("release", pids))])

    def _ask(self, request: Any, descriptors: list[int] | None = None) -> Any:
        with self._lock:
            send_packet(self._socket, [pickle.dumps(request)], descriptors or [])
            return pickle.loads(receive_packet(self._socket, _MOST_BYTES)[0])

    def close(self) -> None:
        """End the server and all its workers."""
        self._socket.close()
        self._process.wait()

    def forget(self) -> None:
        """In a process that was forked from this one: leave server and workers to the parent."""
        self._socket.close()
        self._process.returncode = 0  # not ours to wait for


_current: WorkerServer | None = None
_lock = threading.Lock()


def worker_server() -> WorkerServer:
    """The server of this process, started on first use."""
    global _current
    with _lock:
        if _current is not None and _current._process.poll() is not None:
            _end()
        if _current is None:
            _current = WorkerServer()
        return _current


@atexit.register
def _end() -> None:
    global _current
    server, _current = _current, None
    if server is not None:
        server.close()


def _forget() -> None:
    global _current, _lock
    server, _current, _lock = _current, None, threading.Lock()
    if server is not None:
        server.forget()


os.register_at_fork(after_in_child=_forget)


# ---- the server's side -------------------------------------------------------------------------------


class _Children:
    """The workers: who runs, who ended how, who has to end until when."""

    def __init__(self) -> None:
        self._running: set[int] = set()
        self._ended: dict[int, int] = {}
        self._deadlines: dict[int, float] = {}

    def add(self, pid: int) -> None:
        self._running.add(pid)

    def status(self, pid: int) -> int | None:
        if pid in self._running:
            found, raw = os.waitpid(pid, os.WNOHANG)
            if found == 0:
                return None
            self._running.remove(pid)
            self._ended[pid] = os.waitstatus_to_exitcode(raw)
        return self._ended.get(pid)

    def release(self, pids: list[int]) -> None:
        self._deadlines.update(dict.fromkeys(pids, time.monotonic() + GRACE_S))

    def tend(self) -> bool:
        """Collect those released, end those that are late; whether any is left to look after."""
        for pid, deadline in list(self._deadlines.items()):
            # Whoever ended and was collected before may have given its number to a stranger.
            if self.status(pid) is not None or pid not in self._running:
                del self._deadlines[pid]
                self._ended.pop(pid, None)
            elif time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
        return bool(self._deadlines)

    def kill(self) -> None:
        for pid in self._running:
            os.kill(pid, signal.SIGKILL)


def serve(descriptor: int) -> None:
    """Fork workers on request until the training process is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the training process
    control = socket.socket(fileno=descriptor)
    control.set_inheritable(False)
    children = _Children()
    gc.freeze()  # what is here now stays in pages that all workers share
    poll = select.poll()
    poll.register(control, select.POLLIN)
    busy = False
    while True:
        if poll.poll(20 if busy else None):
            try:
                packet, descriptors = receive_packet(
                    control, _MOST_BYTES, most_descriptors=_MOST_DESCRIPTORS
                )
                _answer(control, children, pickle.loads(packet), descriptors)
            except ChannelClosed:
                children.kill()
                return
        busy = children.tend()


def _answer(
    control: socket.socket, children: _Children, request: Any, descriptors: list[int]
) -> None:
    kind, *arguments = request
    if kind == "release":
        children.release(*arguments)
        return
    if kind == "status":
        answer = children.status(*arguments)
    else:
        answer = _fork(control, descriptors, *arguments)
        children.add(answer)
    send_packet(control, [pickle.dumps(answer)])


def _fork(control: socket.socket, descriptors: list[int], number: int, modules: list[str]) -> int:
    for name in modules:
        if name not in sys.modules:
            with contextlib.suppress(Exception):  # the worker meets the same error where it matters
                importlib.import_module(name)
    server = os.getpid()
    pid = os.fork()
    if pid:
        for descriptor in descriptors:
            os.close(descriptor)
        return pid
    status = 1
    try:
        control.close()
        _die_with(server)
        end = socket.socket(fileno=descriptors[0])
        status = work(end, descriptors[1:], number, _adopt)
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _die_with(parent: int) -> None:
    """Have the kernel end this process when its parent ends."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before
        os._exit(1)


def surroundings() -> dict[str, Any]:
    """What a worker shares with the training process beside its payload."""
    return {"environment": helper_environment(), "path": sys.path, "folder": os.getcwd()}


def _adopt(environment: dict[str, str], path: list[str], folder: str) -> None:
    adopt_environment(environment)
    settings.cache_clear()
    sys.path[:] = path
    with contextlib.suppress(OSError):
        os.chdir(folder)
