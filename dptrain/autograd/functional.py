"""Jacobians, Hessians and their products with vectors, of functions from tensors to tensors.

Owns: `torch.autograd.functional`'s names, each made of `autograd.grad`. Products with the Jacobian
from the right (`jvp`, `hvp`) come from differentiating a vector-Jacobian product by its vector
("double backward trick").
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from dptrain.core.creation import ones_like, zeros, zeros_like
from dptrain.core.engine import grad
from dptrain.core.export import FUNCTIONS
from dptrain.core.grad_mode import enable_grad
from dptrain.core.tensor import Tensor

stack = FUNCTIONS["stack"]

__all__ = ["hessian", "hvp", "jacobian", "jvp", "vhp", "vjp"]


def _tuple(value: Any, what: str, name: str) -> tuple[bool, tuple[Tensor, ...]]:
    many = isinstance(value, (tuple, list))
    values = tuple(value) if many else (value,)
    for i, v in enumerate(values):
        if not isinstance(v, Tensor):
            place = f"the element at index {i} is" if many else "got"
            raise TypeError(
                f"The {what} given to {name} must be either a Tensor or a tuple of Tensors but {place} "
                f"a {type(v).__name__}."
            )
    return many, values


def _inputs(values: tuple[Tensor, ...], create_graph: bool) -> tuple[Tensor, ...]:
    """Tensors to differentiate by: connected to the user's graph only where that is asked for."""
    return tuple(
        v.view(v.shape) if create_graph and v.requires_grad else v.detach().requires_grad_()
        for v in values
    )


def _vector(v: Any, likes: tuple[Tensor, ...], what: str, name: str) -> tuple[Tensor, ...]:
    if v is None:
        if len(likes) != 1 or likes[0].numel() != 1:
            raise RuntimeError(
                f"{name}: the vector v can only be None if the {what} is a single Tensor with a single element"
            )
        return (ones_like(likes[0]),)
    _, values = _tuple(v, "v", name)
    if len(values) != len(likes):
        raise RuntimeError(
            f"{name}: v is a tuple of invalid length: should be {len(likes)} but got {len(values)}."
        )
    for i, (a, b) in enumerate(zip(values, likes, strict=True)):
        if a.shape != b.shape:
            raise RuntimeError(
                f"{name}: entry {i} of v has invalid size: should be {list(b.shape)} but got {list(a.shape)}."
            )
    return values


def _call(func: Callable[..., Any], inputs: tuple[Tensor, ...], strict: bool, name: str) -> Any:
    many, outputs = _tuple(func(*inputs), "outputs of the user-provided function", name)
    if strict and not all(o.requires_grad for o in outputs):
        raise RuntimeError(
            f"{name}: an output of the user-provided function does not require gradients. The outputs must be "
            "computed in a differentiable manner from the input when running in strict mode."
        )
    return many, outputs


def _grad(
    outputs: Sequence[Tensor],
    inputs: tuple[Tensor, ...],
    vectors: Sequence[Tensor | None],
    create_graph: bool,
    strict: bool,
    name: str,
) -> tuple[Tensor, ...]:
    """Gradients with zeros for what does not depend; an error instead when `strict`."""
    used = [(o, v) for o, v in zip(outputs, vectors, strict=True) if o.requires_grad]
    found: tuple[Tensor | None, ...] = (None,) * len(inputs)
    if used:
        found = grad(
            [o for o, _ in used],
            inputs,
            [v for _, v in used],
            retain_graph=True,
            create_graph=create_graph,
            allow_unused=True,
        )
    for i, g in enumerate(found):
        if g is None and strict:
            raise RuntimeError(
                f"{name}: the output of the user-provided function is independent of input {i}. This is not allowed "
                "in strict mode."
            )
    return tuple(zeros_like(x) if g is None else g for g, x in zip(found, inputs, strict=True))


