"""Which gradients travel together: a pure function of the parameters' sizes.

Owns: `plan_buckets`, `consecutive`. Must not know: tensors, communicators, timings. A layout that depended on
measured arrival order would differ from run to run, and sums with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

MIB = 1024 * 1024
#: PyTorch's default: large enough to use the links well, small enough to start early.
BUCKET_CAP_MB = 25.0
#: The first bucket starts the communication early; the last one is all that backward cannot hide.
END_CAP_MB = 1.0
#: The same where all ranks are on one host.
HOST_END_CAP_MB = 4.0


@dataclass(frozen=True)
class Bucket:
    """Parameters `first` to `last - 1` of a layout: elements `start` to `stop - 1` of its buffer."""

    first: int
    last: int
    start: int
    stop: int


def plan_buckets(
    bounds: Sequence[tuple[int, int]],
    itemsize: int,
    bucket_cap_mb: float | Sequence[float] | None = None,
    end_cap_mb: float = END_CAP_MB,
) -> list[Bucket]:
    """Cut a layout into buckets, in the order in which backward fills them.

    A bucket is closed as soon as it reaches its cap, so a parameter is never split and a cap is
    soft, as in PyTorch. Without an explicit cap the first and the last bucket are small.

    Args:
        bounds: (start, stop) of each parameter in elements, ascending.
        itemsize: bytes of an element.
        bucket_cap_mb: size of a bucket in MiB, or of each bucket, the last one also for those that
            follow; None: 25, and `end_cap_mb` at both ends.
        end_cap_mb: see there.

    Raises:
        ValueError: a cap that is not positive.
    """
    caps = _caps(bucket_cap_mb, end_cap_mb)
    groups: list[list[int]] = []
    held = 0.0
    for i, (start, stop) in enumerate(bounds):
        if not groups or held >= caps[min(len(groups), len(caps)) - 1]:
            groups.append([])
            held = 0.0
        groups[-1].append(i)
        held += (stop - start) * itemsize
    if bucket_cap_mb is None:
        groups = _with_small_tail(groups, bounds, itemsize, caps[0])
    return [Bucket(g[0], g[-1] + 1, bounds[g[0]][0], bounds[g[-1]][1]) for g in groups]


def _caps(bucket_cap_mb: float | Sequence[float] | None, end_cap_mb: float) -> list[float]:
    """The cap of each bucket in bytes; the last one holds for all that follow."""
    if bucket_cap_mb is None:
        return [end_cap_mb * MIB, BUCKET_CAP_MB * MIB]
    given = [bucket_cap_mb] if isinstance(bucket_cap_mb, (int, float)) else list(bucket_cap_mb)
    if not given or any(cap < 0 for cap in given):
        raise ValueError(f"bucket_cap_mb must be 0 or more, got {bucket_cap_mb}")
    return [cap * MIB for cap in given]


def _with_small_tail(
    groups: list[list[int]], bounds: Sequence[tuple[int, int]], itemsize: int, end_cap: float
) -> list[list[int]]:
    """Cut the parameters that become ready last off the last bucket, if that leaves both useful."""
    if len(groups) < 2:
        return groups
    last, held = groups[-1], 0.0
    tail: list[int] = []
    while len(last) > 1:
        size = (bounds[last[-1]][1] - bounds[last[-1]][0]) * itemsize
        if held + size > end_cap:
            break
        tail.insert(0, last.pop())
        held += size
    rest = sum(bounds[i][1] - bounds[i][0] for i in last) * itemsize
    if not tail or rest < end_cap:  # a split that leaves two small buckets only costs a launch
        last.extend(tail)
        return groups
    return [*groups, tail]


def consecutive(positions: Sequence[int]) -> Iterator[list[int]]:
    """Ascending numbers, cut where one is not the successor of the one before."""
    run: list[int] = []
    for i in positions:
        if run and i != run[-1] + 1:
            yield run
            run = []
        run.append(i)
    if run:
        yield run
