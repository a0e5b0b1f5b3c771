"""Taking a module's state out and putting it back: `state_dict` and `load_state_dict`.

Owns: the order and names of the entries, the checks and the report text. Must not know: files.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dptrain.core.creation import from_numpy
from dptrain.core.grad_mode import no_grad
from dptrain.core.size import Size
from dptrain.core.tensor import Tensor

if TYPE_CHECKING:
    from dptrain.nn.module import Module


class IncompatibleKeys(NamedTuple):
    """What `load_state_dict` found: names that the module misses, names that it does not know."""

    missing_keys: list[str]
    unexpected_keys: list[str]

    def __repr__(self) -> str:
        if not self.missing_keys and not self.unexpected_keys:
            return "<All keys matched successfully>"
        return f"_IncompatibleKeys(missing_keys={self.missing_keys}, unexpected_keys={self.unexpected_keys})"


def _own_entries(module: Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters, then persistent buffers, of this module alone."""
    for name, param in module._parameters.items():
        if param is not None:
            yield name, param
    for name, buffer in module._buffers.items():
        if buffer is not None and name not in module._non_persistent_buffers_set:
            yield name, buffer


def state_dict(
    module: Module, destination: OrderedDict[str, Any], prefix: str, keep_vars: bool
) -> OrderedDict[str, Any]:
    """See `Module.state_dict`. Submodules are asked themselves, so that they may override it."""
    for name, tensor in _own_entries(module):
        destination[prefix + name] = tensor if keep_vars else tensor.detach()
    for name, child in module._modules.items():
        if child is not None:
            child.state_dict(
                destination=destination, prefix=f"{prefix}{name}.", keep_vars=keep_vars
            )
    return destination


def load_state_dict(module: Module, state: Mapping[str, Any], strict: bool) -> IncompatibleKeys:
    """See `Module.load_state_dict`."""
    if not isinstance(state, Mapping):
        raise TypeError(f"Expected state_dict to be dict-like, got {type(state)}.")
    targets = module.state_dict(keep_vars=True)
    missing = [name for name in targets if name not in state]
    unexpected = [name for name in state if name not in targets]
    problems = []
    if strict and missing:
        problems.append(f"Missing key(s) in state_dict: {_quoted(missing)}. ")
    if strict and unexpected:
        problems.append(f"Unexpected key(s) in state_dict: {_quoted(unexpected)}. ")
    sources: dict[str, Tensor] = {}
    for name, target in targets.items():
        if name in state:
            source = _as_source(state[name])
            if source is None:
                problems.append(
                    f'While copying the parameter named "{name}", expected dptrain.Tensor or '
                    f"numpy.ndarray from checkpoint but received {type(state[name])}"
                )
            elif problem := _misfit(name, source, target):
                problems.append(problem)
            else:
                sources[name] = source
    if problems:
        raise RuntimeError(
            f"Error(s) in loading state_dict for {module._get_name()}:\n\t" + "\n\t".join(problems)
        )
    with no_grad():
        for name, source in sources.items():
            # In place, so that flat storages and other holders of the memory see the new values.
            targets[name].copy_(source.reshape(targets[name].shape))
    return IncompatibleKeys(missing, unexpected)


def _quoted(names: list[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)


def _as_source(value: Any) -> Tensor | None:
    if isinstance(value, Tensor):
        return value
    return from_numpy(np.asarray(value)) if isinstance(value, (np.ndarray, np.generic)) else None


def _misfit(name: str, source: Tensor, target: Tensor) -> str | None:
    """What keeps `source` from being copied into `target`, if anything does."""
    # Scalars were saved with one dimension by old versions of PyTorch.
    if source.shape != target.shape and not (target.ndim == 0 and source.shape == (1,)):
        return (
            f"size mismatch for {name}: copying a param with shape {Size(source.shape)} from checkpoint, "
            f"the shape in current model is {target.shape}."
        )
    if source.is_floating_point() and not target.is_floating_point():
        return (
            f"dtype mismatch for {name}: copying a param of {source.dtype} from checkpoint, the dtype in "
            f"current model is {target.dtype}, which cannot hold it."
        )
    return None
