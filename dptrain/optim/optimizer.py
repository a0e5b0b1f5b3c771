"""The base class of optimizers: parameter groups, state, and one pass over flat storage per step.

Owns: what all optimizers share. Must not know: layers, ranks.

Parameters are moved into flat storages when the optimizer is made (those that already lie in one,
because DistributedDataParallel came first, stay there), so that neighbouring parameters of a group are
updated by one kernel call. What happens to them later (`p.data = `, `p.grad = `, another dtype, a new
layout) is noticed at the next step, and the storages and the state follow.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from typing import Any, ClassVar

import numpy as np

from dptrain.core.arrays import as_array, beside, to_host
from dptrain.core.callers import level_outside
from dptrain.core.creation import tensor
from dptrain.core.cuda import is_capturing
from dptrain.core.failures import telling_method
from dptrain.core.flat import adopt
from dptrain.core.float_errors import ignore_float_errors, restore_float_errors
from dptrain.core.grad_mode import enable_grad, no_grad
from dptrain.core.holders import STATE, Holders, surveys
from dptrain.core.tensor import Tensor, bump_versions
from dptrain.optim.hooks import (
    Hooks,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from dptrain.optim.recorded import check_capture, numbers_in_memory, record_runs
from dptrain.optim.runs import STEP, Plan, Run, StateBuffers, values_of

#: The hooks of all optimizers are registered here, as in PyTorch.
__all__ = [
    "Optimizer",
    "number",
    "register_optimizer_step_post_hook",
    "register_optimizer_step_pre_hook",
]


class Optimizer(Hooks):
    """Base class of all optimizers.

    A subclass passes its defaults to `super().__init__`, and defines `_check_group` (the values of
    hyper-parameters), `_state_names` (its state, one flat buffer each), `_initial` (where the state
    does not start from zeros) and `_update` (one kernel call over one run). Add `STEP` to the names
    for a counter of updates (`run.step`).

    Args:
        params: tensors, pairs of name and tensor, or dicts with "params" and options of their own.
        defaults: the options of groups that do not have their own.

    Attributes:
        param_groups: dicts with "params" and options; options may be changed between steps.
        state: per parameter, its state by name (views of flat buffers).
        defaults: as given.

    Raises:
        TypeError: `params` is no ordered collection of tensors.
        ValueError: no parameters, a non-leaf, a parameter twice, or an invalid option.
    """

    #: Whether the update of a parameter depends on the others, so that none can be updated alone.
    couples_parameters: ClassVar[bool] = False
    #: Whether `_update`, of the class that says so, does nothing to arrays but hand them to one of
    #: `optim_kernels_for`, so that a CUDA graph can hold it.
    _kernels_only: ClassVar[bool] = False
    #: Names of state that is one number per parameter, in PyTorch a float32 tensor without dimensions.
    _scalar_names: frozenset[str] = frozenset([STEP])

    def __init__(self, params: Iterable[Any], defaults: dict[str, Any]) -> None:
        if isinstance(params, Tensor) or not isinstance(params, Iterable):
            raise TypeError(
                "params argument given to the optimizer should be an iterable of Tensors or dicts, "
                f"but got {type(params).__name__}"
            )
        super().__init__()
        self.defaults = defaults
        self.state: dict[Any, dict[str, Any]] = defaultdict(dict)
        self.param_groups: list[dict[str, Any]] = []
        self._forget_plan()
        groups = list(params)
        if not groups:
            raise ValueError("optimizer got an empty parameter list")
        if not isinstance(groups[0], dict):
            # Set apart from a list: `add_param_group` refuses sets, whose order is none.
            groups = [{"params": params if isinstance(params, set) else groups}]
        for group in groups:
            self._add_group(group)
        self._adopt()

    def _forget_plan(self) -> None:
        self._plan: Plan | None = None
        self._buffers: dict[int, StateBuffers] = {}

    # ---- what subclasses define ------------------------------------------------------------------

    def _check_group(self, group: dict[str, Any]) -> None:
        """Raise ValueError where an option of the group has no meaning."""

    def _state_names(self, group: dict[str, Any]) -> tuple[str, ...]:
        """The names of the state that parameters of the group have."""
        return ()

    def _initial(self, name: str, group: dict[str, Any]) -> float:
        """What a piece of state of a parameter starts from."""
        return 0.0

    def _state_shape(self, name: str, p: Tensor) -> tuple[int, ...] | None:
        """The shape of a tensor in the state of `p`; None where any will do."""
        return None if self._steps_itself() else p._array.shape

    @classmethod
    def _steps_itself(cls) -> bool:
        """Whether a subclass defines `step` alone, as PyTorch's do: its state is then its own affair."""
        return cls._update is Optimizer._update

    def _update(self, run: Run) -> None:
        """Update the parameters and the state of one run."""
        raise NotImplementedError

    # ---- groups ----------------------------------------------------------------------------------

    @telling_method
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters with options of their own, for example layers that are unfrozen.

        Args:
            param_group: "params" and options; those that are missing are the defaults.

        Raises:
            TypeError: no dict, or "params" is no ordered collection of tensors.
            ValueError: a non-leaf, a parameter twice, or an invalid option.
        """
        self._add_group(param_group)
        self._adopt()

    def _add_group(self, param_group: dict[str, Any]) -> None:
        if not isinstance(param_group, dict):
            raise TypeError(f"param_group must be a dict, but got {type(param_group)}")
        given = param_group["params"]
        if not isinstance(given, Iterable):
            raise TypeError(
                f"optimizer can only optimize Tensors, but one of the params is {type(given).__name__}"
            )
        if isinstance(given, set):
            raise TypeError(
                "optimizer parameters need to be organized in ordered collections, but the ordering of "
                "tensors in sets will change between runs. Please use a list instead."
            )
        members = [given] if isinstance(given, Tensor) else list(given)
        named = [m for m in members if isinstance(m, tuple)]
        if named and len(named) != len(members):
            raise ValueError(
                "all optimizer params should be with/without names. Some param names are missing"
            )
        if named:
            param_group["param_names"] = [m[0] for m in named]
        params = param_group["params"] = [m[1] for m in named] if named else members
        for p in params:
            if not isinstance(p, Tensor):
                raise TypeError(
                    f"optimizer can only optimize Tensors, but one of the params is {type(p).__name__}"
                )
            if not p.is_leaf:
                raise ValueError("can't optimize a non-leaf Tensor")
        for name, default in self.defaults.items():
            param_group.setdefault(name, default)
        _check_supported(param_group)
        self._check_group(param_group)
        if len({id(p) for p in params}) != len(params):
            warnings.warn(
                "optimizer contains a parameter group with duplicate parameters: they are updated once for "
                "each time they are named, which PyTorch is going to refuse; give each parameter once",
                UserWarning,
                stacklevel=level_outside(),
            )
        if any(("param_names" in group) != bool(named) for group in self.param_groups):
            raise ValueError(
                "all optimizer param groups should be with/without names. cannot add param group "
                f"{'with' if named else 'without'} names to the optimizer"
            )
        held = {id(p) for group in self.param_groups for p in group["params"]}
        if any(id(p) in held for p in params):
            raise ValueError("some parameters appear in more than one parameter group")
        self.param_groups.append(param_group)

    def _adopt(self) -> None:
        """Bring all parameters that are or will be updated into flat storages, gradients included."""
        storages = adopt(
            p
            for group in self.param_groups
            for p in group["params"]
            if p._has_values and (p._requires_grad or p._grad is not None)
        )
        for storage in storages:
            storage.add_owner(self)

    # ---- stepping --------------------------------------------------------------------------------

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients, or set them to 0 in place.

        A parameter whose gradient is None is skipped by `step`: no decay, no momentum, no count.
        """
        for group in self.param_groups:
            for p in group["params"]:
                if set_to_none or p._grad is None:
                    p._grad = None
                else:
                    if p._grad._node is not None:  # of a pass with create_graph
                        p._grad = p._grad.detach()
                    with no_grad():
                        p._grad.zero_()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all parameters that have a gradient.

        Args:
            closure: computes the loss again, with gradients, and returns it.

        Returns:
            What `closure` returned, or None.
        """
        if self._steps_itself():
            raise NotImplementedError(f"{type(self).__name__} defines neither _update nor step")
        loss = None
        if closure is not None:
            with enable_grad():
                loss = closure()
        recording = is_capturing()
        if recording:
            check_capture(self)
        for group in self.param_groups:
            for name, default in self.defaults.items():
                if group[name] is None and default is not None:  # NumPy takes it for a NaN
                    raise TypeError(
                        f"{type(self).__name__}.step: option {name!r} of a parameter group is None"
                    )
        plan = self._current_plan()
        token = ignore_float_errors()
        try:
            if recording:
                record_runs(self, plan)
            else:
                with numbers_in_memory(self, plan):
                    self._take_runs(plan)
        finally:
            restore_float_errors(token)
        if plan.has_first:
            self._plan = None
        return loss

    def _take_runs(self, plan: Plan) -> None:
        for run in plan.runs:
            run.advance()
            with beside(run.param):
                if run.apart is not None:
                    run.fetch()
                self._update(run)
                if run.apart is not None:
                    run.bring_back()
            bump_versions(run.params)

    def _current_plan(self) -> Plan:
        groups = self.param_groups
        names = [self._state_names(group) for group in groups]
        plan = self._plan
        if plan is not None and plan.holds(groups, names, self.state):
            return plan
        self._adopt()
        # A foreign gradient that was copied into its slot leaves the plan as it was.
        if plan is not None and plan.holds(groups, names, self.state):
            return plan
        places = [p._place for group in groups for p in group["params"] if p._place is not None]
        used = {id(place.storage) for place in places}
        self._buffers = {key: held for key, held in self._buffers.items() if key in used}
        self._plan = Plan(
            groups, names, self.state, self._buffers, self._scalar_names, self._initial
        )
        return self._plan

    # ---- state -----------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """State and options in PyTorch's layout.

        Returns:
            {"state": {index: {name: value}}, "param_groups": [{option: value, "params": [index]}]};
            the tensors share memory with the optimizer.
        """
        self._before_state_dict()
        index = {
            id(p): i
            for i, p in enumerate(p for group in self.param_groups for p in group["params"])
        }
        groups = [
            {**{k: v for k, v in group.items() if k != "params"}}
            | {"params": [index[id(p)] for p in group["params"]]}
            for group in self.param_groups
        ]
        state = {
            (index[id(p)] if isinstance(p, Tensor) else p): dict(entry)
            for p, entry in self.state.items()
            if entry or not isinstance(p, Tensor)
        }
        return self._after_state_dict({"state": state, "param_groups": groups})

    @telling_method
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from a state of `state_dict` (or of PyTorch's optimizer of that name), copied.

        Args:
            state_dict: its tensors may be arrays; they take the type of their parameter.

        Raises:
            ValueError: other groups than this optimizer's, or state of another shape than its
                parameter; nothing is changed then.
        """
        if not isinstance(state_dict, Mapping):
            raise TypeError(f"Expected state_dict to be dict-like, got {type(state_dict).__name__}")
        state_dict = self._before_load(state_dict)
        saved = [dict(group) for group in state_dict["param_groups"]]
        if len(saved) != len(self.param_groups):
            raise ValueError(
                "loaded state dict has a different number of parameter groups: "
                f"it has {len(saved)}, the optimizer {len(self.param_groups)}"
            )
        params: dict[Any, Tensor] = {}
        for i, (group, own) in enumerate(zip(saved, self.param_groups, strict=True)):
            if len(group["params"]) != len(own["params"]):
                raise ValueError(
                    "loaded state dict contains a parameter group that doesn't match the size of optimizer's "
                    f"group: group {i} has {len(group['params'])} parameters, the optimizer's {len(own['params'])}"
                )
            params.update(zip(group["params"], own["params"], strict=True))
        state: dict[Any, dict[str, Any]] = defaultdict(dict)
        for key, entry in state_dict["state"].items():
            if key in params:
                state[params[key]] = {
                    name: self._copied(value, params[key], name, f"state[{key}][{name!r}]")
                    for name, value in entry.items()
                }
            else:
                state[key] = deepcopy(entry)
        groups = []
        for group, own in zip(saved, self.param_groups, strict=True):
            options = {k: _own_option(v) for k, v in group.items() if k != "params"}
            if "param_names" in own:
                options.setdefault("param_names", own["param_names"])
            missing = {k: v for k, v in self.defaults.items() if k not in options}
            groups.append({**options, **missing, "params": own["params"]})
        for group in groups:
            self._check_group(group)
        self.__setstate__({"state": state, "param_groups": groups})
        self._after_load()

    def _copied(self, value: Any, p: Tensor, name: str, where: str) -> Any:
        """A copy of one piece of state; floating point values take the type of their parameter."""
        if isinstance(value, (list, tuple)):
            return type(value)(self._copied(v, p, name, where) for v in value)
        if name in self._scalar_names:
            if self._steps_itself():
                return deepcopy(value)
            return tensor(_host_values(value).astype(np.float32))
        if not (isinstance(value, Tensor) or hasattr(value, "__array__")):
            return deepcopy(value)
        array = _host_values(value)
        shape = self._state_shape(name, p)
        if shape is not None and array.shape != shape:
            raise ValueError(
                f"loaded state dict: {where} has shape {list(array.shape)}, but its parameter has shape "
                f"{list(p.shape)}; was it saved from another model?"
            )
        return tensor(array.astype(p._array.dtype), device=p.device)

    def __getstate__(self) -> dict[str, Any]:
        return {"defaults": self.defaults, "state": self.state, "param_groups": self.param_groups}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if not hasattr(self, "_step_pre_hooks"):
            super().__init__()  # a copy starts without hooks
        self.__dict__.update(state)
        self._forget_plan()

    def __repr__(self) -> str:
        lines = [f"{type(self).__name__} ("]
        for i, group in enumerate(self.param_groups):
            lines.append(f"Parameter Group {i}")
            lines += [f"    {key}: {group[key]}" for key in sorted(group) if key != "params"]
            lines.append("")
        return "\n".join(lines[:-1]) + "\n)"


