"""Who holds a GPU's memory, found out when it is exhausted: for the words of `OutOfMemoryError`.

Owns: `Holders`, the kinds of holders and their order, what the core itself knows of (gradients, results of
operations). Must not know: modules and optimizers; they say here what is theirs (`surveys`).

Nobody keeps a list meanwhile: everything alive is asked of the garbage collector, once an allocation has failed.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from dptrain.core import cuda_memory
from dptrain.core.arrays import REMOTE, on_gpu, span
from dptrain.core.cuda_memory import Held, size_text
from dptrain.core.dtypes import FROM_NUMPY
from dptrain.core.flat import FlatStorage
from dptrain.core.op import Op
from dptrain.core.tensor import Tensor

PARAMETERS, GRADIENTS, STATE, REST = (
    "parameters",
    "gradients",
    "optimizer state",
    "activations and others",
)
_LARGEST = 6


class Holders:
    """The blocks of one GPU, whose they are, and the tensors in them.

    Args:
        index: the GPU.

    Attributes:
        names: by id, what tensors are called that others (gradients, optimizer state) belong to.
    """

    def __init__(self, index: int) -> None:
        self._objects = gc.get_objects()
        self._blocks = {h.address: h.nbytes for h in self.every(Held) if h.index == index}
        self._kind_of: dict[int, str] = {}
        #: By address and size: who was first to say what lies there.
        self._tensors: dict[tuple[int, int], tuple[Any, str]] = {}
        self._kind = REST
        self.names: dict[int, str] = {}

    def every(self, kind: type) -> Iterator[Any]:
        """All objects of a class that are alive."""
        return (o for o in self._objects if issubclass(type(o), kind))

    def of_kind(self, kind: str) -> Holders:
        """The same; what is claimed from here on is of that kind."""
        self._kind = kind
        return self

    def name_of(self, tensor: Tensor) -> str:
        """What a tensor is called, for what belongs to it."""
        return self.names.get(id(tensor)) or f"a tensor of shape {list(tensor.shape)}"

    def claim(self, value: Any, what: str = "") -> None:
        """Say whose an array (or a tensor's) is, unless somebody was first.

        Args:
            value: anything; what has no memory on this GPU is passed over.
            what: what it is; without it its block is claimed, but it is not shown as a tensor.
        """
        array = _array_of(value)
        block = self._block_of(array)
        if block is not None:
            self._kind_of.setdefault(block, self._kind)
            if what:
                self._tensors.setdefault(_extent(array), (array, what))

    def claim_largest(self, values: Iterable[Any], what: str) -> None:
        """The same for several; of those in one block, which nobody has, the largest is shown."""
        arrays = [a for a in map(_array_of, values) if self._block_of(a) is not None]
        for array in sorted(arrays, key=lambda a: -_extent(a)[1]):
            if self._block_of(array) not in self._kind_of:
                self.claim(array, what)

    def _block_of(self, array: Any) -> int | None:
        """Which of the blocks an array lies in, if it lies in one."""
        if not on_gpu(array):
            return None
        library: Any = REMOTE[type(array)]
        block: int = library.block(array)
        return block if block in self._blocks else None

    def lines(self) -> list[str]:
        """How much each kind holds, and the largest tensors."""
        held = dict.fromkeys((PARAMETERS, GRADIENTS, STATE, REST), 0)
        for block, nbytes in self._blocks.items():
            held[self._kind_of.get(block, REST)] += nbytes
        shares = ", ".join(f"{kind} {size_text(nbytes)}" for kind, nbytes in held.items())
        lines = [f"It is held by {shares}."]
        shown: list[tuple[int, int]] = []
        for (start, nbytes), (array, what) in sorted(
            self._tensors.items(), key=lambda entry: -entry[0][1]
        ):
            if len(shown) == _LARGEST:
                break
            if nbytes and not any(a <= start and start + nbytes <= b for a, b in shown):
                shown.append((start, start + nbytes))
                kind = FROM_NUMPY[array.dtype].name if array.dtype in FROM_NUMPY else array.dtype
                lines.append(f"  {size_text(nbytes)}: {kind} {list(array.shape)}, {what}")
        if shown:
            lines[0] += " The largest tensors:"
        return lines


def _array_of(value: Any) -> Any:
    # Not `value._array`: asking a tensor for values that are still to be computed would compute them.
    return vars(value).get("_array") if isinstance(value, Tensor) else value


def _extent(array: Any) -> tuple[int, int]:
    """Address and size of what an array is made of; an expanded one is less than its elements."""
    start, end = span(array)
    return start, min(array.nbytes, end - start)


Survey = Callable[[Holders], None]
_surveys: dict[str, list[Survey]] = {kind: [] for kind in (PARAMETERS, GRADIENTS, STATE, REST)}


def surveys(kind: str) -> Callable[[Survey], Survey]:
    """Decorate what claims memory of a kind; the kinds are asked in their order."""

    def register(survey: Survey) -> Survey:
        _surveys[kind].append(survey)
        return survey

    return register


def explain(index: int) -> list[str]:
    """Lines that say who holds the memory of a GPU."""
    holders = Holders(index)
    for kind, found in _surveys.items():
        for survey in found:
            survey(holders.of_kind(kind))
    return holders.lines()


@surveys(GRADIENTS)
def _gradients(holders: Holders) -> None:
    for tensor in holders.every(Tensor):
        if tensor._grad is not None:
            holders.claim(tensor._grad, f"gradient of {holders.name_of(tensor)}")
    for storage in holders.every(FlatStorage):
        holders.of_kind(PARAMETERS).claim(storage.data)
        holders.of_kind(GRADIENTS).claim(storage.grad_memory)


@surveys(REST)
def _of_the_graph(holders: Holders) -> None:
    for tensor in holders.every(Tensor):
        node = tensor._node
        if node is not None:
            holders.claim(tensor, f"made by {node.grad_name}")
    for node in holders.every(Op):
        saved = getattr(node, "saved", None)
        if type(saved) is tuple:
            for (position, _), value in zip(node._saved_names, saved, strict=False):
                edge = (node, 0) if position < 0 else node.edges[position]
                maker = None if edge is None or edge[1] is None else edge[0]
                by = f"saved by {node.grad_name}"
                holders.claim(value, by if maker is None else f"made by {maker.grad_name}")
        for value in vars(node).values():
            for part in value if type(value) in (tuple, list) else (value,):
                holders.claim(part, f"saved by {node.grad_name}")


@surveys(REST)
def _others(holders: Holders) -> None:
    holders.claim_largest(holders.every(Tensor), "a tensor without grad_fn")
    for kind in list(REMOTE):
        holders.claim_largest(holders.every(kind), "an array that no tensor holds")


cuda_memory.explain_with(explain)
