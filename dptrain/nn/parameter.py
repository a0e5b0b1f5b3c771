"""Parameter: the tensor that a module counts as its own.

Owns: `Parameter`. Must not know: modules, optimizers.
"""

from __future__ import annotations

from dptrain.core.tensor import Tensor


class Parameter(Tensor):
    """A tensor that becomes a parameter of the module it is assigned to.

    Args:
        data: the values, shared and not copied; an empty tensor by default.
        requires_grad: whether backward computes a gradient for it.

    Raises:
        TypeError: `data` is no tensor.
        RuntimeError: integers that should require gradients.
    """

    def __init__(self, data: Tensor | None = None, requires_grad: bool = True) -> None:
        if data is None:
            super().__init__()
        elif isinstance(data, Tensor):
            self._array = data._array
            self._version = data._version_counter()
        else:
            raise TypeError(f"Parameter data must be a Tensor, got {type(data).__name__}")
        self.requires_grad = requires_grad

    # mypy knows no keywords of special methods
    def __repr__(self, *, tensor_contents: str | None = None) -> str:  # type: ignore[override]
        text = super().__repr__(tensor_contents=tensor_contents)  # type: ignore[call-arg]
        return "Parameter containing:\n" + text