def _host_values(value: Any) -> np.ndarray:
    return to_host(as_array(values_of(value)))


def _check_supported(group: dict[str, Any]) -> None:
    """Refuse options of PyTorch that change what a step is.

    Raises:
        ValueError: one of them is set.
        RuntimeError: two implementations are asked for at once.
    """
    if group.get("fused") and group.get("foreach"):
        raise RuntimeError("`fused` and `foreach` cannot be `True` together.")
    if group.get("differentiable"):
        raise ValueError(
            "differentiable=True is not supported: the update runs as one kernel over flat arrays; leave it at False"
        )


def _own_option(value: Any) -> Any:
    """A copy of an option that was saved; what another library calls a tensor becomes ours."""
    if isinstance(value, (tuple, list)):
        return type(value)(_own_option(v) for v in value)
    foreign = not isinstance(value, (Tensor, np.ndarray)) and hasattr(value, "__array__")
    return tensor(np.asarray(value)) if foreign else deepcopy(value)


def number(value: Any) -> Any:
    """An option as a Python number; PyTorch allows one-element tensors."""
    return value.item() if isinstance(value, Tensor) else value


@surveys(STATE)
def _held(holders: Holders) -> None:
    """What optimizers hold of an exhausted GPU's memory."""
    for optimizer in holders.every(Optimizer):
        for p, entry in optimizer.state.items():
            for name, value in entry.items():
                for part in value if isinstance(value, (list, tuple)) else (value,):
                    holders.claim(part, f"{name} of {holders.name_of(p)}")
