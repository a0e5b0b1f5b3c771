"""Process groups: who the ranks are, and which of them a call is about.

Owns: `ProcessGroup`, its numbering of ranks, groups made of others. Must not know: tensors, backends.

A group is a communicator with the ranks' numbers in the whole job. The group of all ranks belongs to
the default communicator, so that ranks which are threads have one each.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from dptrain.comm import default as _default
from dptrain.comm.communicator import Communicator
from dptrain.distributed.backend_names import known
from dptrain.distributed.group_calls import GroupCalls


class ProcessGroup(GroupCalls):
    """Some of the job's ranks, which communicate among themselves.

    Attributes:
        communicator: what moves their arrays.
        ranks: the numbers of its members in the whole job, by group rank.
        group_name: for messages.
        group_desc: what the user says it is for.
        backend: the name that the user asked for, such as "gloo"; "" if none.
    """

    def __init__(
        self, communicator: Communicator, ranks: Sequence[int], desc: str = "", backend: str = ""
    ) -> None:
        self.communicator = communicator
        self.ranks = list(ranks)
        self.group_name = communicator.name
        self.group_desc = desc
        self.backend = backend
        communicator.owner = self
        _groups.add(self)

    def rank(self) -> int:
        """This process's rank in the group."""
        return self.communicator.rank

    def size(self) -> int:
        """Number of ranks in the group."""
        return self.communicator.world_size

    def name(self) -> str:
        """The backend's name."""
        return self.backend or self.communicator.backend

    def __repr__(self) -> str:
        return f"<ProcessGroup {self.group_name!r} of ranks {self.ranks}>"


# Those that can still be used; each lives as long as its communicator.
_groups: weakref.WeakSet[ProcessGroup] = weakref.WeakSet()


def group_of(communicator: Communicator) -> ProcessGroup:
    """The group of a communicator; of one that belongs to no group yet, a group of its own."""
    found = communicator.owner
    if isinstance(found, ProcessGroup):
        return found
    return ProcessGroup(communicator, range(communicator.world_size), "default_pg")


def forget(group: ProcessGroup) -> None:
    """Count a group no longer among those that exist."""
    _groups.discard(group)


def num_groups() -> int:
    """How many groups exist in this process."""
    return len(_groups)


class _World(type):
    @property
    def WORLD(cls) -> ProcessGroup | None:
        """The group of all ranks; None before `init_process_group`."""
        if not _default.is_initialized():
            return None
        return group_of(_default.default_communicator())

    @WORLD.setter
    def WORLD(cls, value: object) -> None:
        raise AttributeError("group.WORLD follows init_process_group and cannot be set")


class group(metaclass=_World):
    """`group.WORLD`: the group of all ranks."""


class GroupMember(metaclass=_World):
    """`GroupMember.WORLD`, and what a rank gets for a group that it does not belong to."""

    NON_GROUP_MEMBER = -100


Group = ProcessGroup | Communicator | int | None


def world() -> ProcessGroup:
    """The group of all ranks.

    Raises:
        ValueError: there is none.
    """
    found = GroupMember.WORLD
    if found is None:
        raise ValueError(
            "Default process group has not been initialized, please make sure to call init_process_group."
        )
    return found


def member(group: Group) -> ProcessGroup | None:
    """The group that an argument names; None if this rank does not belong to it.

    Raises:
        ValueError: None, and there is no default group.
        TypeError: no group.
    """
    if group is None:
        return world()
    if isinstance(group, ProcessGroup):
        return group
    if isinstance(group, Communicator):
        return group_of(group)
    if group == GroupMember.NON_GROUP_MEMBER:
        return None
    raise TypeError(f"expected a ProcessGroup, got {type(group).__name__}")


def _own(group: Group, what: str) -> ProcessGroup:
    found = member(group)
    if found is None:
        raise ValueError(f"{what}: this rank is no member of the group")
    return found


def peer(
    op: str, group: ProcessGroup, rank: int | None, group_rank: int | None, default: int | None
) -> int:
    """The group rank of a root or peer that is named by its rank in the job or in the group.

    Raises:
        TypeError: no whole number.
        ValueError: both or none are named, or the rank is not in the group.
        RuntimeError: no rank of the job.
    """
    for named in (rank, group_rank):
        if named is not None and not hasattr(named, "__index__"):
            raise TypeError(f"{op}: expected a rank as an int, got {named!r}")
    if rank is not None and group_rank is not None:
        raise ValueError("Can't specify both group_rank and global_rank")
    if rank is None and group_rank is None:
        if default is None:
            raise ValueError("Must specify global_rank or group_rank")
        rank = default
    if group_rank is not None:
        if not 0 <= group_rank < group.size():
            raise RuntimeError(
                f"{op}: invalid root rank: {group_rank} in a group of {group.size()}"
            )
        return group_rank
    if group.ranks == list(range(group.size())) and rank not in group.ranks:
        raise RuntimeError(f"{op}: invalid root rank: {rank} in a group of {group.size()}")
    assert rank is not None
    return get_group_rank(group, rank)