def _handed_out(many: bool, values: tuple[Tensor, ...], create_graph: bool) -> Any:
    values = values if create_graph else tuple(v.detach() for v in values)
    return values if many else values[0]


def _check_strategy(
    strategy: str, vectorize: bool, strict: bool, create_graph: bool, name: str
) -> None:
    """Refuse what PyTorch's ways to compute a Jacobian refuse; ours is one, row by row, for all of them."""
    if strategy not in ("reverse-mode", "forward-mode"):
        raise AssertionError(
            f'{name}: Expected strategy to be either "forward-mode" or "reverse-mode", got {strategy!r}'
        )
    if strict and (vectorize or strategy == "forward-mode"):
        raise RuntimeError(
            f"{name}: strict=True is not supported together with vectorize=True or the forward-mode strategy"
        )
    if strategy == "forward-mode" and (create_graph or not vectorize):
        raise NotImplementedError(
            f"{name}: the forward-mode strategy needs vectorize=True and create_graph=False"
        )


def jacobian(
    func: Callable[..., Any],
    inputs: Any,
    create_graph: bool = False,
    strict: bool = False,
    vectorize: bool = False,
    strategy: str = "reverse-mode",
) -> Any:
    """The Jacobian of `func` at `inputs`, one row per element of the outputs.

    Args:
        func: from tensors to a tensor or a tuple of tensors.
        inputs: a tensor or a tuple of tensors.
        create_graph: make the result differentiable.
        strict: raise where an output does not depend on an input, instead of giving zeros.
        vectorize: compute all rows at once, in PyTorch; the numbers are the same.
        strategy: "reverse-mode" or "forward-mode"; the numbers are the same.

    Returns:
        A tensor of shape (*output.shape, *input.shape); a tuple over the inputs if these are a tuple;
        a tuple of those over the outputs if these are.

    Raises:
        TypeError: inputs or outputs that are no tensors.
        AssertionError: another strategy.
        NotImplementedError: "forward-mode" without `vectorize`, or with `create_graph`.
        RuntimeError: `strict`, and something is independent; or `strict` with `vectorize`.
    """
    _check_strategy(strategy, vectorize, strict, create_graph, "jacobian")
    many_inputs, given = _tuple(inputs, "inputs", "jacobian")
    with enable_grad():
        points = _inputs(given, create_graph)
        many_outputs, outputs = _call(func, points, strict, "jacobian")
        rows = tuple(_rows(o, points, create_graph, strict) for o in outputs)
    table = tuple(_handed_out(many_inputs, r, create_graph) for r in rows)
    return table if many_outputs else table[0]


def _rows(
    output: Tensor, points: tuple[Tensor, ...], create_graph: bool, strict: bool
) -> tuple[Tensor, ...]:
    rows = []
    for k in range(output.numel()):
        unit = zeros(output.numel(), dtype=output.dtype, device=output.device)
        unit[k] = 1
        rows.append(
            _grad([output], points, [unit.reshape(output.shape)], create_graph, strict, "jacobian")
        )
    return tuple(
        stack([r[i] for r in rows]).reshape((*output.shape, *p.shape))
        if rows
        else zeros((*output.shape, *p.shape), dtype=p.dtype, device=p.device)
        for i, p in enumerate(points)
    )


def hessian(
    func: Callable[..., Any],
    inputs: Any,
    create_graph: bool = False,
    strict: bool = False,
    vectorize: bool = False,
    outer_jacobian_strategy: str = "reverse-mode",
) -> Any:
    """The Hessian of a function with one scalar result; see `jacobian` for the arguments.

    Returns:
        A tensor of shape (*input.shape, *input.shape), or a tuple of tuples of them.

    Raises:
        RuntimeError: the result is no single-element tensor.
    """
    many, given = _tuple(inputs, "inputs", "hessian")

    def first(*points: Tensor) -> Any:
        value = _scalar(func, points, strict, "hessian")
        return _grad([value], points, [None], True, strict, "hessian")

    table = jacobian(first, given, create_graph, strict, vectorize, outer_jacobian_strategy)
    return table if many else table[0][0]


