"""``dprun``: arguments, the checks that need no process, and the start of the job.

Owns: the command line and its one-line errors (exit status 2). Must not know: how MPI families
differ, how a job is watched.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import socket
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import NoReturn

from . import mpirun, protocol
from .logs import STREAM_BITS
from .mpirun import Job, LaunchError
from .supervisor import RESTART_COUNT, Settings, supervise

EXIT_USAGE = 2
# Of these every host has its own, or the MPI launcher passes them by itself.
_NOT_EXPORTED = ("PATH", "HOME", "COLUMNS")

_DESCRIPTION = """\
Starts a Python script on N ranks through the MPI library's mpirun and watches them: the first rank
that fails ends the job, and its traceback is printed last."""

_EPILOG = """\
examples:
  dprun train.py --epochs 5          one rank per NVIDIA GPU of this host, else one rank
  dprun -n 4 train.py --epochs 5     four ranks
  dprun -n 2 -m package.train        a module
  dprun -n 8 --hostfile hosts train.py

The script finds RANK, LOCAL_RANK, WORLD_SIZE and LOCAL_WORLD_SIZE in its environment.
exit status: the first failing rank's (an exception: 1, signal s: 128 + s), 2 for wrong usage,
124 after --timeout, 130 after Ctrl-C."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_USAGE, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def _positive_int(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise ValueError
    return value


def _ranks(text: str) -> int:
    """A number, or what there is one rank for each of: cores, or GPUs (auto: if there are any)."""
    gpus = mpirun.gpu_count(os.environ)
    if text == "cpu" or (text == "auto" and gpus == 0):
        return len(os.sched_getaffinity(0))
    return _positive_int(str(gpus) if text in ("gpu", "auto") else text)


def _streams(text: str) -> int:
    value = int(text)
    if not 0 <= value <= sum(STREAM_BITS.values()):
        raise ValueError
    return value


