"""Gradients, and products of vectors with Jacobians, of functions from nested tensors to nested tensors.

Owns: `grad`, `grad_and_value`, `vjp`, `jvp`, `linearize`. Must not know: how a batch is run.

Products from the right come from differentiating a product from the left by its vector (the "double
backward trick"), so that every operation with two derivatives has them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from dptrain.autograd.points import derivatives, is_recorded, outputs_of, points, seen_outside
from dptrain.core.creation import ones_like, zeros_like
from dptrain.core.grad_mode import enable_grad, is_grad_enabled
from dptrain.core.tensor import Tensor
from dptrain.core.tree import leaves, rebuild

#: A position, or several.
Argnums = int | tuple[int, ...]


def chosen(args: tuple[Any, ...], argnums: Argnums, name: str) -> Any:
    """The arguments by which to differentiate.

    Raises:
        RuntimeError: no position, the same one twice, or one beyond the arguments.
    """
    numbers = argnums if isinstance(argnums, tuple) else (argnums,)
    if not numbers or not all(isinstance(i, int) for i in numbers):
        raise RuntimeError(
            f"{name}: argnums must be an int or a non-empty tuple of ints, got {argnums!r}"
        )
    for i in numbers:
        if not -len(args) <= i < len(args):
            raise RuntimeError(f"{name}: Got argnum={i}, but only {len(args)} positional inputs")
    if len({i % len(args) for i in numbers}) < len(numbers):
        raise RuntimeError(
            f"{name}: argnums elements must be unique but received argnums={argnums}"
        )
    return tuple(args[i] for i in argnums) if isinstance(argnums, tuple) else args[argnums]


def with_chosen(args: tuple[Any, ...], argnums: Argnums, values: Any) -> tuple[Any, ...]:
    """The arguments with others in the chosen places."""
    changed = list(args)
    for i, value in (
        zip(argnums, values, strict=True) if isinstance(argnums, tuple) else [(argnums, values)]
    ):
        changed[i] = value
    return tuple(changed)


def split_aux(result: Any, has_aux: bool, name: str) -> tuple[Any, Any]:
    """What a function gave, as output and the rest.

    Raises:
        RuntimeError: `has_aux`, and it gave no pair.
    """
    if not has_aux:
        return result, None
    if not (isinstance(result, tuple) and len(result) == 2):
        raise RuntimeError(
            f"{name}: output of function f should be a tuple: (output, aux) if has_aux is True"
        )
    return result


def grad_and_value(
    func: Callable[..., Any], argnums: Argnums = 0, has_aux: bool = False
) -> Callable[..., Any]:
    """A function that gives the gradient of `func` and its value (with `has_aux`: value and aux).

    Args:
        func: gives one number; with `has_aux` that and anything else.
        argnums: by which of its arguments (nested tensors) to differentiate.
        has_aux: see `func`.

    Raises:
        RuntimeError: at the call, arguments that are no tensors, or a result that is no number.
    """

    @wraps(func)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        name = "grad_and_value"
        recording = is_grad_enabled()
        inputs, structure = points(chosen(args, argnums, name), name)
        with enable_grad():
            given = with_chosen(args, argnums, rebuild(inputs, structure))
            output, aux = split_aux(func(*given, **kwargs), has_aux, name)
            _check_number(output)
            create = recording and is_recorded([output], inputs)
            found = derivatives([output], inputs, [ones_like(output)], create)
        slopes = seen_outside(rebuild(found, structure), inputs, create)
        output, aux = seen_outside((output, aux), inputs, recording)
        return slopes, ((output, aux) if has_aux else output)

    return wrapper


def _check_number(output: Any) -> None:
    if not isinstance(output, Tensor):
        raise RuntimeError(
            f"Expected f(*args) to return a Tensor (with has_aux=True: and anything else), got {type(output).__name__}"
        )
    if output.dim() != 0:
        raise RuntimeError(
            "Expected f(*args) to return a scalar tensor, got tensor with "
            f"{output.dim()} dims. Maybe you wanted to use the vjp or jacrev APIs instead?"
        )


def grad(
    func: Callable[..., Any], argnums: Argnums = 0, has_aux: bool = False
) -> Callable[..., Any]:
    """A function that gives the gradient of `func`; see `grad_and_value`. With `has_aux`: it and aux."""
    both = grad_and_value(func, argnums, has_aux)

    @wraps(func)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        slopes, value = both(*args, **kwargs)
        return (slopes, value[1]) if has_aux else slopes

    return wrapper


def vjp(func: Callable[..., Any], *primals: Any, has_aux: bool = False) -> Any:
    """`func(*primals)`, and a function from vectors (shaped as that) to their products with the Jacobian.

    Returns:
        (output, products), with `has_aux` (output, products, aux). `products` gives a tuple over the
        primals.

    Raises:
        RuntimeError: primals or outputs that are no tensors; at the call of `products`, vectors of
            another structure or shape than the outputs.
    """
    recording = is_grad_enabled()
    inputs, structure = points(primals, "vjp")
    with enable_grad():
        result, aux = split_aux(func(*rebuild(inputs, structure)), has_aux, "vjp")
    outputs, shape_of_outputs = outputs_of(result, "vjp")

    def products(
        cotangents: Any, retain_graph: bool = True, create_graph: bool | None = None
    ) -> Any:
        vectors, given = leaves(cotangents)
        if given != shape_of_outputs and len(vectors) != len(outputs):
            raise RuntimeError(
                "Expected pytree structure of cotangents to be the same as pytree structure of outputs to the function"
            )
        _check_vectors(vectors, outputs, "cotangents")
        now = is_grad_enabled() if create_graph is None else create_graph
        with enable_grad():
            create = now and is_recorded([*outputs, *vectors], inputs)
            found = derivatives(outputs, inputs, vectors, create)
        return seen_outside(rebuild(found, structure), inputs, create)

    result, aux = seen_outside((result, aux), inputs, recording)
    return (result, products, aux) if has_aux else (result, products)


def _check_vectors(vectors: list[Any], likes: list[Tensor], what: str) -> None:
    if len(vectors) != len(likes) or not all(isinstance(v, Tensor) for v in vectors):
        raise RuntimeError(f"{what}: expected {len(likes)} tensors, got {len(vectors)} values")
    for v, like in zip(vectors, likes, strict=True):
        if v.shape != like.shape:
            raise RuntimeError(
                f"{what}: expected a tensor of shape {list(like.shape)}, got one of shape {list(v.shape)}"
            )


class _Linear:
    """The derivative of a function at a point, as a map from tangents to products."""

    def __init__(
        self, func: Callable[..., Any], primals: tuple[Any, ...], has_aux: bool, name: str
    ) -> None:
        self._name, self._recording = name, is_grad_enabled()
        self._inputs, self._structure = points(primals, name)
        with enable_grad():
            result, aux = split_aux(func(*rebuild(self._inputs, self._structure)), has_aux, name)
            self._outputs, self._result_structure = outputs_of(result, name)
            self._weights = [zeros_like(o).requires_grad_() for o in self._outputs]
            self._pulled = derivatives(self._outputs, self._inputs, self._weights, True)
        self.result, self.aux = seen_outside((result, aux), self._inputs, self._recording)

    def __call__(self, *tangents: Any) -> Any:
        vectors, _ = leaves(tangents)
        _check_vectors(vectors, self._inputs, f"{self._name}: tangents")
        own = [*self._inputs, *self._weights]
        with enable_grad():
            create = is_grad_enabled() and is_recorded([*self._pulled, *vectors], own)
            found = derivatives(self._pulled, self._weights, vectors, create)
        return seen_outside(rebuild(found, self._result_structure), own, create)


def jvp(
    func: Callable[..., Any],
    primals: Any,
    tangents: Any,
    *,
    strict: bool = False,
    has_aux: bool = False,
) -> Any:
    """`func(*primals)`, and the product of its Jacobian with `tangents`.

    Args:
        func: from nested tensors to nested tensors.
        primals: a tuple, one for each argument.
        tangents: likewise, of the same shapes.
        strict: raise where an output does not depend on the inputs, instead of giving zeros.
        has_aux: whether `func` gives its output and something else.

    Raises:
        RuntimeError: no tuples, other shapes or structures, or see `strict`.
    """
    for what, value in (("primals", primals), ("tangents", tangents)):
        if not isinstance(value, tuple):
            raise RuntimeError(f"jvp: Expected {what} to be a tuple, got {type(value).__name__}")
        if not value:
            raise RuntimeError(f"jvp: Expected {what} to be a non-empty tuple")
    if leaves(primals)[1] != leaves(tangents)[1]:
        raise RuntimeError("jvp: Expected primals and tangents to have the same python structure")
    linear = _Linear(func, primals, has_aux, "jvp")
    if strict and not all(o.requires_grad for o in linear._outputs):
        raise RuntimeError(
            "jvp(f, primals, tangents, strict=True): The output of f is independent of the inputs. This is not allowed "
            "with strict=True."
        )
    product = linear(*tangents)
    return (linear.result, product, linear.aux) if has_aux else (linear.result, product)


def linearize(func: Callable[..., Any], *primals: Any) -> tuple[Any, Callable[..., Any]]:
    """`func(*primals)`, and the function from tangents to their products with the Jacobian there."""
    linear = _Linear(func, primals, False, "linearize")
    return linear.result, linear
