"""From what was seen of a job to its exit status and last words. Pure.

Owns: which failure was the first, and what it means that mpirun ended as it did. Must not know:
processes, sockets, time.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from . import report
from .hub import Event, RankState
from .mpirun import RankEnd, parse_end

EXIT_TIMEOUT = 124


@dataclass(frozen=True)
class Outcome:
    """What was seen of a job that has ended.

    Attributes:
        ranks: those that ever connected.
        first: failure events that were noticed together, before all others.
        later: failure events after those.
        status: mpirun's return code (negative: killed by that signal), None when we ended it.
        mpirun_text: everything mpirun said.
        stderr_tail: the last a rank wrote to stderr.
        stacks: the ranks' Python stacks when the job's time limit had passed, else None.
    """

    nproc: int
    ranks: Mapping[int, RankState]
    first: Sequence[Event]
    later: Sequence[Event]
    status: int | None
    mpirun_text: str
    stderr_tail: Callable[[int], str]
    stacks: Mapping[int, str] | None = None


def conclude(outcome: Outcome) -> tuple[int, str]:
    """The job's exit status and the last words for stderr (empty when all went well)."""
    if outcome.stacks is not None:
        silent = [rank for rank in sorted(outcome.ranks) if rank not in outcome.stacks]
        text = report.stacks_block(outcome.stacks, silent)
        return EXIT_TIMEOUT, f"{text}dprun: the job was stopped: its --timeout has passed\n"
    status = outcome.status
    killed = status is not None and status < 0
    # Ranks die with mpirun; then their silent end is no cause.
    if outcome.first and not (killed and all(event.message is None for event in outcome.first)):
        return _explain_failure(outcome)
    if status is not None and status < 0:
        name = signal.Signals(-status).name
        return 128 - status, f"dprun: mpirun was killed by {name}, and with it every rank\n"
    missing = outcome.nproc - len(outcome.ranks)
    if status == 0 and missing == 0:
        return 0, ""
    when = (
        f"while {missing} of {outcome.nproc} ranks had not started"
        if missing
        else "although every rank had ended well"
    )
    return status or 1, f"dprun: mpirun ended with status {status} {when}\n"


# What Open MPI 5.0's mpirun prints when it loses a race with itself, in about one start of a hundred
# on a loaded machine. Nothing has been started then, and the next start works.
_START_RACE = "PMIx server's listener thread failed to start"


def lost_start_race(outcome: Outcome) -> bool:
    """Whether mpirun failed by itself, before any rank was started, so that it can be started again."""
    failed = outcome.status is not None and outcome.status > 0
    return failed and not outcome.ranks and _START_RACE in outcome.mpirun_text


def _explain_failure(outcome: Outcome) -> tuple[int, str]:
    end = parse_end(outcome.mpirun_text)
    named = _rank_named(end, outcome.ranks)
    events = list(outcome.first)
    if end is not None and end.verb == "no finalize" and named is not None:
        # It announced success, but mpirun then ended the others because of it.
        events.append(Event(named, None))
    first = min(events, key=lambda event: _order(event, named))
    failures: dict[int, report.Failure] = {}
    for event in (first, *events, *outcome.later):
        # Of the others, silent ends are our doing.
        if event.rank not in failures and (event is first or event.message is not None):
            failures[event.rank] = _failure(event, outcome, end if event.rank == named else None)
    cause, *others = failures.values()
    return cause.code, report.block(cause, others, outcome.nproc)


def _rank_named(end: RankEnd | None, ranks: Mapping[int, RankState]) -> int | None:
    if end is None:
        return None
    for rank, state in ranks.items():
        if end.rank == rank or (end.rank is None and end.pid == state.pid):
            return rank
    return None


def _order(event: Event, named: int | None) -> tuple[bool, bool, float]:
    # Of failures noticed together mpirun knows the first; else a report outranks a silent end,
    # which may be its consequence; else the time of the report decides.
    moment = event.message.get("time") if event.message is not None else None
    return (
        event.rank != named,
        event.message is None,
        float(moment) if isinstance(moment, (int, float)) else 0.0,
    )


def _failure(event: Event, outcome: Outcome, end: RankEnd | None) -> report.Failure:
    state = outcome.ranks[event.rank]
    message = event.message
    if message is None:
        tail = outcome.stderr_tail(event.rank)
        return report.of_death(state, end, outcome.status, tail)
    if message["kind"] == "error":
        return report.of_error(state, message)
    return report.of_exit(state, state.exit_code or 1)