def _scalar(
    func: Callable[..., Any], points: tuple[Tensor, ...], strict: bool, name: str
) -> Tensor:
    many, outputs = _call(func, points, strict, name)
    if many or outputs[0].numel() != 1:
        raise RuntimeError(
            f"The function given to {name} should return a single Tensor with a single element, got "
            f"{len(outputs)} of shapes {[list(o.shape) for o in outputs]}"
        )
    value: Tensor = outputs[0].reshape(())
    return value


def vjp(
    func: Callable[..., Any],
    inputs: Any,
    v: Any = None,
    create_graph: bool = False,
    strict: bool = False,
) -> tuple[Any, Any]:
    """`func(inputs)`, and the product of `v` (shaped as the outputs) with the Jacobian.

    Raises:
        RuntimeError: `v` does not fit the outputs, or is missing for more than one element.
    """
    many_inputs, given = _tuple(inputs, "inputs", "vjp")
    with enable_grad():
        points = _inputs(given, create_graph)
        many_outputs, outputs = _call(func, points, strict, "vjp")
        vectors = _vector(v, outputs, "output of the user-provided function", "vjp")
        found = _grad(outputs, points, vectors, create_graph, strict, "vjp")
    return (
        _handed_out(many_outputs, outputs, create_graph),
        _handed_out(many_inputs, found, create_graph),
    )


def jvp(
    func: Callable[..., Any],
    inputs: Any,
    v: Any = None,
    create_graph: bool = False,
    strict: bool = False,
) -> tuple[Any, Any]:
    """`func(inputs)`, and the product of the Jacobian with `v` (shaped as the inputs).

    Raises:
        RuntimeError: `v` does not fit the inputs, or is missing for more than one element.
    """
    _, given = _tuple(inputs, "inputs", "jvp")
    with enable_grad():
        points = _inputs(given, create_graph)
        vectors = _vector(v, given, "input to the user-provided function", "jvp")
        many_outputs, outputs = _call(func, points, strict, "jvp")
        weights = tuple(zeros_like(o).requires_grad_() for o in outputs)
        pulled = _grad(outputs, points, weights, True, strict, "jvp")
        found = _grad(pulled, weights, vectors, create_graph, strict, "jvp")
    return (
        _handed_out(many_outputs, outputs, create_graph),
        _handed_out(many_outputs, found, create_graph),
    )


def vhp(
    func: Callable[..., Any],
    inputs: Any,
    v: Any = None,
    create_graph: bool = False,
    strict: bool = False,
) -> tuple[Any, Any]:
    """The scalar `func(inputs)`, and the product of `v` (shaped as the inputs) with the Hessian."""
    return _hessian_product(func, inputs, v, create_graph, strict, "vhp")


def hvp(
    func: Callable[..., Any],
    inputs: Any,
    v: Any = None,
    create_graph: bool = False,
    strict: bool = False,
) -> tuple[Any, Any]:
    """The scalar `func(inputs)`, and the product of the Hessian with `v` (shaped as the inputs)."""
    return _hessian_product(func, inputs, v, create_graph, strict, "hvp")


def _hessian_product(
    func: Callable[..., Any], inputs: Any, v: Any, create_graph: bool, strict: bool, name: str
) -> tuple[Any, Any]:
    # The Hessian is symmetric: both products are the gradient of <gradient, v>.
    many, given = _tuple(inputs, "inputs", name)
    with enable_grad():
        points = _inputs(given, create_graph)
        vectors = _vector(v, given, "input to the user-provided function", name)
        value = _scalar(func, points, strict, name)
        first = _grad([value], points, [None], True, strict, name)
        found = _grad(first, points, vectors, create_graph, strict, name)
    return _handed_out(False, (value,), create_graph), _handed_out(many, found, create_graph)
