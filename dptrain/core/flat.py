"""Flat storage: parameters and gradients in a few contiguous buffers of which the tensors are views.

Owns: `FlatStorage` (one per dtype), its layout, and the detection of parameters that were bound to
something else since. Must not know: optimizers and ranks; both use it, and whichever of them comes
first creates it. The memory of the gradients comes from an allocator that is passed in.

Memory into which something else looks (a view made before, a NumPy array, another parameter, another
process) does not move: what shares memory in PyTorch shares it here. The values of such a parameter are
*apart*: they stay where they are, and its part of `data` is theirs only between `gather` and `scatter`.
A gradient that somebody still holds when the next one is to be written keeps its memory in the same
way, and the buffer moves instead.

Layout: the parameters in *reverse* order of registration, each at a multiple of 64 bytes. Backward
makes gradients ready in about that order, so that a communication bucket is a slice from the front,
and an optimizer step is one pass over the buffer. The gaps are zeros and stay zeros.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from dptrain.core import heap
from dptrain.core.arrays import address, beside, device_of, is_writeable, namespace_of
from dptrain.core.cuda import is_capturing
from dptrain.core.onlookers import has_onlookers, held_by_others, is_held
from dptrain.core.parts import divide
from dptrain.core.tensor import Tensor, wrap

heap.prepare()

#: Called before parameters move into a storage: who holds their memory without having been asked to lets go of it.
before_moving: list[Callable[[], None]] = []

#: Gives `nbytes` of memory as a one-dimensional uint8 array, 64-byte aligned.
Allocator = Callable[[int], np.ndarray]

_ALIGNMENT = 64
#: Bytes of parameters whose former memory is more than the heap should keep for other arrays; given back when an
#: optimizer comes, since whoever made the storage may still have held some of it.
_WORTH_GIVING_BACK = 32 << 20


def aligned_empty(nbytes: int, xp: Any = np) -> Any:
    """Private memory at a 64-byte boundary (a cache line, and a full vector register).

    Args:
        nbytes: its size.
        xp: the namespace of the device on which it lies.
    """
    raw = xp.empty(nbytes + _ALIGNMENT, dtype=np.uint8)
    start = -address(raw) % _ALIGNMENT
    return raw[start : start + nbytes]


@dataclass(frozen=True)
class Place:
    """Where a parameter lies in a storage: elements [start, start + size)."""

    storage: FlatStorage
    position: int
    start: int
    size: int

    @property
    def stop(self) -> int:
        """The element after the parameter's last."""
        return self.start + self.size


