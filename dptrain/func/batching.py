"""`vmap`: a function of single samples as a function of batches.

Owns: `vmap` and its checks. Must not know: any operation.

The function is called once for each sample and the results are stacked. Values, derivatives and errors
are those of a vectorising transform, which PyTorch has; the speed is that of a loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

from dptrain.core.export import FUNCTIONS
from dptrain.core.random import get_rng_state, set_rng_state
from dptrain.core.tensor import Tensor
from dptrain.core.tree import LEAF, leaves, rebuild

_RANDOMNESS = ("error", "different", "same")


def check_randomness(randomness: str) -> None:
    """Refuse other words.

    Raises:
        RuntimeError: one of them.
    """
    if randomness not in _RANDOMNESS:
        raise RuntimeError(
            f"Only allowed values for randomness are 'error', 'different', or 'same'. Got {randomness}"
        )


def vmap(
    func: Callable[..., Any],
    in_dims: Any = 0,
    out_dims: Any = 0,
    randomness: str = "error",
    *,
    chunk_size: int | None = None,
) -> Callable[..., Any]:
    """A function that maps `func` over a dimension of its inputs.

    Args:
        func: from nested tensors (and other values) to nested tensors; what is given by name it gets whole.
        in_dims: the dimension of each input to map over, None for an input that all samples get whole;
            an int for all, or nested like the arguments.
        out_dims: where the new dimension goes; an int for all outputs, or nested like them.
        randomness: whether random numbers inside are an error, drawn for each sample, or drawn once.
        chunk_size: how many samples PyTorch computes at once; checked, and of no effect here.

    Raises:
        RuntimeError: another word for `randomness`; at the call, random numbers where they are an error.
        ValueError: `chunk_size` below 1; at the call, dimensions that do not fit the inputs, inputs of
            different batch sizes, no mapped input, or results that are no tensors.
    """
    check_randomness(randomness)
    if chunk_size is not None and chunk_size <= 0:
        raise ValueError(f"vmap: chunk_size should be None or greater than 0. (got {chunk_size})")

    @wraps(func)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        values, structure, dims = _mapped(func, in_dims, args)
        size = _batch_size(func, values, dims)
        outputs: list[list[Tensor]] = []
        shape_of_outputs: Any = LEAF
        for state in _random_states(size, randomness):
            i = len(outputs)
            sample = [v if d is None else v.select(d, i) for v, d in zip(values, dims, strict=True)]
            result = func(*rebuild(sample, structure), **kwargs)
            _check_state(state, randomness)
            found, shape_of_outputs = leaves(result)
            _check_results(func, found)
            outputs.append(found)
        if not outputs:
            raise ValueError(
                f"vmap({_name(func)}): a batch of 0 samples does not say what the function gives; pass at least one"
            )
        stacked = [
            FUNCTIONS["stack"](list(parts), dim)
            for parts, dim in zip(
                zip(*outputs, strict=True),
                _out_dims(func, out_dims, shape_of_outputs, outputs[0]),
                strict=True,
            )
        ]
        return rebuild(stacked, shape_of_outputs)

    return wrapper


def _name(func: Callable[..., Any]) -> str:
    return getattr(func, "__name__", repr(func))


def _spread(dims: Any, structure: Any) -> Iterator[Any]:
    """The dimension for every leaf of a structure, from one that is nested less deeply.

    Raises:
        ValueError: it is nested in another way.
    """
    if structure is LEAF:
        if isinstance(dims, (list, tuple, dict)):
            raise ValueError("it is nested more deeply")
        yield dims
        return
    kind, parts = structure
    if issubclass(kind, dict):
        if not isinstance(dims, dict):
            inner = [(dims, p) for _, p in parts]
        elif set(dims) != {k for k, _ in parts}:
            raise ValueError("it has other keys")
        else:
            inner = [(dims[k], p) for k, p in parts]
    elif isinstance(dims, (list, tuple)):
        if len(dims) != len(parts):
            raise ValueError("it has another length")
        inner = list(zip(dims, parts, strict=True))
    else:
        inner = [(dims, p) for p in parts]
    for dim, part in inner:
        yield from _spread(dim, part)


def _mapped(
    func: Callable[..., Any], in_dims: Any, args: tuple[Any, ...]
) -> tuple[list[Any], Any, list[int | None]]:
    where = f"vmap({_name(func)}, in_dims={in_dims}, ...)(<inputs>)"
    if not isinstance(in_dims, (int, tuple, list)):
        raise ValueError(
            f"{where}: expected `in_dims` to be int or a (potentially nested) tuple matching the structure of inputs, "
            f"got: {type(in_dims)}."
        )
    if not args:
        raise ValueError(
            f"{where}: got no inputs. Maybe you forgot to add inputs, or you are trying to vmap over a function with no "
            "inputs. The latter is unsupported."
        )
    values, structure = leaves(args)
    try:
        dims = list(_spread(in_dims, structure))
    except ValueError as error:
        raise ValueError(
            f"{where}: in_dims is not compatible with the structure of inputs: {error}"
        ) from None
    checked: list[int | None] = []
    for value, dim in zip(values, dims, strict=True):
        if dim is None:
            checked.append(None)
            continue
        if not isinstance(dim, int):
            raise ValueError(
                f"{where}: Got in_dim={dim} for an input but in_dim must be either an integer dimension or None."
            )
        if not isinstance(value, Tensor):
            raise ValueError(
                f"{where}: Got in_dim={dim} for an input but the input is of type {type(value)}. We cannot vmap over "
                "non-Tensor arguments, please use None as the respective in_dim"
            )
        if not -value.dim() <= dim < value.dim():
            raise ValueError(
                f"{where}: Got in_dim={dim} for some input, but that input is a Tensor of dimensionality {value.dim()} "
                f"so expected in_dim to satisfy -{value.dim()} <= in_dim < {value.dim()}."
            )
        checked.append(dim % value.dim())
    return values, structure, checked


def _batch_size(func: Callable[..., Any], values: list[Any], dims: list[int | None]) -> int:
    sizes = [v.shape[d] for v, d in zip(values, dims, strict=True) if d is not None]
    if not sizes:
        raise ValueError(
            f"vmap({_name(func)}): at least one input has to be mapped over, but all in_dims are None"
        )
    if any(s != sizes[0] for s in sizes):
        raise ValueError(
            f"vmap: Expected all tensors to have the same size in the mapped dimension, got sizes {sizes} for the mapped "
            "dimension"
        )
    return int(sizes[0])


def _random_states(size: int, randomness: str) -> Iterator[Any]:
    """Before each sample: the state of the generator, where that matters."""
    if randomness == "different":
        yield from [None] * size
        return
    state = get_rng_state()
    for _ in range(size):
        if randomness == "same":
            set_rng_state(state)
        yield state


def _check_state(state: Any, randomness: str) -> None:
    if randomness == "error" and not bool((get_rng_state() == state).all()):
        set_rng_state(state)
        raise RuntimeError(
            "vmap: called random operation while in randomness error mode. Please either use the 'same' or 'different' "
            "randomness flags on vmap or perform the randomness operation out of vmap"
        )


def _check_results(func: Callable[..., Any], found: list[Any]) -> None:
    for value in found:
        if not isinstance(value, Tensor):
            raise ValueError(
                f"vmap({_name(func)}, ...): `{_name(func)}` must only return Tensors, got type {type(value)}. Did you mean "
                "to set out_dims= to None for output?"
            )


def _out_dims(
    func: Callable[..., Any], out_dims: Any, structure: Any, sample: list[Tensor]
) -> list[int]:
    where = f"vmap({_name(func)}, ..., out_dims={out_dims})"
    if structure is LEAF and isinstance(out_dims, tuple) and len(out_dims) == 1:
        out_dims = out_dims[0]
    try:
        dims = list(_spread(out_dims, structure))
    except ValueError as error:
        raise ValueError(
            f"{where}: out_dims is not compatible with the structure of the outputs: {error}"
        ) from None
    for dim, value in zip(dims, sample, strict=True):
        if not isinstance(dim, int):
            raise ValueError(
                f"{where}: `out_dims` must be an int or a python collection of ints, got {dim!r}"
            )
        if not -value.dim() - 1 <= dim <= value.dim():
            raise IndexError(
                f"{where}: Dimension out of range (expected to be in range of [{-value.dim() - 1}, {value.dim()}], but got "
                f"{dim})"
            )
    return dims