def get_rank(group: Group = None) -> int:
    """This process's rank in the group; -1 if it is no member."""
    found = member(group)
    return -1 if found is None else found.rank()


def get_world_size(group: Group = None) -> int:
    """Number of ranks in the group; -1 if this process is no member."""
    found = member(group)
    return -1 if found is None else found.size()


def get_process_group_ranks(group: Group) -> list[int]:
    """The members' numbers in the whole job, by group rank."""
    return list(_own(group, "get_process_group_ranks").ranks)


def get_global_rank(group: Group, group_rank: int) -> int:
    """The number in the whole job of a member of the group.

    Raises:
        ValueError: `group_rank` is no rank of the group.
    """
    found = _own(group, "get_global_rank")
    if not 0 <= group_rank < found.size():
        raise ValueError(f"Group rank {group_rank} is not part of group {found!r}")
    return found.ranks[group_rank]


def get_group_rank(group: Group, global_rank: int) -> int:
    """The rank in the group of a rank of the whole job.

    Raises:
        ValueError: it is no member.
    """
    found = _own(group, "get_group_rank")
    if global_rank not in found.ranks:
        raise ValueError(f"Global rank {global_rank} is not part of group {found!r}")
    return found.ranks.index(global_rank)


def seconds(timeout: timedelta | float | None) -> float | None:
    """A timeout in seconds."""
    return timeout.total_seconds() if isinstance(timeout, timedelta) else timeout


def new_group(
    ranks: Sequence[int] | None = None,
    timeout: timedelta | float | None = None,
    backend: str | None = None,
    pg_options: Any = None,
    use_local_synchronization: bool = False,
    group_desc: str | None = None,
    device_id: Any = None,
    sort_ranks: bool = True,
) -> ProcessGroup | int:
    """A group of some ranks. Every rank of the job makes the call, with equal `ranks`.

    Args:
        ranks: numbers in the whole job; None: all.
        timeout: of its collectives; None: that of the whole job.
        backend: a name for `get_backend`; the ranks stay connected as they are.
        pg_options, device_id: accepted; nothing here depends on them.
        use_local_synchronization: must be False: ranks outside the group take part in making it.
        sort_ranks: number the members by their ranks in the job, not by their order in `ranks`.

    Returns:
        The group, or `GroupMember.NON_GROUP_MEMBER` on ranks outside.

    Raises:
        ValueError: `ranks` holds a rank twice, or what is no rank; no such backend; or the ranks do
            not agree.
    """
    if use_local_synchronization:
        raise ValueError(
            "new_group: use_local_synchronization=True is not available; all ranks call it"
        )
    parent = world()
    wanted = list(range(parent.size())) if ranks is None else [int(rank) for rank in ranks]
    _check_ranks(wanted, parent.size())
    if sort_ranks:
        wanted.sort()
    made = _split(parent, [wanted], seconds(timeout), group_desc, backend)
    return GroupMember.NON_GROUP_MEMBER if made is None else made


def _check_ranks(ranks: list[int], world_size: int) -> None:
    if len(set(ranks)) != len(ranks):
        raise ValueError(f"ranks list must not contain duplicate entries, got {ranks}")
    if len(ranks) > world_size:
        raise ValueError(
            "the new group's world size should be less or equal to the world size set by init_process_group; "
            f"got {len(ranks)} ranks of {world_size}"
        )
    for rank in ranks:
        if not 0 <= rank < world_size:
            raise ValueError(
                "The new group's rank should be within the world_size set by init_process_group; "
                f"got {rank} of {world_size}"
            )