class FlatStorage:
    """Parameters of one dtype and device, and their gradients, in two contiguous buffers.

    Attributes:
        xp: the namespace of the device on which they live.
        params: the parameters in the order of the layout (reverse registration order).
        places: where each of them lies.
        data: all values, one-dimensional.
        grad: all gradients, one-dimensional, of the same layout.
        extra: elements that follow the gradients in the same memory, for the owner's use.
        grad_memory: the gradients and the extra elements together.
        incomplete: why not all gradients that were computed are here; "" if they are.
        pinned: whether a program knows the addresses of the gradients, which then stay.
    """

    def __init__(self, params: Iterable[Tensor]) -> None:
        self.params = list(params)
        dtype = self.params[0]._array.dtype
        self.xp = namespace_of(self.params[0]._array)
        step = max(1, _ALIGNMENT // dtype.itemsize)
        self.places: list[Place] = []
        end = 0
        for i, p in enumerate(self.params):
            self.places.append(Place(self, i, end, p._array.size))
            end += -(-p._array.size // step) * step
        self.size = end
        self.data = aligned_empty(end * dtype.itemsize, self.xp).view(dtype)
        self.data.fill(0)
        self.mark_parts(self.data)
        self.grad = self.extra = self.grad_memory = self.data[:0]
        self.incomplete = ""
        self.pinned = False
        self._private = True
        self._slots: list[Tensor] = []
        self._owners: list[weakref.ref[Any]] = []
        for let_go in before_moving:
            let_go()
        for p, place in zip(self.params, self.places, strict=True):
            p._place = place
            self._move_in(p, place)
        self.use_grad_memory(self._own_memory)

    def _own_memory(self, nbytes: int) -> Any:
        return aligned_empty(nbytes, self.xp)

    def _move_in(self, p: Tensor, place: Place) -> None:
        """Make a parameter a view of its part of `data`, unless somebody else looks into its memory."""
        if has_onlookers(p) and is_writeable(p._array):
            return
        view = self._view(self.data, place)
        np.copyto(view, p._array)
        p._array = view

    def lies_here(self, p: Tensor) -> bool:
        """Whether the values of a parameter of this storage are a view of `data`."""
        array: Any = p._array
        if type(array) is not type(self.data) or device_of(array) != device_of(self.data):
            return False
        place, like = p._place, self._slots[p._place.position]._array
        with beside(array):
            return bool(
                array.shape == like.shape
                and array.dtype == like.dtype
                and array.flags.c_contiguous  # `p.data = p.data.T` lies here in another order
                and np.may_share_memory(array, self.data[place.start : place.stop])
            )

    def _apart(self) -> list[tuple[Any, Tensor]]:
        """The parts of `data` whose parameters have their values elsewhere, and those parameters."""
        return [
            (self._view(self.data, place), p)
            for p, place in zip(self.params, self.places, strict=True)
            if p._place is place and not self.lies_here(p)
        ]

    def gather(self) -> None:
        """Copy in the values that are apart, before somebody reads `data` as a whole."""
        with beside(self.data):
            for view, p in self._apart():
                np.copyto(view, p._array)

    def scatter(self) -> None:
        """Copy out the values that are apart, after somebody has written to `data` as a whole."""
        with beside(self.data):
            for view, p in self._apart():
                np.copyto(p._array, view)

    def use_grad_memory(self, allocate: Allocator, extra: int = 0) -> None:
        """(Re)place the gradient buffer; gradients that exist move into it.

        Args:
            allocate: gives the memory.
            extra: elements after the gradients for the owner's use (`extra` attribute), so that
                they travel with the last gradients.
        """
        held = [p._grad for p in self.params]
        memory = allocate((self.size + extra) * self.data.itemsize).view(self.data.dtype)
        memory.fill(0)
        self._private = allocate == self._own_memory and type(memory) is np.ndarray
        self._divide_grad_memory(memory)
        self._slots = [wrap(self._view(self.grad, place)) for place in self.places]
        for p, slot, grad in zip(self.params, self._slots, held, strict=True):
            p._slot = slot
            if grad is not None:
                np.copyto(slot._array, grad._array)
                p._grad = slot

    def _divide_grad_memory(self, memory: Any) -> None:
        self.grad, self.extra = memory[: self.size], memory[self.size :]
        self.grad_memory = memory
        self.mark_parts(self.grad)

    def free_slot(self, position: int) -> Tensor:
        """The slot for a parameter's next gradient, into which nobody looks.

        Somebody who still holds the last gradient (`before = p.grad`) keeps it as it is.
        """
        slot = self._slots[position]
        # The slot is held by the list and by the parameter, its array by the slot.
        if is_held(slot, 2) and not self.pinned:
            self._leave_held_gradients(position)
        return self._slots[position]

    def _leave_held_gradients(self, position: int) -> None:
        if not self._private:
            if is_capturing():
                return
            # Others know this memory by its address: who holds the gradient gets it in another.
            slot = self._slots[position]
            view, slot._array = slot._array, slot._array.copy()
            self._slots[position] = self.params[position]._slot = wrap(view)
            return
        memory = self._own_memory(self.grad_memory.nbytes).view(self.data.dtype)
        np.copyto(memory, self.grad_memory)
        self._divide_grad_memory(memory)
        for i, (p, place) in enumerate(zip(self.params, self.places, strict=True)):
            slot, view = self._slots[i], self._view(self.grad, place)
            here, array = p._slot is slot, slot._array
            holders = 1 + here + (p._grad is slot)
            if held_by_others(slot, holders) or held_by_others(array, 1):
                slot = self._slots[i] = wrap(view)
                if here:
                    p._slot = slot
            else:
                slot._array = view

    def mark_parts(self, buffer: Any, first: int = 0) -> None:
        """Say that a buffer is made of one part for each parameter.

        Args:
            buffer: elements `first`, `first + 1`, ... of this layout.
            first: where it begins in the layout.
        """
        last = first + buffer.size
        inside = [p for p in self.places if p.start < last and p.stop > first]
        divide(buffer, [(max(p.start, first) - first, min(p.stop, last) - first) for p in inside])

    def add_owner(self, owner: Any) -> None:
        """Remember an optimizer that keeps state for these parameters (weakly, in order)."""
        if not self._owners and self.data.nbytes >= _WORTH_GIVING_BACK:
            heap.give_back_freed_pages()
        if not any(held is owner for held in self.owners()):
            self._owners.append(weakref.ref(owner))

    def owners(self) -> list[Any]:
        """The optimizers that keep state for these parameters and are alive."""
        return [owner for reference in self._owners if (owner := reference()) is not None]

    def _view(self, buffer: np.ndarray, place: Place) -> np.ndarray:
        return buffer[place.start : place.stop].reshape(self.params[place.position]._array.shape)

    def slot(self, position: int) -> Tensor:
        """The gradient slot of a parameter: what its `.grad` is while backward fills it."""
        return self._slots[position]

    @staticmethod
    def _is_held(p: Tensor) -> bool:
        """Whether somebody else holds the gradient of a parameter, or looks into its memory."""
        grad = p._grad
        assert grad is not None
        return held_by_others(grad, 1) or has_onlookers(grad)

    def settle(self, position: int, leave_held: bool = False) -> bool:
        """Bring a parameter that was bound to something else back into the storage.

        `p.data = other` and `p.grad = other` rebind a parameter; values of the same shape and dtype
        are copied in and the tensor becomes a view again, unless somebody else looks into them.

        Args:
            position: the parameter's place in `params`.
            leave_held: leave a gradient where it is into which somebody else looks.

        Returns:
            False if the parameter cannot live here any more (another dtype or shape, or it belongs
            to another storage by now).
        """
        p, place = self.params[position], self.places[position]
        if p._place is not place:
            return False
        if not self.lies_here(p):
            array = p._array
            if (
                type(array) is not type(self.data)
                or device_of(array) != device_of(self.data)
                or array.dtype != self.data.dtype
                or array.size != place.size
                or array.shape != self._slots[position]._array.shape
            ):
                _forget(p)
                return False
            del array  # it would count as an onlooker
            self._move_in(p, place)
        slot = self._slots[position]
        if p._grad is not None and p._grad is not slot:
            if p._grad._array.dtype != slot._array.dtype:
                return False
            if not (leave_held and self._is_held(p)):
                slot = self.free_slot(position)
                np.copyto(slot._array, p._grad._array)
                p._grad = slot
        p._slot = slot
        return True


def _settled(place: Place) -> bool:
    with beside(place.storage.data):
        return place.storage.settle(place.position, leave_held=True)


def _forget(p: Tensor) -> None:
    """The parameter lives on its own from here on."""
    p._slot = None
    p._place = None
    if p._grad is not None:
        p._grad = wrap(p._grad._array.copy())


def place_of(p: Tensor) -> Place | None:
    """Where the parameter lies, if it lies in a flat storage."""
    place: Place | None = p._place
    return place


def placed(p: Tensor) -> Place:
    """Where a parameter lies that was adopted.

    Raises:
        RuntimeError: it lies in no flat storage.
    """
    place = place_of(p)
    if place is None:
        raise RuntimeError(f"a parameter of shape {list(p.shape)} lies in no flat storage")
    return place


def refuse_incomplete(params: Iterable[Tensor]) -> None:
    """Refuse to look at the gradients of `params` together where some of them are elsewhere.

    Raises:
        RuntimeError: see there.
    """
    for p in params:
        place = place_of(p)
        if place is not None and place.storage.incomplete:
            raise RuntimeError(place.storage.incomplete)


def gradients(params: Iterable[Tensor]) -> list[Any]:
    """The arrays of all gradients, in as few pieces as possible.

    Returns:
        One-dimensional stretches of flat storages, gaps (zeros) included, and the gradients that lie
        in none, as they are.

    Raises:
        RuntimeError: some of them are elsewhere.
    """
    params = list(params)
    refuse_incomplete(params)
    placed_at: dict[int, list[Place]] = {}
    pieces: list[Any] = []
    for p in {id(p): p for p in params}.values():
        if p._grad is None:
            continue
        place = place_of(p)
        if place is not None and _settled(place) and p._grad is p._slot:
            placed_at.setdefault(id(place.storage), []).append(place)
        else:
            pieces.append(p._grad._array)
    for places in placed_at.values():
        places.sort(key=lambda place: place.position)
        start = places[0].start
        for place, following in zip(places, [*places[1:], None], strict=True):
            if following is None or following.position != place.position + 1:
                pieces.append(place.storage.grad[start : place.stop])
                start = 0 if following is None else following.start
    return pieces


def adopt(params: Iterable[Tensor]) -> list[FlatStorage]:
    """The flat storages that hold `params`, made or taken over as needed.

    Parameters that already lie in a storage stay there, so that a second owner shares it; the others
    get one new storage per dtype. A parameter that appears twice (tied weights) counts once.

    Args:
        params: parameters in registration order.
    """
    unique = list({id(p): p for p in params}.values())
    storages: dict[int, FlatStorage] = {}
    loose: dict[Any, list[Tensor]] = {}
    for p in reversed(unique):
        place = place_of(p)
        if place is not None and _settled(place):
            storages[id(place.storage)] = place.storage
        else:
            loose.setdefault((p._array.dtype, device_of(p._array)), []).append(p)
    made = []
    for group in loose.values():
        with beside(group[0]._array):
            made.append(FlatStorage(group))
    return [*storages.values(), *made]