def _positive_float(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise ValueError
    return value


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Reads the command line; what follows the script (or ``-m module``) belongs to the script.

    Returns:
        The options; ``program`` is the list of the script (or ``-m`` and the module) and its
        arguments.

    Raises:
        SystemExit: the usage is wrong (2), or ``--help`` or ``--version`` was asked for (0).
    """
    parser = _Parser(
        prog="dprun",
        usage="dprun [options] (script.py | -m module) [arguments of the script]",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("-n", "--nproc", "--np", metavar="N", help="number of ranks")
    # torchrun's words for the ranks of one host.
    per_node = ("--nproc-per-node", "--nproc_per_node")
    add(*per_node, dest="nproc", metavar="N", help="= -n N; also cpu, gpu or auto")
    add("--standalone", action="store_true", help="accepted as by torchrun; has no effect")
    add("--nnodes", default="1", help="accepted as by torchrun; 1 (other hosts: --hostfile)")
    add("--node-rank", "--node_rank", default="0", help="accepted as by torchrun; 0")
    for name in ("backend", "endpoint", "conf"):
        add(f"--rdzv-{name}", f"--rdzv_{name}", help=argparse.SUPPRESS)  # no effect: MPI connects
    add("--rdzv-id", "--rdzv_id", default="none", help=argparse.SUPPRESS)
    for name in ("addr", "port"):
        add(f"--master-{name}", f"--master_{name}", help=f"MASTER_{name.upper()} of the script")
    add("--log-dir", "--log_dir", metavar="DIR", help="keep every rank's output in files there")
    add(
        "-r",
        "--redirects",
        metavar="S",
        help="with --log-dir: 1 stdout, 2 stderr, 3 both: not shown",
    )
    add(
        "-t", "--tee", metavar="S", help="with --log-dir: 1 stdout, 2 stderr, 3 both: shown as well"
    )
    add("--max-restarts", "--max_restarts", metavar="K", help="start a failed job again, K times")
    add("--hostfile", metavar="FILE", help="hosts to run on, passed to mpirun")
    add("--host", metavar="LIST", help="hosts to run on, passed to mpirun")
    add(
        "--output",
        choices=("rank0", "all"),
        default="rank0",
        help="rank0 (default): rank 0's output as it is and the others' stderr prefixed; "
        "all: every line of every rank, prefixed",
    )
    add("--all-output", dest="output", action="store_const", const="all", help="= --output all")
    add("--timeout", metavar="S", help="stop the job after S seconds, showing every rank's stacks")
    add("--threads", metavar="T", help="threads per rank (default: cores / ranks of a host)")
    add("--mpi", metavar="PATH", help="the mpirun to use")
    add("--report", metavar="FILE", help=argparse.SUPPRESS)
    add("--verbose", action="store_true", help="print the command, and all that mpirun says")
    add("--dry-run", action="store_true", help="print command and environment, start nothing")
    add("--version", action="store_true", help="print the version")
    add("-m", dest="module", nargs=argparse.REMAINDER, help="run a module instead of a script")
    add("script", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.version:
        print(f"dprun {_version()}")
        parser.exit(0)
    if options.nnodes not in ("1", "1:1"):
        parser.error(f"--nnodes {options.nnodes}: expected 1; --hostfile names several hosts")
    if options.node_rank != "0":
        parser.error(f"--node-rank {options.node_rank}: expected 0; --hostfile names several hosts")
    for name, read, expected in (
        ("redirects", _streams, "0, 1, 2 or 3, for all ranks"),
        ("tee", _streams, "0, 1, 2 or 3, for all ranks"),
        ("nproc", _ranks, "a whole number of ranks, at least 1"),
        ("threads", _positive_int, "a whole number of threads, at least 1"),
        ("timeout", _positive_float, "a positive number of seconds"),
        ("max_restarts", _count, "a whole number, 0 or more"),
    ):
        text = getattr(options, name)
        try:
            setattr(options, name, None if text is None else read(text))
        except ValueError:
            option = "-n" if name == "nproc" else f"--{name.replace('_', '-')}"
            parser.error(f"{option} {text}: expected {expected}")
    if options.log_dir is None and (options.redirects or options.tee):
        parser.error("--redirects and --tee: expected --log-dir, the folder of the files")
    options.program = _program(parser, options)
    if options.hostfile is not None and not os.path.isfile(options.hostfile):
        parser.error(f"--hostfile {options.hostfile}: no such file")
    return options


def _program(parser: _Parser, options: argparse.Namespace) -> list[str]:
    if options.module is not None:
        if not options.module:
            parser.error("-m: expected a module name")
        return ["-m", *options.module]
    script = options.script[1:] if options.script[:1] == ["--"] else options.script
    if not script:
        parser.error("no script given")
    path = script[0]
    if os.path.isdir(path):
        parser.error(f"{path} is a directory, expected a Python script")
    if not os.path.exists(path):
        parser.error(f"{path}: no such script")
    if not os.access(path, os.R_OK):
        parser.error(f"{path}: no permission to read the script")
    return script


def _version() -> str:
    from importlib import metadata

    try:
        return metadata.version("dptrain")
    except metadata.PackageNotFoundError:
        return "(not installed)"


def prepare(
    options: argparse.Namespace, env: Mapping[str, str]
) -> tuple[list[str], dict[str, str], dict[str, str], bool]:
    """Decides what to start.

    Returns:
        mpirun's command line, the whole environment, what of it was added, and whether ranks may
        run on other hosts.

    Raises:
        LaunchError: there is no usable mpirun, or the hostfile cannot be read.
    """
    base = mpirun.without_foreign_job(env)
    nproc = options.nproc or max(1, mpirun.gpu_count(base))
    package = __package__ or "launch"
    # -P: what lies in the working folder must not take the place of the modules that start a rank.
    argv = (sys.executable, "-P", "-m", f"{package}.rank", *options.program)
    job = Job(nproc, argv, options.hostfile, options.host, options.threads)
    hosts = mpirun.hosts_of(job)
    multi_host = mpirun.is_multi_host(hosts, base)
    path = mpirun.find(options.mpi)
    family = mpirun.identify(path, base)
    added = mpirun.additions(family, path, job, base, hosts=max(2, len(hosts)) if multi_host else 1)
    added[RESTART_COUNT] = "0"
    added["TORCHELASTIC_MAX_RESTARTS"] = str(options.max_restarts or 0)
    added["TORCHELASTIC_RUN_ID"] = options.rdzv_id
    if not multi_host:
        # Nothing here needs an address, but scripts written for torchrun read it.
        asked = {"MASTER_ADDR": options.master_addr, "MASTER_PORT": options.master_port}
        added.update({k: asked[k] or v for k, v in _address().items() if asked[k] or k not in base})
    if package == "launch":  # a bare clone: the ranks must find it from any folder
        clone = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
        added["PYTHONPATH"] = os.pathsep.join(filter(None, (clone, base.get("PYTHONPATH"))))
    if sys.stderr is not None and sys.stderr.isatty() and "COLUMNS" not in base:
        # A rank's stderr is a socket; a progress bar there cannot ask the terminal.
        added["COLUMNS"] = str(shutil.get_terminal_size().columns)
    exported = [
        name
        for name in (*added, protocol.ENV_ADDRESS)
        if name not in _NOT_EXPORTED and not name.startswith(("OMPI_", "PRTE_"))
    ]
    line = mpirun.command(family, path, job, exported if multi_host else ())
    return line, {**base, **added}, added, multi_host


def _address() -> dict[str, str]:
    """An address of this host at which nothing listens now, so that jobs beside each other differ."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}


def _log_folder(options: argparse.Namespace) -> str | None:
    """A new folder for this run's files, so that runs do not write into each other's.

    Raises:
        LaunchError: it cannot be made.
    """
    if options.log_dir is None:
        return None
    try:
        os.makedirs(options.log_dir, exist_ok=True)
        return tempfile.mkdtemp(prefix=f"{options.rdzv_id}_", dir=options.log_dir)
    except OSError as exception:
        raise LaunchError(f"--log-dir {options.log_dir}: {exception.strerror}") from None


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``dprun``; returns the exit status."""
    options = parse(sys.argv[1:] if argv is None else argv)
    try:
        line, env, added, multi_host = prepare(options, os.environ)
        if options.dry_run:
            for name, value in sorted(added.items()):
                print(f"{name}={shlex.quote(value)} \\")
            print(shlex.join(line))
            return 0
        if options.verbose:
            print(f"dprun: {shlex.join(line)}", file=sys.stderr, flush=True)
        settings = Settings(
            nproc=int(line[2]),
            show_all=options.output == "all",
            timeout_s=options.timeout,
            verbose=options.verbose,
            multi_host=multi_host,
            report=options.report,
            max_restarts=options.max_restarts or 0,
            log_folder=_log_folder(options),
            logged=(options.redirects or 0) | (options.tee or 0) or sum(STREAM_BITS.values()),
            hidden=(options.redirects or 0) & ~(options.tee or 0),
        )
        return supervise(settings, line, env)
    except LaunchError as exception:
        print(f"dprun: error: {exception}", file=sys.stderr)
        return EXIT_USAGE


if __name__ == "__main__":
    sys.exit(main())
