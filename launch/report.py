"""The final block: which rank failed first, how, and its traceback last.

Owns: the words. Must not know: processes, sockets, when a job ends.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from .hub import RankState
from .mpirun import RankEnd
from .protocol import Message

_RULE = "-" * 80
_MAX_OTHERS = 4
_OWN_FRAME = re.compile(r'File "(.*[/\\]launch[/\\]rank\.py|<frozen runpy>)", line')
_SIGNAL_HINTS: dict[int, str] = {
    signal.SIGKILL: "SIGKILL comes from outside: the kernel's out-of-memory killer is the usual "
    "sender (see dmesg)",
    signal.SIGSEGV: "a crash in native code: a C extension, or memory reached through ctypes",
    signal.SIGBUS: "a mapped file or shared memory that is too small, or /dev/shm is full",
    signal.SIGILL: "native code built for another CPU",
}


@dataclass(frozen=True)
class Failure:
    """One rank's failure.

    Attributes:
        how: one line.
        code: exit status of the job if this failure came first.
        detail: traceback or other text of several lines, may be empty.
        hint: one line on what this usually means, may be empty.
    """

    state: RankState
    how: str
    code: int
    detail: str = ""
    hint: str = ""


def of_error(state: RankState, message: Message) -> Failure:
    """Failure of a rank that reported an exception or a ``sys.exit`` with a nonzero status."""
    code = message.get("code")
    code = code & 0xFF if type(code) is int else 1
    type_name = _text(message, "type")
    text = _text(message, "message")
    first_line = text.splitlines()[0] if text else ""
    if type_name == "SystemExit":
        return Failure(state, f"sys.exit with status {code}", code, text)
    how = f"{type_name}: {first_line}" if first_line else type_name
    return Failure(state, how, code or 1, _text(message, "traceback").rstrip("\n"))


def of_exit(state: RankState, code: int) -> Failure:
    """Failure of a rank that announced a nonzero exit status."""
    if code == 128 + signal.SIGINT:
        return Failure(state, "interrupted (KeyboardInterrupt)", code)
    return Failure(state, f"exit status {code} (os._exit)", code)


def of_death(
    state: RankState, end: RankEnd | None, status: int | None, stderr_tail: str
) -> Failure:
    """Failure of a rank that ended without a word.

    Args:
        end: what mpirun says of this rank, if it does.
        status: mpirun's exit status, None when it says nothing about the rank.
        stderr_tail: the last that the rank wrote; Python's own crash report is taken from it.
    """
    number = end.signal if end else None
    code = end.code if end else None
    if number is None and code is None and status:
        # Shells' and mpirun's convention; a plain status of that size is rare.
        number, code = (status - 128, None) if 128 < status < 128 + signal.NSIG else (None, status)
    detail = crash_report(stderr_tail)
    if number is not None:
        try:
            name = signal.Signals(number).name
        except ValueError:
            name = "unknown"
        hint = _SIGNAL_HINTS.get(number, "")
        return Failure(state, f"killed by signal {number} ({name})", 128 + number, detail, hint)
    verb = end.verb if end else None
    if verb == "no finalize":
        how = "ended while the others still needed it, without MPI_Finalize"
        return Failure(state, how, code or 1, detail)
    if code:
        how = f"{verb}, error code {code}" if verb else f"MPI_Abort or a native exit, status {code}"
        return Failure(state, how, code, detail)
    how = "ended without a word, by a signal, MPI_Abort or a native exit"
    return Failure(state, how, 1, detail)


def crash_report(stderr_tail: str) -> str:
    """Python's own report of a fatal error: what, and the stack of the thread it happened in.

    Frames of the launcher and of other threads are left out; empty when there is no report.
    """
    start = stderr_tail.rfind("Fatal Python error")
    if start < 0:
        return ""
    what, *paragraphs = stderr_tail[start:].split("\n\n")
    current = next((text for text in paragraphs if text.startswith("Current thread")), "")
    stack = [line for line in current.splitlines() if not _OWN_FRAME.search(line)]
    return "\n".join([what.rstrip("\n"), *stack])


def block(first: Failure, others: Sequence[Failure], world_size: int) -> str:
    """The final block, newline at the end.

    Args:
        first: the failure that ended the job.
        others: later failures that ranks reported by themselves, one line each.
        world_size: number of ranks.
    """
    state = first.state
    step = (state.beat or {}).get("step")
    where = f"host {state.host}, pid {state.pid}"
    if step is not None:
        where += f", step {step}"
    lines = [_RULE, f"dprun: rank {state.rank} of {world_size} failed first ({where}): {first.how}"]
    if first.hint:
        lines.append(f"dprun: {first.hint}")
    if world_size > 1:
        lines.append(f"dprun: the other ranks were stopped because of rank {state.rank}")
    lines += [f"dprun: then rank {late.state.rank}: {late.how}" for late in others[:_MAX_OTHERS]]
    if len(others) > _MAX_OTHERS:
        lines.append(f"dprun: then {len(others) - _MAX_OTHERS} more ranks")
    if first.detail:
        lines.append(first.detail)
    return "\n".join(lines) + "\n"


class Block(NamedTuple):
    """What a final block says of the first failure.

    Attributes:
        detail: the traceback, or what else there is.
        signal_name: of the signal that killed it, or None.
    """

    rank: int
    pid: int
    how: str
    detail: str
    signal_name: str | None


def parse_block(text: str) -> Block | None:
    """Reads what ``block`` has written; None if the text is something else."""
    head = re.search(
        r"^dprun: rank (\d+) of \d+ failed first \(.*?, pid (\d+).*?\): (.*)$", text, re.M
    )
    if head is None:
        return None
    lines = text[head.end() :].split("\n")[1:]
    while lines and lines[0].startswith("dprun: "):
        del lines[0]
    killed = re.fullmatch(r"killed by signal \d+ \((SIG\w+)\)", head[3])
    name = killed[1] if killed else None
    return Block(int(head[1]), int(head[2]), head[3], "\n".join(lines), name)


def stacks_block(texts: Mapping[int, str], silent: Sequence[int]) -> str:
    """The Python stacks of the ranks that answered, and who did not."""
    lines = []
    for rank, text in sorted(texts.items()):
        lines += [f"[rank {rank}] stacks:", *(f"[rank {rank}]   {x}" for x in text.splitlines())]
    if silent:
        names = ", ".join(map(str, silent))
        lines.append(f"dprun: no answer from rank {names}: stopped, or busy in native code")
    return "".join(f"{line}\n" for line in lines)


def _text(message: Message, name: str) -> str:
    value = message.get(name)
    return value if isinstance(value, str) else ""
