"""Calling a module with other values than its own, which it keeps.

Owns: `functional_call` and `stack_module_state`, which are public as `dptrain.func`'s, and the
exchange of values. Must not know: what the module computes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from dptrain.core.export import FUNCTIONS
from dptrain.core.tensor import Tensor
from dptrain.nn.module import Module


def functional_call(
    module: Module,
    parameter_and_buffer_dicts: Any,
    args: Any = None,
    kwargs: dict[str, Any] | None = None,
    *,
    tie_weights: bool = True,
    strict: bool = False,
) -> Any:
    """The result of a module with the given values in the places of its parameters and buffers.

    Where the call changes a buffer, the change is in the given mapping afterwards.

    Args:
        module: that is called; it has its own values again afterwards.
        parameter_and_buffer_dicts: tensors by dotted name; a mapping or several without common names.
        args: the arguments; one that is no tuple is the only one.
        kwargs: the arguments by name.
        tie_weights: a value for one name of a tied parameter counts for its other names.
        strict: whether all names must be given, and no others.

    Raises:
        ValueError: no mappings, names given twice, or two values for tied names.
        TypeError: a value is no tensor.
        AttributeError: there is no such submodule.
        RuntimeError: names that do not fit (when strict).
    """
    values = _one_mapping(parameter_and_buffer_dicts)
    given = () if args is None else args if isinstance(args, tuple) else (args,)
    with exchanged(module, values, tie_weights=tie_weights, strict=strict):
        return module(*given, **(kwargs or {}))


def _one_mapping(given: Any) -> dict[str, Tensor]:
    if isinstance(given, dict):
        return given
    if not isinstance(given, Sequence):
        raise ValueError(
            f"Expected parameter_and_buffer_dicts to be a dict, or a list/tuple of dicts, but got {type(given)}"
        )
    if not all(isinstance(part, dict) for part in given):
        raise ValueError("Expected all elements of parameter_and_buffer_dicts to be dictionaries")
    names = [name for part in given for name in part]
    repeated = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if repeated:
        raise ValueError(
            f"{repeated} appeared in multiple dictionaries; behavior of functional call is ambiguous"
        )
    return {name: value for part in given for name, value in part.items()}


@contextmanager
def exchanged(
    module: Module, values: dict[str, Tensor], *, tie_weights: bool, strict: bool
) -> Iterator[None]:
    """The module holds these values inside the `with` block."""
    wanted = _with_tied_names(module, values) if tie_weights else dict(values)
    if strict:
        _check_names(module, wanted)
    own: list[tuple[str, Any]] = []
    try:
        for name, value in wanted.items():
            if not isinstance(value, Tensor):
                raise TypeError(f"{value} is not an instance of dptrain.Tensor")
            own.append((name, _put(module, name, value)))
        yield
    finally:
        for name, value in own:
            changed = _put(module, name, value)
            if name in values:
                values[name] = changed


class _Absent:
    """Stands for the value of a name that the module did not have."""


def _put(module: Module, path: str, value: Any) -> Any:
    """Put a value under a name, past the checks of assignment; what was there."""
    owner, _, name = path.rpartition(".")
    place = module.get_submodule(owner)
    tables = (place._parameters, place._buffers)
    table: dict[str, Any] = next((t for t in tables if name in t), place.__dict__)
    before = table.get(name, _Absent)
    if value is _Absent:
        del table[name]
    else:
        table[name] = value
    return before


def _named(module: Module) -> dict[str, Tensor]:
    """All tensors, tied ones under each of their names."""
    return {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }


def _with_tied_names(module: Module, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    groups: dict[int, list[str]] = {}
    for name, tensor in _named(module).items():
        groups.setdefault(id(tensor), []).append(name)
    result = dict(values)
    for names in groups.values():
        given = [name for name in names if name in values]
        if len(names) == 1 or not given:
            continue
        if len({id(values[name]) for name in given}) > 1:
            raise ValueError(
                f"functional_call got multiple values for keys {sorted(names)}, which are tied. Consider using "
                "tie_weights=False"
            )
        result.update(dict.fromkeys(names, values[given[0]]))
    return result


def _check_names(module: Module, values: Mapping[str, Tensor]) -> None:
    own = _named(module)
    problems = [
        f"{what} key(s): {', '.join(map(repr, names))}."
        for what, names in (
            ("Unexpected", sorted(n for n in values if n not in own)),
            ("Missing", sorted(n for n in own if n not in values)),
        )
        if names
    ]
    if problems:
        raise RuntimeError(
            f"Error(s) in reparametrizing for {module._get_name()}:\n\t" + "\n\t".join(problems)
        )


def stack_module_state(models: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Parameters and buffers of several modules of one class, stacked along a new first dimension.

    Args:
        models: a sequence of modules.

    Returns:
        Parameters and buffers by name, which are leaves.

    Raises:
        RuntimeError: no models, or models that differ in class, mode or `requires_grad`.
    """
    models = list(models)
    if not models:
        raise RuntimeError("stack_module_state: Expected at least one model, got 0.")
    for what, facts in (
        ("to have the same training/eval mode", {m.training for m in models}),
        ("to be of the same class", {type(m) for m in models}),
    ):
        if len(facts) > 1:
            raise RuntimeError(f"stack_module_state: Expected all models {what}.")
    tables = (
        [dict(m.named_parameters()) for m in models],
        [dict(m.named_buffers()) for m in models],
    )
    params, buffers = (
        {name: _stacked([own[name] for own in table], name) for name in table[0]}
        for table in tables
    )
    return params, buffers


def _stacked(tensors: list[Tensor], name: str) -> Tensor:
    trained = {t.requires_grad for t in tensors}
    if len(trained) > 1:
        raise RuntimeError(f"Expected {name} from each model to have the same .requires_grad")
    result: Tensor = FUNCTIONS["stack"]([t.detach() for t in tensors])
    return result.requires_grad_(trained.pop())
