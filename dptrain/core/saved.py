"""What a node of the graph keeps of its forward pass for the backward pass, and that it is still that.

Owns: `SavedValues`, the part of `Op` that holds them. Must not know: how an operation runs.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from dptrain.core.arrays import is_array
from dptrain.core.dtypes import FROM_NUMPY
from dptrain.core.tensor import Tensor, wrap_computed


class SavedTensorError(RuntimeError):
    """A value that backward needs was changed in place, or was already freed."""


class Deferred:
    """In the place of saved values: they are computed when they are asked for."""

    def values_of(self, node: SavedValues) -> Any:
        """What the node has saved; it may be deferred once more."""
        raise NotImplementedError

    def stand_in(self, leaf: Tensor, value: Any) -> Tensor:
        """A Tensor with the values that were saved of a leaf, connected to it."""
        return leaf


class SavedValues:
    """The saved values of a node.

    Attributes:
        edges: where gradients go, one per argument: (node, output index), (leaf tensor, None) or None.
        saved: the values, or a `Deferred`, or None once they are freed.
        versions: of each the counter of in-place changes and what it was, or None.
    """

    edges: list[tuple[Any, int | None] | None]
    saved: Any
    versions: Any
    backward_name: str

    #: (argument position, or -1 for the result; position of the gradient that needs it, or None)
    _saved_names: ClassVar[tuple[tuple[int, int | None], ...]] = ()
    _parameters: ClassVar[tuple[str, ...]] = ()

    __slots__ = ("__dict__", "__weakref__", "edges", "saved", "versions")

    @property
    def grad_name(self) -> str:
        """How the node prints."""
        raise NotImplementedError

    def _save(self, args: tuple[Any, ...], raw: list[Any], out: Any, result: Tensor | None) -> None:
        saved: list[Any] = []
        versions: list[tuple[list[int], int] | None] = []
        edges = self.edges
        for position, served in self._saved_names:
            value = version = None
            if served is None or edges[served] is not None:
                holder, value = (result, out) if position < 0 else (args[position], raw[position])
                if isinstance(holder, Tensor):
                    counter = holder._counter
                    if counter is None:
                        counter = holder._version_counter()
                    version = counter, counter[0]
            saved.append(value)
            versions.append(version)
        self.saved, self.versions = tuple(saved), tuple(versions)

    def save_result_in(self, out: Any, holder: Tensor) -> None:
        """Keep the saved result where an in-place operation has put it, rather than a second time.

        Args:
            out: the result.
            holder: has its values; a later change of it is an error of use, as of any saved tensor.
        """
        if type(self.saved) is tuple and any(value is out for value in self.saved):
            counter = holder._version_counter()
            new = [(holder._array, (counter, counter[0]))] * len(self.saved)
            old = zip(self.saved, self.versions, strict=True)
            kept = [n if o[0] is out else o for n, o in zip(new, old, strict=True)]
            self.saved, self.versions = tuple(k[0] for k in kept), tuple(k[1] for k in kept)

    def saved_arrays(self) -> tuple[Any, ...]:
        """The saved values, checked to be those of the forward pass.

        Raises:
            RuntimeError: one of them was changed in place since.
        """
        saved = self.saved
        while type(saved) is not tuple:
            saved = saved.values_of(self)
        for i, version in enumerate(self.versions):
            if version is not None and version[0][0] != version[1]:
                raise self._changed(i)
        return saved

    def _changed(self, i: int) -> SavedTensorError:
        """The error of use that the i-th saved value is no longer what it was."""
        position, value, (counter, version) = (
            self._saved_names[i][0],
            self.saved[i],
            self.versions[i],
        )
        which = "its result" if position < 0 else f"its argument {self._parameters[position]!r}"
        return SavedTensorError(
            "one of the variables needed for gradient computation has been modified by an inplace "
            f"operation: [{FROM_NUMPY[value.dtype].name} {list(value.shape)}], which {self.grad_name} saved as "
            f"{which}, is at version {counter[0]}; expected version {version} instead. Hint: write the in-place "
            "operation as a new tensor, or move it after backward()"
        )

    def saved_tensors(self) -> tuple[Any, ...]:
        """The saved values as Tensors that are connected to the graph, for `create_graph`."""
        values, edges = self.saved_arrays(), self.edges
        return tuple(
            [
                self._reconnect((self, 0) if place[0] < 0 else edges[place[0]], value)
                for place, value in zip(self._saved_names, values, strict=True)
            ]
        )

    def _reconnect(self, edge: Any, value: Any) -> Any:
        if type(value) is not np.ndarray and not is_array(value):
            return value
        if edge is not None and edge[1] is None:
            return edge[0] if type(self.saved) is tuple else self.saved.stand_in(edge[0], value)
        tensor = wrap_computed(value)
        if edge is not None:
            tensor._node, tensor._index = edge
            tensor._requires_grad = True
        return tensor

    def release(self) -> None:
        """Free what was saved; a second backward through this node is an error from here on."""
        if self.saved or self.__dict__:
            form = self.__dict__.get("backward_name")
            self.__dict__.clear()
            if form is not None:  # how the node prints outlives what it saved
                self.backward_name = form
            self.saved = None
            self.versions = ()
