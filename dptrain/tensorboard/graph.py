"""A model's graph as TensorBoard draws it.

Owns: names of nodes, and the `GraphDef`. Must not know: how a run is recorded.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from dptrain.core.dtypes import FROM_NUMPY
from dptrain.core.tensor import Tensor
from dptrain.nn.module import Module
from dptrain.tensorboard import protos
from dptrain.tensorboard.summary import shape_of
from dptrain.tensorboard.trace import Trace, place_of, sources_of

#: TensorFlow's version of the format, which the page wants to see.
_PRODUCER = 22


def graph(
    model: Module, args: Any = None, verbose: bool = False, use_strict_trace: bool = True
) -> Any:
    """The graph that autograd records when `model` runs once.

    Args:
        model: a Module; of a parallel wrapper, what it wraps.
        args: the input, or a tuple or list of inputs.
        verbose: print the nodes.
        use_strict_trace: not needed; lists and dicts are followed either way.

    Returns:
        A `GraphDef`: inputs, parameters, operations under the module that ran them, outputs, each with the
        shape of what it gives.

    Raises:
        TypeError: `model` is no Module.
        RuntimeError: nothing was recorded.
    """
    while getattr(model, "forwards_to_module", False):
        model = model.module
    if not isinstance(model, Module):
        raise TypeError(f"add_graph: model must be a dptrain.nn.Module, got {type(model).__name__}")
    inputs = () if args is None else tuple(args) if isinstance(args, (tuple, list)) else (args,)
    trace = Trace(model, inputs)
    if not trace.nodes:
        raise RuntimeError(
            f"add_graph: the forward of {type(model).__name__} recorded nothing; what runs under no_grad or on "
            "integers only is not part of the autograd graph"
        )
    drawn = _Drawing(trace).graph
    if verbose:
        for node in drawn.node:
            print(f"{node.name} = {node.op}({', '.join(node.input)})")
    return drawn


class _Drawing:
    """The `GraphDef` of a trace."""

    def __init__(self, trace: Trace) -> None:
        self.graph = protos.GraphDef(versions=protos.VersionDef(producer=_PRODUCER))
        self._scopes = trace.scopes
        self._taken: Counter[str] = Counter()
        #: Names of what can be an argument, by node, by tensor and by place in memory.
        self._names: dict[Any, str] = {}
        self._leaves = {
            key: (f"{scope}/{name}", tensor)
            for scope, name, tensor in reversed(trace.leaves)  # what is shared has its first name
            for key in (id(tensor), place_of(tensor._array))
        }
        for name, (tensor, node) in trace.inputs.items():
            drawn = self._add(f"input/{name}", "Input", (tensor.shape,), tensor.dtype.name)
            self._names[place_of(tensor._array)] = drawn
            if node is not None:
                self._names[node] = drawn
        for node, module in trace.nodes:
            self._operation(node, module)
        for name, tensor in trace.outputs.items():
            source = self._source(tensor._node and (tensor._node, tensor._index))
            self._add(f"output/{name}", "Output", (tensor.shape,), tensor.dtype.name, source)

    def _operation(self, node: Any, module: Module) -> None:
        kind = node.drawn_as or re.sub(r"Backward\d*$", "", node.grad_name)
        sources = sources_of(node)
        arguments = [name for source in sources[: len(node.edges)] for name in self._source(source)]
        for source in sources[len(node.edges) :]:
            arguments += [name for name in self._source(source) if name not in arguments]
        self._names[node] = self._add(
            f"{self._scopes[module]}/{kind}",
            kind,
            [shape for shape, _ in node.outs],
            FROM_NUMPY[node.outs[0][1]].name,
            arguments,
            "" if any(module.children()) else repr(module),
        )

    def _source(self, source: Any) -> list[str]:
        """The name of where an argument comes from, drawn now if it is a leaf; [] if that is unknown."""
        if source is None:
            return []
        origin, index = source
        key = id(origin) if isinstance(origin, Tensor) else origin
        if key not in self._names:
            if key in self._leaves:
                name, tensor = self._leaves[key]
            elif isinstance(origin, Tensor):
                name, tensor = "leaf", origin
            else:
                return []
            drawn = self._add(name, "Parameter", (tensor.shape,), tensor.dtype.name)
            self._names[id(tensor)] = self._names[place_of(tensor._array)] = drawn
            self._names[key] = drawn
        return [f"{self._names[key]}:{index}" if index else self._names[key]]

    def _add(
        self,
        name: str,
        op: str,
        shapes: Any,
        dtype: str,
        arguments: Any = (),
        module: str = "",
    ) -> str:
        """Add a node and return its name, which is made unique by a number."""
        repeated = self._taken[name]
        self._taken[name] += 1
        name = f"{name}_{repeated}" if repeated else name
        node = self.graph.node.add(name=name, op=op, input=arguments)
        node.attr["_output_shapes"].list.shape.extend(shape_of(s) for s in shapes)
        node.attr["dtype"].s = dtype.encode()
        if module:
            node.attr["module"].s = module.encode()
        return name
