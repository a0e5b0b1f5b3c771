"""What runs in each rank around the script: ``python -m dptrain.launch.rank script.py args``.

Owns: the rank's variables (RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE), its connection to the
launcher, its output streams, dying with the launcher, and what happens when the script fails. Must
not know: what the script does, who else runs, how the job is ended. It also works without ``dprun``
above it (``srun python -m dptrain.launch.rank script.py``). Imports are few: every rank pays for
them.
"""

from __future__ import annotations

import atexit
import builtins
import contextlib
import ctypes
import faulthandler
import io
import os
import re
import signal
import sys
import types
from collections.abc import Callable, Mapping
from importlib.machinery import SourceFileLoader
from typing import Any, NamedTuple, NoReturn

from . import protocol
from .protocol import Channel

_PR_SET_PDEATHSIG = 1
_EXIT_INTERRUPTED = 128 + signal.SIGINT
_EXIT_TERMINATED = 128 + signal.SIGTERM
_exit_process: Callable[[int], NoReturn] = os._exit


class RankFacts(NamedTuple):
    """Who this process is in the job."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int

    @property
    def prefix(self) -> str:
        """Start of every message of this rank."""
        return f"[rank {self.rank}/{self.world_size}]"


# (rank, world size, local rank, local world size) as the MPI launchers name them.
_VARIABLES = (
    (
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE"),
)


def discover(env: Mapping[str, str]) -> RankFacts:
    """Reads the variables of the MPI launcher (Open MPI, MPICH, Intel MPI, Slurm's srun).

    Raises:
        RuntimeError: none of them set its variables, or they contradict each other.
    """
    for names in _VARIABLES:
        # Inside an allocation, SLURM_* is set without any task having been launched.
        if names[0] not in env or (names[0].startswith("SLURM") and "SLURM_STEP_ID" not in env):
            continue
        missing = [name for name in names if name not in env]
        if missing:
            raise RuntimeError(f"{names[0]} is set, but {', '.join(missing)} is not")
        texts = [env[name] for name in names]
        texts[3] = _tasks_on_node(texts[3], env.get("SLURM_NODEID", "0"))
        rank, world_size, local_rank, local_world_size = map(int, texts)
        if not (0 <= rank < world_size and 0 <= local_rank < local_world_size <= world_size):
            raise RuntimeError(
                "the MPI launcher's variables contradict each other: "
                + ", ".join(f"{name}={env[name]}" for name in names)
            )
        if local_world_size == world_size:
            # On one host the two ranks should agree; Open MPI may number local ranks otherwise.
            local_rank = rank
        return RankFacts(rank, world_size, local_rank, local_world_size)
    raise RuntimeError(
        "no MPI launcher's variables found (OMPI_COMM_WORLD_*, PMI_*, SLURM_*): "
        "start the script with dprun, mpirun or srun"
    )


def _tasks_on_node(text: str, node: str) -> str:
    # Slurm writes "2(x3),1": three nodes with two tasks, one with one.
    counts: list[str] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if match is None:
            raise RuntimeError(f"expected a number of local ranks, found {text!r}")
        counts += [match[1]] * int(match[2] or 1)
    return counts[int(node)] if len(counts) > 1 else counts[0]


def die_with_parent() -> None:
    """Asks the kernel to kill this process when the launcher's daemon on this host dies (Linux)."""
    if not sys.platform.startswith("linux"):
        return
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before the call
        _exit_process(_EXIT_TERMINATED)


def connect(facts: RankFacts, address_text: str) -> Channel:
    """Opens the control connection and replaces file descriptors 1 and 2 by output connections.

    Raises:
        ProtocolError: the address is malformed.
        OSError: the launcher cannot be reached.
    """
    address = protocol.parse_address(address_text)
    channel = Channel.connect(address)
    channel.send(protocol.hello(address.token, facts.rank, facts.world_size, facts.local_rank))
    for target, name in enumerate(protocol.STREAMS, start=1):
        sock = protocol.open_connection(address)
        sock.sendall(protocol.encode(protocol.stream(address.token, facts.rank, name)))
        os.dup2(sock.fileno(), target)
        sock.close()
    for text_stream in (sys.stdout, sys.stderr):
        if isinstance(text_stream, io.TextIOWrapper):
            # As at a terminal. Unbuffered would send "text" and "\n" apart, and the lines of
            # several ranks would mix.
            text_stream.reconfigure(line_buffering=True)
    channel.on("stack", lambda _: _answer_with_stacks(channel))
    channel.on("stop", lambda _: _exit_process(_EXIT_TERMINATED))
    channel.install()
    # The launcher may die without a word (SIGKILL): nobody is left to end this process.
    channel.listen(on_eof=lambda: _exit_process(_EXIT_TERMINATED))
    return channel


def _answer_with_stacks(channel: Channel) -> None:
    with open(os.memfd_create("stacks"), "w+b") as file:
        faulthandler.dump_traceback(file=file.fileno(), all_threads=True)
        file.seek(0)
        channel.send(protocol.stacks(file.read().decode("utf-8", "replace")))


def announce_exit(channel: Channel) -> None:
    """Has the launcher told of every end on purpose, so that a silent end means a crash.

    The normal end is announced by the first registered, hence last run, exit function. ``os._exit``
    skips those and is wrapped; forked children use it too and are not the rank.
    """
    owner = os.getpid()
    atexit.register(lambda: os.getpid() == owner and channel.send(protocol.bye(0)))

    def announced_exit(status: int) -> NoReturn:
        if os.getpid() == owner:
            channel.send(protocol.bye(status & 0xFF))
        _exit_process(status)

    os._exit = announced_exit


class Failure(NamedTuple):
    """How the script failed: exit status, exception type, message, and its own traceback."""

    code: int
    type_name: str
    message: str
    traceback: str


def run(argv: list[str]) -> Failure | None:
    """Runs ``script args`` or ``-m module args`` as Python does; None: it ended well.

    The script is ``__main__`` and stays so for exit functions, pickling and spawned workers.
    """
    try:
        if argv[0] == "-m":
            import runpy

            sys.argv = argv[1:]
            _import_from(os.getcwd())
            runpy.run_module(argv[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = argv
            _run_script(argv[0])
    except SystemExit as exception:
        return _failure_of_exit(exception)
    except BaseException as exception:
        code = _EXIT_INTERRUPTED if isinstance(exception, KeyboardInterrupt) else 1
        type_name = type(exception).__qualname__
        return Failure(code, type_name, _text_of(exception), _user_traceback(exception))
    return None


def _import_from(folder: str) -> None:
    # As Python does before it runs a script or module; not for this launcher (-P).
    if not os.environ.get("PYTHONSAFEPATH"):
        sys.path.insert(0, folder)


def _run_script(path: str) -> None:
    _import_from(os.path.dirname(os.path.realpath(path)))
    main = types.ModuleType("__main__")
    loader = SourceFileLoader("__main__", path)
    main.__dict__.update(__file__=path, __builtins__=builtins, __loader__=loader, __cached__=None)
    sys.modules["__main__"] = main
    with io.open_code(os.path.abspath(path)) as file:
        code = compile(file.read(), path, "exec", dont_inherit=True)
    exec(code, main.__dict__)


def _failure_of_exit(exception: SystemExit) -> Failure | None:
    # The meaning Python gives to sys.exit(value): None and 0 are success, a text is an error.
    value: Any = exception.code
    if value is None:
        return None
    if not isinstance(value, int):
        return Failure(1, "SystemExit", str(value), "")
    code = value & 0xFF
    return Failure(code, "SystemExit", "", "") if code else None


def _text_of(exception: BaseException) -> str:
    try:
        return str(exception)
    except Exception:
        return "<the exception has no text: its __str__ failed>"


def _user_traceback(exception: BaseException) -> str:
    import traceback

    ours = {__file__, "<frozen runpy>", getattr(sys.modules.get("runpy"), "__file__", None)}
    trace = exception.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename in ours:
        trace = trace.tb_next
    return "".join(traceback.format_exception(type(exception), exception, trace))


def end_job(facts: RankFacts, failure: Failure, channel: Channel | None) -> NoReturn:
    """Reports the failure and ends this process at once, and the whole job with it.

    The report comes first: ending may make other ranks fail, and the first failure is the cause.
    """
    if failure.code == _EXIT_INTERRUPTED:
        known = channel is not None and channel.send(protocol.bye(failure.code))
    else:
        report = protocol.error(failure.type_name, failure.message, failure.traceback, failure.code)
        known = channel is not None and channel.send(report)
    if not known:
        text = failure.traceback or f"{failure.message or f'exit status {failure.code}'}\n"
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write("".join(f"{facts.prefix} {line}\n" for line in text.splitlines()))
    for text_stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            text_stream.flush()
    mpi = sys.modules.get("mpi4py.MPI")
    # The launcher ends the others; without one only MPI can, whatever they are blocked in.
    if not known and mpi is not None and mpi.Is_initialized() and not mpi.Is_finalized():
        mpi.COMM_WORLD.Abort(failure.code)
    _exit_process(failure.code)


def _serve_bare_clone() -> None:
    # Started as ``launch.rank`` from a clone that is not installed: dptrain knows this package as
    # ``dptrain.launch``, and must meet this very copy, which holds the channel.
    package = sys.modules[__package__]
    sys.modules.setdefault("dptrain.launch", package)
    sys.modules.setdefault("dptrain.launch.protocol", protocol)


def main() -> None:
    """Entry point; ``sys.argv[1:]`` is the script (or ``-m module``) and its arguments."""
    pid = os.getpid()
    argv = sys.argv[1:]
    if not argv or argv == ["-m"]:
        sys.exit(f"{__package__}.rank: expected a script, or -m and a module")
    die_with_parent()
    channel = None
    try:
        facts = discover(os.environ)
        address_text = os.environ.get(protocol.ENV_ADDRESS)
        if address_text is not None:
            channel = connect(facts, address_text)
            announce_exit(channel)
    except (RuntimeError, ValueError, OSError) as exception:
        sys.exit(f"dprun: a rank cannot start: {exception}")
    os.environ.update(
        RANK=str(facts.rank),
        WORLD_SIZE=str(facts.world_size),
        LOCAL_RANK=str(facts.local_rank),
        LOCAL_WORLD_SIZE=str(facts.local_world_size),
    )
    if facts.local_world_size == facts.world_size:
        # Nothing here reads them, but scripts written for torchrun do. dprun has chosen a free port.
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        os.environ.setdefault("MASTER_PORT", "29500")
        os.environ.update(GROUP_RANK="0", GROUP_WORLD_SIZE="1")
    if sys.stderr is not None:
        faulthandler.enable()
        # Anyone on this host may ask a rank that hangs for its stacks, even without the GIL.
        faulthandler.register(signal.SIGUSR2, all_threads=True)
    if __package__ == "launch":
        _serve_bare_clone()
    failure = run(argv)
    if failure is None:
        return
    if os.getpid() != pid:  # a forked child fails as a child does, not as the rank
        sys.stderr.write(failure.traceback)
        _exit_process(failure.code)
    end_job(facts, failure, channel)


if __name__ == "__main__":
    main()
