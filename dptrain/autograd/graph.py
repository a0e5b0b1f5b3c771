"""`torch.autograd.graph`'s names: looking at the graph, and saying how it keeps tensors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from dptrain.core.edges import GradientEdge, get_gradient_edge
from dptrain.core.engine import current_pass, queue_callback
from dptrain.core.hooks import RemovableHandle, RemovableHandles
from dptrain.core.op import AccumulateGrad, Op
from dptrain.core.saved_hooks import (
    disable_saved_tensors_hooks,
    save_on_cpu,
    saved_tensors_hooks,
)
from dptrain.core.tensor import Tensor

__all__ = [
    "GradientEdge",
    "Node",
    "disable_saved_tensors_hooks",
    "get_gradient_edge",
    "increment_version",
    "register_multi_grad_hook",
    "save_on_cpu",
    "saved_tensors_hooks",
]


class Node(ABC):
    """What a tensor's `grad_fn` is an instance of."""

    @abstractmethod
    def name(self) -> str:
        """How the node prints."""


Node.register(Op)
Node.register(AccumulateGrad)


def increment_version(tensor: Tensor | Iterable[Tensor]) -> None:
    """Say that tensors were changed in place by something that autograd does not see.

    Args:
        tensor: one or several.
    """
    for changed in (tensor,) if isinstance(tensor, Tensor) else tensor:
        changed._bump_version()


def register_multi_grad_hook(
    tensors: Sequence[Tensor],
    fn: Callable[[Sequence[Tensor | None]], None] | Callable[[Tensor], None],
    *,
    mode: str = "all",
) -> RemovableHandle:
    """Call `fn` once in a backward pass in which gradients of `tensors` are computed.

    Args:
        tensors: require gradients.
        fn: with "all" it gets the gradients, None for those that the pass does not compute: once the last is
            there, or at the end of the pass if some are missing. With "any" it gets the first gradient.
        mode: "all" or "any".

    Raises:
        ValueError: another mode.
        RuntimeError: one of the tensors does not require gradients.
    """
    if mode not in ("all", "any"):
        raise ValueError(f"Expects mode to be one of ('all', 'any') but got {mode}")
    # By the identity of the pass, which is kept with it: what has come, or None once `fn` was called. Passes
    # of several threads may run at a time.
    passes: dict[int, tuple[Any, list[Tensor | None] | None]] = {}

    def finish(key: int) -> None:
        _, grads = passes.pop(key)
        if grads is not None:
            fn(grads)  # type: ignore[arg-type]

    def hook_of(index: int) -> Callable[[Tensor], None]:
        def hook(grad: Tensor) -> None:
            current = current_pass()
            key = id(current)
            if key not in passes:
                passes[key] = current, [None] * len(tensors)
                queue_callback(lambda: finish(key))
            _, grads = passes[key]
            if grads is None:
                return
            grads[index] = grad
            if mode == "any" or all(g is not None for g in grads):
                passes[key] = current, None
                fn(grad if mode == "any" else grads)  # type: ignore[arg-type]

        return hook

    return RemovableHandles([t.register_hook(hook_of(i)) for i, t in enumerate(tensors)])
