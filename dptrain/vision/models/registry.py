"""Models by name, and what every function that builds one has in common.

Owns: `register_model`, `get_model`, `list_models`, the arguments `weights`, `progress`, `pretrained`.
Must not know: any architecture.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatch
from functools import wraps
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from dptrain.core.tensor import Tensor
from dptrain.nn import Module
from dptrain.vision.models.weights import WeightsEnum, load_weights_file

_M = TypeVar("_M", bound=Module)
_BUILDERS: dict[str, Callable[..., Module]] = {}
_WEIGHTS: dict[str, type[WeightsEnum] | None] = {}


def register_model(
    weights_enum: type[WeightsEnum] | None = None,
    rename: Callable[[str], str] | None = None,
) -> Callable[[Callable[..., _M]], Callable[..., _M]]:
    """Make the function that builds a model of one that constructs it, and keep it under its name.

    What is decorated takes the arguments of the model's class. The result takes torchvision's
    keywords as well: `weights` (None, a member of the enumeration or its name, "DEFAULT", or the path
    of a file of weights) and `progress` (show a bar while downloading). The old `pretrained=True` means
    "IMAGENET1K_V1" and warns.

    Args:
        weights_enum: the weights that exist for the model.
        rename: from the keys of a published file to those of the model.
    """

    def decorate(construct: Callable[..., _M]) -> Callable[..., _M]:
        name = construct.__name__
        if name in _BUILDERS:
            raise ValueError(f"An entry is already registered under the name '{name}'.")

        @wraps(construct)
        def build(*old: Any, weights: Any = None, progress: bool = True, **kwargs: Any) -> _M:
            chosen = _resolve(name, weights_enum, _old_spelling(old, kwargs, weights))
            if isinstance(chosen, WeightsEnum):
                _fix_num_classes(kwargs, chosen)
            state = _state(chosen, progress)
            if state is not None and rename is not None:
                state = {rename(key): value for key, value in state.items()}
            model = construct(**kwargs)
            if state is not None:
                try:
                    model.load_state_dict(state)
                except RuntimeError as error:
                    if not isinstance(chosen, Path):
                        raise
                    raise RuntimeError(f"{chosen} holds no weights of {name}: {error}") from None
            return model

        parameters = inspect.signature(construct).parameters.values()
        keyword = inspect.Parameter.KEYWORD_ONLY
        build.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [
                inspect.Parameter("weights", keyword, default=None),
                inspect.Parameter("progress", keyword, default=True),
                *parameters,
            ]
        )
        _BUILDERS[name], _WEIGHTS[name] = build, weights_enum
        return build

    return decorate


def _old_spelling(old: tuple[Any, ...], kwargs: dict[str, Any], weights: Any) -> Any:
    """`weights`, from `pretrained=` or a first positional argument where that was used."""
    if len(old) > 1:
        raise TypeError(f"expected keyword arguments only, got {len(old)} positional ones")
    if not old and "pretrained" not in kwargs:
        return weights
    pretrained = old[0] if old else kwargs.pop("pretrained")
    if weights is not None:
        raise ValueError("expected weights= or pretrained=, got both")
    if not isinstance(pretrained, bool):
        warnings.warn("'weights' is a keyword argument; use weights=...", UserWarning, stacklevel=3)
        return pretrained
    warnings.warn(
        "The parameter 'pretrained' is deprecated, please use 'weights' instead: "
        f"weights={'IMAGENET1K_V1' if pretrained else None}",
        UserWarning,
        stacklevel=3,
    )
    return "IMAGENET1K_V1" if pretrained else None


def _resolve(
    name: str, weights_enum: type[WeightsEnum] | None, weights: Any
) -> WeightsEnum | Path | None:
    if weights is None or (weights_enum is not None and isinstance(weights, weights_enum)):
        return weights
    if isinstance(weights, (str, Path)):
        member = str(weights).rpartition(".")[2] if weights_enum is not None else ""
        if weights_enum is not None and member in weights_enum.__members__:
            prefix = str(weights).rpartition(".")[0]
            if prefix in ("", weights_enum.__name__):
                return weights_enum[member]
        path = Path(weights).expanduser()
        if path.is_file():
            return path
        known = "none are published" if weights_enum is None else list(weights_enum.__members__)
        raise ValueError(
            f"{name}: weights={str(weights)!r} is neither a file nor one of the model's weights ({known})"
        )
    expected = "None" if weights_enum is None else weights_enum.__name__
    raise TypeError(
        f"{name}: Invalid Weight class provided; expected {expected} or a path but received "
        f"{type(weights).__name__}."
    )


def _fix_num_classes(kwargs: dict[str, Any], weights: WeightsEnum) -> None:
    """Published weights decide the number of classes, as in torchvision."""
    expected = weights.meta["num_classes"]
    given = kwargs.setdefault("num_classes", expected)
    if given != expected:
        raise ValueError(
            f"The parameter 'num_classes' expected value {expected} but got {given} instead: {weights} "
            "are weights for that many classes; build the model with them and replace its last layer"
        )


def _state(chosen: WeightsEnum | Path | None, progress: bool) -> Mapping[str, Tensor] | None:
    if chosen is None:
        return None
    if isinstance(chosen, Path):
        return load_weights_file(chosen)
    return chosen.get_state_dict(progress=progress, check_hash=True)


def list_models(
    module: ModuleType | None = None,
    include: Iterable[str] | str | None = None,
    exclude: Iterable[str] | str | None = None,
) -> list[str]:
    """The names of the registered models, sorted.

    Args:
        module: only those of this module, or of the modules in this package.
        include: only names that match one of these patterns, such as "resnet*".
        exclude: no names that match one of these.
    """
    names = {
        name
        for name, builder in _BUILDERS.items()
        if module is None
        or module.__name__ in (builder.__module__, builder.__module__.rpartition(".")[0])
    }
    if include:
        names = {name for name in names if _matches(name, include)}
    if exclude:
        names = {name for name in names if not _matches(name, exclude)}
    return sorted(names)


def _matches(name: str, patterns: Iterable[str] | str) -> bool:
    patterns = [patterns] if isinstance(patterns, str) else patterns
    return any(fnmatch(name, pattern) for pattern in patterns)


def get_model_builder(name: str) -> Callable[..., Module]:
    """The function that builds the model `name`; upper and lower case are the same.

    Raises:
        ValueError: there is none.
    """
    found = _BUILDERS.get(name.lower())
    if found is None:
        raise ValueError(f"Unknown model {name}; list_models() gives the names")
    return found


def get_model(name: str, **config: Any) -> Module:
    """The model `name`, built with the arguments `config`."""
    return get_model_builder(name)(**config)


def get_model_weights(name: Callable[..., Module] | str) -> type[WeightsEnum]:
    """The enumeration of the weights of a model, given by its name or its function.

    Raises:
        ValueError: no such model, or no weights are published for it.
    """
    key = name.lower() if isinstance(name, str) else name.__name__
    get_model_builder(key)
    found = _WEIGHTS[key]
    if found is None:
        raise ValueError(f"no weights are published for {key}")
    return found


def get_weight(name: str) -> WeightsEnum:
    """A member by its full name, such as "ResNet50_Weights.IMAGENET1K_V2".

    Raises:
        ValueError: there is none.
    """
    enum_name, _, member = name.partition(".")
    for enum in _WEIGHTS.values():
        if enum is not None and enum.__name__ == enum_name and member in enum.__members__:
            return enum[member]
    raise ValueError(f"Invalid weight name provided: '{name}'.")