def _split(
    parent: ProcessGroup,
    parts: list[list[int]],
    timeout_s: float | None,
    desc: str | None,
    backend: str | None,
) -> ProcessGroup | None:
    """The group of that part (of ranks in `parent`) to which this rank belongs; None if to none."""
    if backend is not None:
        known(backend)
    everyone = parent.communicator.all_gather_object(parts)
    for rank, told in enumerate(everyone):
        if told != parts:
            raise ValueError(
                f"[rank {parent.rank()}/{parent.size()}] the ranks ask for different groups: this rank "
                f"for {parts}, rank {rank} for {told}"
            )
    mine = next((i for i, part in enumerate(parts) if parent.rank() in part), None)
    key = 0 if mine is None else parts[mine].index(parent.rank())
    made = parent.communicator.split(mine, key)
    if made is None or mine is None:
        return None
    if timeout_s is not None:
        made.timeout_s = timeout_s
    ranks = [parent.ranks[rank] for rank in parts[mine]]
    return ProcessGroup(made, ranks, desc or "", backend or parent.backend)


def groups_of_parts(parts: list[list[int]]) -> ProcessGroup | None:
    """The group of that part of the job's ranks to which this one belongs, in the parts' order; or None.

    Every rank of the job makes the call, with equal parts.
    """
    return _split(world(), parts, None, None, None)


def split_group(
    parent_pg: Group = None,
    split_ranks: list[list[int]] | None = None,
    timeout: timedelta | float | None = None,
    pg_options: Any = None,
    group_desc: str | None = None,
    backend: str | None = None,
) -> ProcessGroup | None:
    """Cut a group into parts; every rank of it makes the call with equal arguments.

    Args:
        split_ranks: for each part, ranks of `parent_pg` (not of the job).

    Returns:
        The part to which this rank belongs; None if to none.

    Raises:
        ValueError: no parts, an empty part, a rank in two parts, or what is no rank.
    """
    parent = _own(parent_pg, "split_group")
    if not split_ranks:
        raise ValueError("split_ranks cannot be None or empty")
    if not all(split_ranks):
        raise ValueError("the split group cannot be empty")
    _check_ranks([rank for part in split_ranks for rank in part], parent.size())
    parts = [sorted(part) for part in split_ranks]
    return _split(parent, parts, seconds(timeout), group_desc, backend)


def new_subgroups_by_enumeration(
    ranks_per_subgroup_list: Sequence[Sequence[int]],
    timeout: timedelta | float | None = None,
    backend: str | None = None,
    pg_options: Any = None,
    group_desc: str | None = None,
) -> tuple[ProcessGroup | int | None, list[ProcessGroup | int]]:
    """Groups of the listed ranks, which must not overlap.

    Returns:
        This rank's group (None if it is in none) and, for each list, the group or
        `GroupMember.NON_GROUP_MEMBER`.

    Raises:
        ValueError: nothing listed, or a rank listed twice.
    """
    if not ranks_per_subgroup_list:
        raise ValueError("The arg 'ranks_per_subgroup_list' cannot be empty")
    parent = world()
    parts = [sorted(part) for part in ranks_per_subgroup_list]
    _check_ranks([rank for part in parts for rank in part], parent.size())
    mine = _split(parent, parts, seconds(timeout), group_desc, backend)
    absent: ProcessGroup | int = GroupMember.NON_GROUP_MEMBER
    own = None if mine is None else mine
    return own, [own if own is not None and parent.rank() in part else absent for part in parts]


def new_subgroups(
    group_size: int | None = None,
    group: Group = None,
    timeout: timedelta | float | None = None,
    backend: str | None = None,
    pg_options: Any = None,
    group_desc: str | None = None,
) -> tuple[ProcessGroup | int | None, list[ProcessGroup | int]]:
    """Groups of `group_size` ranks that follow each other; default: one for each host's ranks.

    Raises:
        ValueError: `group_size` is not positive or does not divide the number of ranks.
    """
    parent = world() if group is None else _own(group, "new_subgroups")
    size = parent.communicator.local_world_size if group_size is None else group_size
    if size <= 0:
        raise ValueError(f"The arg 'group_size' ({size}) must be positive")
    if size > parent.size():
        raise ValueError(
            f"The arg 'group_size' ({size}) must not exceed the world size ({parent.size()})"
        )
    if parent.size() % size:
        raise ValueError(
            f"The world size ({parent.size()}) must be divisible by 'group_size={size}'"
        )
    starts = range(0, parent.size(), size)
    parts = [list(range(start, start + size)) for start in starts]
    mine = _split(parent, parts, seconds(timeout), group_desc, backend)
    assert mine is not None
    absent: ProcessGroup | int = GroupMember.NON_GROUP_MEMBER
    return mine, [mine if parent.rank() in part else absent for part in parts]
