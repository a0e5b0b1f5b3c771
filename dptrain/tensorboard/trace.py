"""What a model's forward records: the nodes of the autograd graph, and the module that each belongs to.

Owns: running the model once without leaving a trace in it. Must not know: TensorBoard's messages.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from dptrain.core.arrays import address, is_array
from dptrain.core.grad_mode import enable_grad, observe_recording
from dptrain.core.random import get_rng_state, set_rng_state
from dptrain.core.tensor import Tensor
from dptrain.nn.module import Module


def scopes_of(model: Module) -> dict[Module, str]:
    """Each module's place in the tree: "Net/Sequential[features]/Conv2d[0]"."""
    scopes = {model: type(model).__name__}
    for module in model.modules():
        for name, child in module.named_children():
            scopes.setdefault(child, f"{scopes[module]}/{type(child).__name__}[{name}]")
    return scopes


def map_tensors(value: Any, name: str, function: Callable[[Tensor, str], Any]) -> Any:
    """`value` with `function(tensor, its name)` in the place of each tensor in its lists and dicts."""
    if isinstance(value, Tensor):
        return function(value, name)
    if isinstance(value, dict):
        return {k: map_tensors(v, f"{name}.{k}", function) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        parts = [map_tensors(v, f"{name}.{i}", function) for i, v in enumerate(value)]
        named = hasattr(value, "_fields")
        return type(value)(*parts) if named else type(value)(parts)
    return value


class Trace:
    """One run of `model` on `inputs`, in evaluation mode.

    Parameters, buffers, modes and the random state are afterwards as they were before. Inputs and frozen
    parameters count as differentiable, so that what is computed from them is recorded; what runs
    under `no_grad` or has no derivative is not.

    Args:
        model: without the wrapper of DistributedDataParallel, whose forward talks to the other ranks.
        inputs: its arguments.

    Attributes:
        nodes: (node, scope) in the order of the run.
        inputs: name -> (tensor, its node before the run; None where it is of integers).
        outputs: name -> tensor.
        leaves: of each parameter and buffer: (scope, name, tensor).
    """

    def __init__(self, model: Module, inputs: tuple[Any, ...]) -> None:
        self.nodes: list[tuple[Any, Module]] = []
        self.inputs: dict[str, tuple[Tensor, Any]] = {}
        self.outputs: dict[str, Tensor] = {}
        self.scopes = scopes_of(model)
        self._inside = [model]
        self.leaves = [
            (scope, name, tensor)
            for module, scope in self.scopes.items()
            for table in (module._parameters, module._buffers)
            for name, tensor in table.items()
            if tensor is not None
        ]
        names = _parameter_names(model, len(inputs))
        with _undisturbed(model), self._scopes_kept(), enable_grad():
            given = [map_tensors(v, n, self._input) for v, n in zip(inputs, names, strict=True)]
            with observe_recording(self._record):
                result = model(*given)
        map_tensors(result, "output", self._output)

    def _input(self, tensor: Tensor, name: str) -> Tensor:
        fresh = tensor.detach().clone()
        if fresh.dtype.is_floating_point:
            # Not a leaf: the model may change it in place.
            fresh = fresh.requires_grad_().clone()
        self.inputs[name] = fresh, fresh._node
        return fresh

    def _output(self, tensor: Tensor, name: str) -> None:
        self.outputs[name] = tensor

    def _record(self, node: Any) -> None:
        self.nodes.append((node, self._inside[-1]))

    @contextmanager
    def _scopes_kept(self) -> Iterator[None]:
        def enter(module: Module, args: Any) -> None:
            self._inside.append(module)

        def leave(module: Module, args: Any, output: Any) -> None:
            self._inside.pop()

        with ExitStack() as hooks:
            for module in self.scopes:
                hooks.enter_context(module.register_forward_pre_hook(enter, prepend=True))
                hooks.enter_context(module.register_forward_hook(leave, always_call=True))
            yield


def sources_of(node: Any) -> list[Any]:
    """Where the arguments of a node come from.

    Returns:
        One entry per argument: its edge, (place of the array that backward keeps of it, None), or None;
        then the places of what else the node keeps, such as indices.
    """
    found: list[Any] = list(node.edges)
    saved = node.saved if type(node.saved) is tuple else ()
    for (position, _), value in zip(node._saved_names, saved, strict=False):
        if 0 <= position < len(found) and found[position] is None and is_array(value):
            found[position] = (place_of(value), None)
    kept = [(place_of(value), None) for value in vars(node).values() if is_array(value)]
    return [*found, *kept]


def place_of(array: Any) -> tuple[int, int]:
    """Which memory an array covers."""
    return address(array), array.nbytes


def _parameter_names(model: Module, count: int) -> list[str]:
    """The names under which `forward` receives its first arguments."""
    names: list[str] = []
    for parameter in inspect.signature(model.forward).parameters.values():
        if parameter.kind is parameter.VAR_POSITIONAL:
            names += [f"{parameter.name}.{i}" for i in range(count - len(names))]
        elif parameter.kind is not parameter.VAR_KEYWORD:
            names.append(parameter.name)
    return [*names, *(f"input.{i}" for i in range(len(names), count))][:count]


@contextmanager
def _undisturbed(model: Module) -> Iterator[None]:
    """Evaluation mode and differentiable parameters inside; everything as it was afterwards."""
    modes = {module: module.training for module in model.modules()}
    frozen = [p for p in model.parameters() if p.dtype.is_floating_point and not p.requires_grad]
    state = get_rng_state()
    model.eval()
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
        for module, mode in modes.items():
            module.training = mode
        set_rng_state(state)
