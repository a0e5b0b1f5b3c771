"""Runs: the stretches of flat storage that one kernel call updates, and the state beside them.

Owns: the layout of optimizer state over flat storages, and the plan of runs of one step. Must not
know: any particular optimizer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from operator import is_
from typing import Any

import numpy as np

from dptrain.core.arrays import as_array, beside, move
from dptrain.core.flat import FlatStorage, Place, aligned_empty
from dptrain.core.parts import divide
from dptrain.core.tensor import Tensor, wrap

#: Name of the per-parameter step counter in the state of optimizers that count.
STEP = "step"

_IN_SLOT = object()

#: Gives the value that a piece of state of a parameter group starts from.
Initial = Callable[[str, dict[str, Any]], float]


class StateBuffers:
    """Optimizer state over part of one storage: a flat buffer per name, laid out like the parameters.

    An optimizer of a few parameters of a storage pays for the span from the first to the last of them.

    Args:
        storage: where the parameters lie.
        span: the elements of the storage that have state, from start to stop.
        scalar_names: state that is one number per parameter (`STEP` among them).

    Attributes:
        storage: where the parameters lie.
        span: as given.
        scalars: by name, one number for each parameter, by its position in the storage.
    """

    def __init__(
        self, storage: FlatStorage, span: tuple[int, int], scalar_names: frozenset[str]
    ) -> None:
        self.storage, self.span = storage, span
        # float32 like PyTorch's counters, so that state dicts look the same on both sides.
        self.scalars = {n: np.zeros(len(storage.params), dtype=np.float32) for n in scalar_names}
        for numbers in self.scalars.values():
            divide(numbers, [(i, i + 1) for i in range(len(numbers))])
        self._buffers: dict[str, np.ndarray] = {}
        self._views: dict[tuple[str, int], Tensor] = {}

    def buffer(self, name: str) -> np.ndarray:
        """The flat buffer of that name; zeros when it is new."""
        found = self._buffers.get(name)
        if found is None:
            first, stop = self.span
            kind, size = self.storage.data.dtype, stop - first
            with beside(self.storage.data):
                found = aligned_empty(size * kind.itemsize, self.storage.xp).view(kind)
                found.fill(0)
            self.storage.mark_parts(found, first)
            self._buffers[name] = found
        return found

    def part(self, name: str, start: int, stop: int) -> np.ndarray:
        """The state that belongs to elements `start` to `stop` of the storage."""
        return self.buffer(name)[start - self.span[0] : stop - self.span[0]]

    def view(self, name: str, p: Tensor, place: Place) -> Tensor:
        """The tensor that shows a parameter's part of a buffer (or its number)."""
        found = self._views.get((name, place.position))
        if found is None:
            if name in self.scalars:
                array = self.scalars[name][place.position : place.position + 1].reshape(())
            else:
                array = self.part(name, place.start, place.stop).reshape(p._array.shape)
            found = self._views[name, place.position] = wrap(array)
        return found


@dataclass(slots=True)
class Run:
    """Neighbouring parameters that are updated together.

    Attributes:
        group: their parameter group, with the hyper-parameters.
        params: the parameters.
        param: their values, one-dimensional, gaps between the parameters included.
        grad: their gradients, likewise.
        state: their state buffers by name, likewise.
        first: whether this is their first update: their state holds zeros.
        step: number of this update, from 1, for optimizers that count.
        scalars: their state of one number each, by name; equal for all of them.
        gaps: slices of the arrays that belong to no parameter.
        apart: the parameter whose values or gradient lie elsewhere than in the flat storage, if this
            is the run of one: `param` and `grad` are of this step only.
    """

    group: dict[str, Any]
    params: list[Tensor]
    param: np.ndarray
    grad: np.ndarray
    state: dict[str, np.ndarray]
    first: bool
    step: int
    scalars: dict[str, np.ndarray]
    gaps: list[slice]
    apart: Tensor | None = None

    def fetch(self) -> None:
        """Look at the memory of the parameter that lies apart; a copy where it is not in row-major order."""
        p = self.apart
        assert p is not None
        assert p._grad is not None
        self.param = p._array.reshape(-1)
        self.grad = p._grad._array.reshape(-1)

    def bring_back(self) -> None:
        """After the update: what was a copy goes to where the parameter lies."""
        assert self.apart is not None
        array = self.apart._array
        if not np.may_share_memory(self.param, array):
            np.copyto(array, self.param.reshape(array.shape))

    def each(self) -> Iterator[tuple[Tensor, slice]]:
        """The parameters one by one, and where in the arrays they are."""
        start = self.params[0]._place.start
        for p in self.params:
            yield p, slice(p._place.start - start, p._place.stop - start)

    def advance(self) -> None:
        """Count the update that is about to happen."""
        counts = self.scalars[STEP]
        self.step = int(counts.item(0)) + 1  # another run may have counted: a duplicate's
        counts.fill(self.step)

    def scalar(self, name: str) -> float:
        """The number that all its parameters have in their state under that name."""
        return float(self.scalars[name][0])

    def clear_gaps(self) -> None:
        """Put the zeros back where an update may have left other values between the parameters."""
        for gap in self.gaps:
            for array in (self.param, *self.state.values()):
                array[gap] = 0

    def clear_gaps_without(self, eps: float) -> None:
        """Likewise after 0 / 0, where nothing (in this type) was added to the denominator."""
        if self.param.dtype.type(eps) == 0:
            self.clear_gaps()


