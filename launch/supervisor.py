"""The running job: starts mpirun, serves the side channel, sees the first failure, ends it all.

Owns: mpirun's process, the launcher's signals, the order of events, the job's exit status. Must not
know: command lines of MPI families, the wire format, the words of the verdict. One thread, one
selector.

How a job ends, in seconds after the first failure or the first signal:

===== ====================================================================================
0     the others are being ended: by mpirun after a failure, by the forwarded signal else
0.7   after a failure: SIGTERM to mpirun, ``stop`` to the ranks
2     SIGKILL to every process of the job on this host but mpirun, which then cleans up
2.7   SIGKILL to everything
===== ====================================================================================
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

from . import processes, protocol
from .guard import Guard
from .hub import Event, Hub
from .logs import LogFiles
from .mpirun import LaunchError
from .output import Output
from .verdict import Outcome, conclude, lost_start_race

#: PyTorch's name for how often the job was started again.
RESTART_COUNT = "TORCHELASTIC_RESTART_COUNT"
_TERMINATE_AFTER_S = 0.7
_GRACE_S = 2.0
_RESTARTS = 2
_CLEAN_UP_S = 0.7
_STACKS_PATIENCE_S = 1.0
_DRAIN_PATIENCE_S = 1.0
# mpirun's words are held this long, so that those about a failure can stay behind the report.
_HOLD_S = 1.0


@dataclass(frozen=True)
class Settings:
    """How to run a job.

    Attributes:
        nproc: number of ranks.
        show_all: show every rank's output.
        timeout_s: time limit of the whole job, or None.
        verbose: show mpirun's own words after a failure, too.
        multi_host: ranks may run on other hosts.
        report: a file that takes the last words instead of stderr, or None.
        may_restart: raise `StartRaceLost` instead of reporting that mpirun lost its start race.
        max_restarts: how often the job is started again after a rank has failed.
        log_folder: takes the ranks' output in files, or None.
        logged, hidden: sums of the `STREAM_BITS` that go to files, and that are not shown.
    """

    nproc: int
    show_all: bool = False
    timeout_s: float | None = None
    verbose: bool = False
    multi_host: bool = False
    report: str | None = None
    may_restart: bool = False
    max_restarts: int = 0
    log_folder: str | None = None
    logged: int = 3
    hidden: int = 0

    def log_files(self) -> LogFiles | None:
        """The files of a job that starts now, if any were asked for."""
        return None if self.log_folder is None else LogFiles(self.log_folder, self.logged)


class StartRaceLost(Exception):
    """mpirun failed before it had started a rank, and can be started again."""


class Supervisor:
    """Runs one job, once: ``Supervisor(settings).run(command, env)``."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._output = Output(settings.show_all, logs=settings.log_files(), hidden=settings.hidden)
        self._selector = selectors.DefaultSelector()
        self._hub = Hub(
            self._selector,
            settings.nproc,
            self._output.from_rank,
            reachable=settings.multi_host,
        )
        self._mpirun_pipes = 0
        self._mpirun_text = bytearray()
        self._mpirun_shown = 0
        self._mpirun_last = 0.0
        self._first: list[Event] = []  # failures of the batch that came first
        self._later: list[Event] = []
        self._signals: list[int] = []
        self._deadlines: dict[str, float] = {}
        self._segments: set[str] = set()
        self._stacks: dict[int, str] | None = None  # a dict once --timeout has passed
        self._popen: subprocess.Popen[bytes] | None = None
        self._ended_mpirun = False

    @property
    def a_rank_failed(self) -> bool:
        """Whether the job ended because of a rank, and not by a signal to dprun or its time limit."""
        return bool(self._first) and not self._signals and self._stacks is None

    def run(self, command: Sequence[str], env: Mapping[str, str]) -> int:
        """Starts the job and returns its exit status.

        Args:
            command: mpirun's command line.
            env: its environment; the side channel's address is added.

        Raises:
            LaunchError: mpirun cannot be started.
        """
        guard = Guard()  # first: before orphans are adopted and signals are handled
        wakeup, wakeup_write = socket.socketpair()
        for sock in (wakeup, wakeup_write):
            sock.setblocking(False)
        self._selector.register(wakeup, selectors.EVENT_READ, lambda: _discard(wakeup))
        previous = {
            number: signal.signal(number, self._on_signal)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD)
            if signal.getsignal(number) is not signal.SIG_IGN or number == signal.SIGCHLD
        }
        previous_wakeup = signal.set_wakeup_fd(wakeup_write.fileno(), warn_on_full_buffer=False)
        try:
            self._popen = self._start(command, env)
            guard.watch(self._popen.pid)
            try:
                self._watch()
            finally:
                self._end_processes()
            self._drain()
            return self._conclude()
        finally:
            guard.dismiss()
            signal.set_wakeup_fd(previous_wakeup)
            for number, handler in previous.items():
                signal.signal(number, handler)
            self._hub.close()
            self._selector.close()
            wakeup.close()
            wakeup_write.close()

    def _start(self, command: Sequence[str], env: Mapping[str, str]) -> subprocess.Popen[bytes]:
        processes.adopt_orphans()
        try:
            process = subprocess.Popen(
                command,
                env={**env, protocol.ENV_ADDRESS: str(self._hub.address)},
                stdin=None if _may_read_stdin() else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                # A session of its own: the terminal's Ctrl-C reaches only the launcher, and every
                # process of the job can be found by it. This process has no other thread.
                start_new_session=True,
                preexec_fn=processes.die_with_parent,
            )
        except OSError as exception:
            raise LaunchError(f"cannot start {command[0]}: {exception.strerror}") from None
        for pipe in (process.stdout, process.stderr):
            assert pipe is not None
            fd = pipe.fileno()
            os.set_blocking(fd, False)
            self._selector.register(fd, selectors.EVENT_READ, lambda fd=fd: self._hear_mpirun(fd))
            self._mpirun_pipes += 1
        if self._settings.timeout_s is not None:
            self._deadlines["timeout"] = time.monotonic() + self._settings.timeout_s
        return process

    # Events.

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if number != signal.SIGCHLD:
            self._signals.append(number)
            if len(self._signals) > 1:
                self._deadlines["kill all"] = 0.0
                # Works even while the main loop is blocked on a terminal that does not read.
                self._ended_mpirun = True
                processes.signal_each(self._job(), signal.SIGKILL)

    def _hear_mpirun(self, fd: int) -> None:
        try:
            data = os.read(fd, 65536)
        except BlockingIOError:
            return
        if data:
            self._mpirun_text += data
            self._mpirun_last = time.monotonic()
        else:
            self._selector.unregister(fd)
            self._mpirun_pipes -= 1

    def _serve(self, timeout_s: float) -> None:
        """Waits for something to happen and takes in everything that has."""
        for key, _ in self._selector.select(max(0.0, timeout_s)):
            key.data()
        batch = []
        for event in self._hub.take_events():
            state = self._hub.ranks[event.rank]
            if event.message is not None and event.message["kind"] == "stacks":
                if self._stacks is not None:
                    self._stacks[event.rank] = str(event.message.get("text"))
            elif event.message is None:
                if state.exit_code is None:  # it did not say goodbye
                    batch.append(event)
            elif event.message["kind"] == "error" or state.exit_code:
                batch.append(event)
        if batch and not self._first and not self._is_ending:
            self._first = batch
            now = time.monotonic()
            # At once, without looking for other processes: mpirun is already ending these.
            pids = [state.pid for state in self._hub.ranks.values()]
            self._segments |= processes.mapped_segments(pids)
            self._deadlines["terminate"] = now + _TERMINATE_AFTER_S
            self._plan_kill(now)
        elif self._first:
            self._later += batch

    @property
    def _is_ending(self) -> bool:
        return bool(self._signals) or self._stacks is not None

    def _plan_kill(self, now: float) -> None:
        self._deadlines.setdefault("kill ranks", now + _GRACE_S)
        self._deadlines.setdefault("kill all", now + _GRACE_S + _CLEAN_UP_S)

    # The main loop.

    def _watch(self) -> None:
        forwarded = False
        while self._process.poll() is None:
            now = time.monotonic()
            wait_s = min(self._deadlines.values(), default=now + 3600.0) - now
            if self._mpirun_shown < len(self._mpirun_text) and not self._first:
                wait_s = min(wait_s, self._mpirun_last + _HOLD_S - now)
            self._serve(wait_s)
            now = time.monotonic()
            if self._signals and not forwarded:
                forwarded = True
                self._forward(self._signals[0], now)
            for name in [name for name, when in self._deadlines.items() if when <= now]:
                del self._deadlines[name]
                if self._pass_deadline(name, now):
                    return
            if now - self._mpirun_last > _HOLD_S and not self._first:
                self._show_mpirun()

    def _forward(self, number: int, now: float) -> None:
        """Passes the first signal on to the ranks; mpirun is told only where it has to help."""
        self._segments |= processes.mapped_segments(self._job())
        self._plan_kill(now)
        here = socket.gethostname()
        ranks = self._hub.ranks.values()
        local = [state.pid for state in ranks if state.host == here and state.pid > 1]
        to_ranks = signal.SIGINT if number == signal.SIGINT else signal.SIGTERM
        processes.signal_each([pid for pid in local if pid in self._job()], to_ranks)
        if len(local) < self._settings.nproc:
            self._hub.broadcast(protocol.stop())
            self._signal_mpirun(signal.SIGTERM)

    def _pass_deadline(self, name: str, now: float) -> bool:
        """Does what is due; True when the loop is to end."""
        if name == "timeout" and not self._first and not self._signals:
            self._stacks = {}
            self._hub.broadcast(protocol.stack())
            self._deadlines["stacks"] = now + _STACKS_PATIENCE_S
        elif name == "stacks":
            # Without the GIL a rank cannot answer, but its signal handler prints all the same.
            silent = [s.pid for r, s in self._hub.ranks.items() if r not in (self._stacks or ())]
            processes.signal_each([p for p in silent if p in self._job()], signal.SIGUSR2)
            self._deadlines["terminate"] = now + _CLEAN_UP_S
            self._plan_kill(now)
        elif name == "terminate":
            self._hub.broadcast(protocol.stop())
            self._signal_mpirun(signal.SIGTERM)
        elif name == "kill ranks":
            others = [pid for pid in self._job() if pid != self._process.pid]
            self._segments |= processes.mapped_segments(others)
            processes.signal_each(others, signal.SIGKILL)
        return name == "kill all"

    def _signal_mpirun(self, number: int) -> None:
        self._ended_mpirun = True
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)

    def _job(self) -> list[int]:
        return processes.of_job(self._popen.pid) if self._popen is not None else []

    @property
    def _process(self) -> subprocess.Popen[bytes]:
        assert self._popen is not None
        return self._popen

    # The end.

    def _end_processes(self) -> None:
        if self._process.poll() is None:
            self._ended_mpirun = True
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            self._process.wait()
        stuck = processes.kill_job(self._process.pid)
        if stuck:
            self._output.message(f"dprun: processes that cannot be killed: {stuck}\n")
        processes.remove_segments(self._segments)

    def _drain(self) -> None:
        """Takes in what the ended processes left in the sockets and pipes."""
        deadline = time.monotonic() + _DRAIN_PATIENCE_S
        while self._mpirun_pipes or not self._hub.is_idle:
            wait_s = deadline - time.monotonic()
            if wait_s <= 0:
                break
            self._serve(wait_s)
        for pipe in (self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()

    def _show_mpirun(self) -> None:
        text = bytes(self._mpirun_text[self._mpirun_shown :])
        self._mpirun_shown = len(self._mpirun_text)
        with contextlib.suppress(OSError):
            self._output.from_mpirun(text)

    def _conclude(self) -> int:
        """Writes the last words; returns the exit status.

        Raises:
            StartRaceLost: mpirun started nothing; nothing has been written.
        """
        outcome = Outcome(
            nproc=self._settings.nproc,
            ranks=self._hub.ranks,
            first=self._first,
            later=self._later,
            # A status that we caused by ending mpirun says nothing about the job.
            status=None if self._ended_mpirun else self._process.returncode,
            mpirun_text=self._mpirun_text.decode("utf-8", "replace"),
            stderr_tail=self._output.stderr_tail,
            stacks=self._stacks,
        )
        if self._settings.may_restart and not self._signals and lost_start_race(outcome):
            raise StartRaceLost
        with contextlib.suppress(OSError):
            if self._settings.verbose or not (self._first or self._is_ending):
                self._show_mpirun()
            self._output.flush()
            if self._signals:
                name = signal.Signals(self._signals[0]).name
                self._output.message(f"dprun: stopped by {name}\n")
        if self._signals:
            return 128 + self._signals[0]
        code, text = conclude(outcome)
        with contextlib.suppress(OSError):
            if self._settings.report is None:
                self._output.message(text)
            else:
                Path(self._settings.report).write_text(text, errors="replace")
        return code


def supervise(settings: Settings, command: Sequence[str], env: Mapping[str, str]) -> int:
    """Runs a job, again after a failure as often as the settings say; returns its exit status."""
    for attempt in range(settings.max_restarts + 1):
        now = settings
        if settings.log_folder is not None:
            now = replace(settings, log_folder=f"{settings.log_folder}/attempt_{attempt}")
        code, a_rank_failed = _attempt(now, command, {**env, RESTART_COUNT: str(attempt)})
        if not a_rank_failed or attempt == settings.max_restarts:
            break
        print(
            f"dprun: starting the job again ({attempt + 1} of {settings.max_restarts})",
            file=sys.stderr,
            flush=True,
        )
    return code


def _attempt(
    settings: Settings, command: Sequence[str], env: Mapping[str, str]
) -> tuple[int, bool]:
    """The exit status of a job, started again where mpirun lost its start race; and whether a rank failed."""
    for _ in range(_RESTARTS):
        supervisor = Supervisor(replace(settings, may_restart=True))
        with contextlib.suppress(StartRaceLost):
            code = supervisor.run(command, env)
            return code, supervisor.a_rank_failed
    supervisor = Supervisor(settings)
    code = supervisor.run(command, env)
    return code, supervisor.a_rank_failed


def _discard(sock: socket.socket) -> None:
    with contextlib.suppress(BlockingIOError):
        sock.recv(4096)


def _may_read_stdin() -> bool:
    """Whether the job may have our standard input: not a terminal that belongs to another job."""
    try:
        return not os.isatty(0) or os.tcgetpgrp(0) == os.getpgrp()
    except OSError:
        return sys.stdin is not None
