"""The `dptrain` command: `dptrain doctor`, `dptrain bench`.

Owns: the list of subcommands. Each is a module beside this one with `add_arguments` and `run`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import dptrain
from dptrain.cli import bench, doctor


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="dptrain", description="Tools for dptrain installations.")
    parser.add_argument("--version", action="version", version=dptrain.__version__)
    commands = parser.add_subparsers(dest="command", required=True)
    doctor.add_arguments(
        commands.add_parser("doctor", help="what is installed here, and does it work")
    )
    bench.add_arguments(commands.add_parser("bench", help="how fast this machine is"))
    args = parser.parse_args(argv)
    return int(args.run(args))