@dataclass(slots=True)
class _Item:
    """One parameter on its way into a run."""

    p: Tensor
    place: Place
    buffers: StateBuffers
    group: dict[str, Any]
    names: tuple[str, ...]
    first: bool
    apart: bool

    def follows(self, other: _Item) -> bool:
        """Whether one kernel call may go on from `other` to this parameter."""
        return (
            not (self.apart or other.apart)
            and self.buffers is other.buffers
            and self.place.position == other.place.position + 1
            and self.group is other.group
            and self.first == other.first
            and all(
                held[self.place.position] == held[other.place.position]
                for name, held in self.buffers.scalars.items()
                if name in self.names
            )
        )


class Plan:
    """The runs of a step, and what they were made from, so that a change is noticed.

    Args:
        param_groups: the optimizer's groups; every parameter with a gradient has a place in a flat storage.
        names: for each group the names of its state.
        state: the optimizer's state by parameter; entries that are missing are made, foreign tensors
            are copied into the flat buffers and replaced by views of them.
        buffers: flat state by id of the storage; storages that are new are added.
        scalar_names: state that is one number per parameter.
        initial: what new state starts from.
    """

    def __init__(
        self,
        param_groups: list[dict[str, Any]],
        names: list[tuple[str, ...]],
        state: dict[Any, dict[str, Any]],
        buffers: dict[int, StateBuffers],
        scalar_names: frozenset[str],
        initial: Initial,
    ) -> None:
        self._groups, self._names = list(param_groups), names
        items = list(_items(param_groups, names, buffers, scalar_names))
        for item in items:
            state.setdefault(item.p, {})
        _attach(items, state, initial)
        self._params = [list(group["params"]) for group in param_groups]
        every = [p for group in self._params for p in group]
        self._bindings = [(p, p._array, p._place, _grad_of(p)) for p in every if p._has_values]
        self._without = [p for p in every if not p._has_values]
        self._entries = list(state.items())
        self._views = [
            (state[item.p], name, state[item.p][name]) for item in items for name in item.names
        ]
        storages = dict.fromkeys(item.place.storage for item in items)
        self._grads = [(storage, storage.grad) for storage in storages]
        self.runs = [_run(stretch) for stretch in _stretches(items)]
        #: Such runs merge with their neighbours after this update.
        self.has_first = any(run.first for run in self.runs)

    def holds(
        self,
        param_groups: list[dict[str, Any]],
        names: list[tuple[str, ...]],
        state: dict[Any, dict[str, Any]],
    ) -> bool:
        """Whether everything is where it was when the plan was made; identity checks only."""
        # Every step of every optimizer asks, hence the loops that run inside of Python.
        if names != self._names or len(state) != len(self._entries):
            return False
        if not all(map(is_, param_groups, self._groups)):
            return False
        for group, own in zip(param_groups, self._params, strict=True):
            if len(group["params"]) != len(own) or not all(map(is_, group["params"], own)):
                return False
        for (p, held), (own, entry) in zip(state.items(), self._entries, strict=True):
            if p is not own or held is not entry:
                return False
        for p, array, place, grad in self._bindings:
            if p._array is not array or p._place is not place:
                return False
            now = p._grad  # `_grad_of`, without a call for each parameter
            if now is not grad and (grad is not _IN_SLOT or now is None or now is not p._slot):
                return False
        for storage, memory in self._grads:
            if storage.grad is not memory:
                return False
        for entry, name, view in self._views:
            if entry.get(name) is not view:
                return False
        return not (self._without and any(p._has_values for p in self._without))


def _items(
    param_groups: list[dict[str, Any]],
    names: list[tuple[str, ...]],
    buffers: dict[int, StateBuffers],
    scalar_names: frozenset[str],
) -> Iterator[_Item]:
    spans = _spans(param_groups)
    for group, wanted in zip(param_groups, names, strict=True):
        for p in group["params"]:
            if p._grad is None:
                continue
            place: Place = p._place
            key = id(place.storage)
            held = buffers.get(key)
            if held is None or held.span[0] > spans[key][0] or held.span[1] < spans[key][1]:
                # State that lies in buffers of a shorter span moves over when it is attached.
                held = buffers[key] = StateBuffers(place.storage, spans[key], scalar_names)
            apart = p._grad is not p._slot or not place.storage.lies_here(p)
            yield _Item(p, place, held, group, wanted, first=False, apart=apart)


def _spans(param_groups: list[dict[str, Any]]) -> dict[int, tuple[int, int]]:
    """By id of the storage: the elements from the first to the last of the groups' parameters."""
    spans: dict[int, tuple[int, int]] = {}
    for group in param_groups:
        for p in group["params"]:
            place: Place | None = p._place
            if place is not None:
                start, stop = spans.get(id(place.storage), (place.start, place.stop))
                spans[id(place.storage)] = (min(start, place.start), max(stop, place.stop))
    return spans


def _grad_of(p: Tensor) -> Any:
    """The gradient of a parameter; of one in its slot only that it is there.

    Whether somebody holds a gradient is told by counting, in which a plan must not take part.
    """
    grad = p._grad
    return _IN_SLOT if grad is not None and grad is p._slot else grad


def _attach(items: list[_Item], state: dict[Any, dict[str, Any]], initial: Initial) -> None:
    """Make every entry of the state a view of the flat buffers, with the values it had."""
    moves: list[tuple[dict[str, Any], str, Tensor, Any]] = []
    for item in items:
        entry = state[item.p]
        item.first = any(entry.get(name) is None for name in item.names)
        for name in item.names:
            view, held = item.buffers.view(name, item.p, item.place), entry.get(name)
            if held is not view:
                # Copied before anything is written: it may look into the buffers itself.
                values: Any = initial(name, item.group) if held is None else _copy_for(view, held)
                if held is not None and values.shape != view._array.shape:
                    raise RuntimeError(
                        f"the state {name!r} of a parameter has shape {list(values.shape)}, but the parameter has "
                        f"shape {list(item.p.shape)} now; was it given other data after a step? Clear its state, "
                        "or make a new optimizer"
                    )
                moves.append((entry, name, view, values))
    for entry, name, view, values in moves:
        with beside(view._array):
            np.copyto(view._array, values, casting="unsafe")
        entry[name] = view


def _copy_for(view: Tensor, held: Any) -> Any:
    """A copy of a piece of state where its view lives."""
    return move(as_array(values_of(held)), view.device).copy(order="K")


def values_of(held: Any) -> Any:
    """The array of a tensor; anything else as it is."""
    return held._array if isinstance(held, Tensor) else held


def _stretches(items: list[_Item]) -> Iterator[list[_Item]]:
    """The items in the order of the storages, cut where one kernel call cannot go on.

    Those that lie apart may share memory with each other, and follow in their own order.
    """
    order = {id(item.buffers): i for i, item in reversed(list(enumerate(items)))}
    stretch: list[_Item] = []
    together = [item for item in items if not item.apart]
    together.sort(key=lambda item: (order[id(item.buffers)], item.place.position))
    for item in [*together, *(item for item in items if item.apart)]:
        if stretch and not item.follows(stretch[-1]):
            yield stretch
            stretch = []
        stretch.append(item)
    if stretch:
        yield stretch


def _run(items: list[_Item]) -> Run:
    first, last, buffers = items[0], items[-1], items[0].buffers
    whole = slice(first.place.start, last.place.stop)
    members = slice(first.place.position, last.place.position + 1)
    scalars = {name: held[members] for name, held in buffers.scalars.items()}
    gaps = [
        slice(a.place.stop - whole.start, b.place.start - whole.start)
        for a, b in pairwise(items)
        if a.place.stop < b.place.start
    ]
    return Run(
        group=first.group,
        params=[item.p for item in items],
        param=buffers.storage.data[whole],
        grad=buffers.storage.grad[whole],
        state={
            n: buffers.part(n, whole.start, whole.stop) for n in first.names if n not in scalars
        },
        first=first.first,
        step=int(scalars[STEP][0]),
        scalars=scalars,
        gaps=gaps,
        apart=first.p if first.apart else None,
    )
