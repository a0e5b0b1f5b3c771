"""What scripts do with optimizers, written once and run on both sides: same results, errors, warnings."""

import copy
import pickle
import warnings
from importlib import import_module

import numpy as np
import pytest

import dptrain

torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
pytestmark = pytest.mark.oracle


def leaf(lib, *values):
    return lib.nn.Parameter(lib.tensor([*map(float, values or (1, 2))], dtype=lib.float64))


def gradient(lib, p, *values):
    p.grad = lib.tensor([*map(float, values)], dtype=lib.float64)


COUNTING = [
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "ASGD",
    "NAdam",
    "RAdam",
    "RMSprop",
    "Rprop",
    "SGD",
]


def named_twice(name):
    def run(lib):
        p, q = leaf(lib), leaf(lib, 3, 4)
        o = getattr(lib.optim, name)([p, q, p])
        for _ in range(3):
            gradient(lib, p, 0.1, 0.2)
            gradient(lib, q, 0.3, 0.4)
            o.step()
        saved = o.state_dict()
        return p, q, saved["param_groups"][0]["params"], sorted(saved["state"])

    return run


def params_of(give):
    return lambda lib: [len(g["params"]) for g in lib.optim.SGD(give(lib)).param_groups]


def empty_groups(lib):
    p = leaf(lib)
    o = lib.optim.SGD([{"params": []}, {"params": [p]}], lr=0.1)
    gradient(lib, p, 1, 1)
    o.step()
    o.zero_grad()
    return p, repr(o)


def names(lib):
    o = lib.optim.Adam(lib.nn.Linear(2, 2).named_parameters(), lr=0.1)
    o.add_param_group({"params": [("x", leaf(lib))]})
    return repr(o), o.state_dict()["param_groups"]


def group_without_names(lib):
    o = lib.optim.Adam([("x", leaf(lib))])
    o.add_param_group({"params": [leaf(lib)]})


def names_of_a_loaded_state(lib):
    def make(*members):
        return lib.optim.SGD(members, lr=0.1)

    named, other, bare = make(("w", leaf(lib))), make(("v", leaf(lib))), make(leaf(lib))
    saved, bare_saved = named.state_dict(), bare.state_dict()
    other.load_state_dict(saved)
    bare.load_state_dict(saved)
    named.load_state_dict(bare_saved)
    return [o.param_groups[0].get("param_names") for o in (named, other, bare)]


def loading(state):
    return lambda lib: lib.optim.Adam([leaf(lib)]).load_state_dict(state)


def gradients_set_to_zero(lib):
    p = leaf(lib)
    o = lib.optim.SGD([p])
    gradient(lib, p, 1, 1)
    seen = p.grad
    o.zero_grad(set_to_none=False)
    return seen, p.grad, p.grad is seen


def closure(lib):
    p = leaf(lib)
    o = lib.optim.SGD([p], lr=0.1, momentum=0.5)

    def loss():
        o.zero_grad()
        value = (p * p).sum()
        value.backward()
        return value

    with lib.no_grad():
        first = o.step(loss)
    return first, o.step(loss), p


def copies(copied):
    def run(lib):
        p = leaf(lib)
        o = lib.optim.Adam([p], lr=0.1)
        gradient(lib, p, 1, 1)
        o.step()
        other = copied(o)
        q = other.param_groups[0]["params"][0]
        gradient(lib, q, 1, 2)
        other.step()
        return p, q, repr(other), sorted(other.__getstate__())

    return run


def data_is_exchanged(lib):
    p = leaf(lib)
    o = lib.optim.SGD([p], lr=0.1, momentum=0.9)
    for value in (5, 7, 9):
        p.data = leaf(lib, value, 1).detach()
        gradient(lib, p, 1, 2)
        o.step()
    return p, o.state[p]["momentum_buffer"]


def data_of_another_shape(lib):
    p = leaf(lib)
    o = lib.optim.SGD([p], lr=0.1, momentum=0.9)
    for values in ((1, 1), (1, 1, 1)):
        p.grad = None
        p.data = leaf(lib, *values).detach()
        gradient(lib, p, *values)
        o.step()


def two_optimizers(lib):
    p = leaf(lib)
    first, second = lib.optim.SGD([p], lr=0.1, momentum=0.9), lib.optim.Adam([p], lr=0.1)
    for _ in range(3):
        gradient(lib, p, 1, -1)
        first.step()
        second.step()
    return p


def frozen_midway(lib):
    p, q = leaf(lib), leaf(lib, 3, 4)
    o = lib.optim.Adam([p, q], lr=0.1)
    for step in range(6):
        p.requires_grad_(step not in (2, 3))
        o.zero_grad()
        (p * q).sum().backward()
        o.step()
    return p, q, o.state[p]["step"], o.state[q]["step"]


def order_of_hooks(lib):
    log, p = [], leaf(lib)
    o = lib.optim.SGD([p])
    module = import_module(f"{lib.__name__}.optim.optimizer")
    handles = [
        register(lambda o, args, kwargs, word=word: log.append((word, len(args), kwargs)))
        for word, register in (
            ("before", o.register_step_pre_hook),
            ("after", o.register_step_post_hook),
            ("before all", module.register_optimizer_step_pre_hook),
            ("after all", module.register_optimizer_step_post_hook),
        )
    ]
    o.step()
    o.step(closure=None)
    for handle in handles:
        handle.remove()
    o.step()
    return log


def hook_of_wrong_result(lib):
    o = lib.optim.SGD([leaf(lib)])
    o.register_step_pre_hook(lambda o, args, kwargs: 5)
    o.step()


def hooks_of_states(lib):
    log, o = [], lib.optim.SGD([leaf(lib)])
    o.register_state_dict_pre_hook(lambda o: log.append("second"))
    o.register_state_dict_pre_hook(lambda o: log.append("first"), prepend=True)
    o.register_state_dict_post_hook(lambda o, state: {**state, "more": 1})
    o.register_load_state_dict_pre_hook(lambda o, state: log.append(sorted(state)))
    o.register_load_state_dict_post_hook(lambda o: log.append("loaded"))
    saved = o.state_dict()
    o.load_state_dict(saved)
    return log, sorted(saved)


def own_optimizer(lib):
    class Own(lib.optim.Optimizer):
        def __init__(self, params, lr):
            super().__init__(params, {"lr": lr})

        def step(self, closure=None):
            for group in self.param_groups:
                for p in group["params"]:
                    state = self.state[p]
                    state["n"] = state.get("n", 0) + 1
                    p.data.add_(p.grad, alpha=-group["lr"])

    p = leaf(lib)
    o = Own([p], 0.1)
    for _ in range(2):
        gradient(lib, p, 1, 1)
        o.step()
    saved = o.state_dict()
    o.load_state_dict(saved)
    return p, saved, o.state[p]


SCENES = {
    **{f"named twice: {name}": named_twice(name) for name in COUNTING},
    "generator": params_of(lambda lib: (leaf(lib) for _ in range(2))),
    "tuple": params_of(lambda lib: (leaf(lib), leaf(lib))),
    "values of a dict": params_of(lambda lib: {"a": leaf(lib)}.values()),
    "longer tuples": params_of(lambda lib: [("a", leaf(lib), 3)]),
    "no gradients wanted": params_of(lambda lib: [lib.tensor([1])]),
    "number": params_of(lambda lib: 5),
    "None": params_of(lambda lib: None),
    "None in a list": params_of(lambda lib: [None]),
    "text": params_of(lambda lib: "ab"),
    "dict": params_of(lambda lib: {"a": leaf(lib)}),
    "lists in a list": params_of(lambda lib: [[leaf(lib)]]),
    "number in a list": params_of(lambda lib: [leaf(lib), 3]),
    "number with a name": params_of(lambda lib: [("a", 3)]),
    "group without params": params_of(lambda lib: [{"lr": 1}]),
    "group of a number": params_of(lambda lib: [{"params": 3}]),
    "parameter, then group": params_of(lambda lib: [leaf(lib), {"params": leaf(lib)}]),
    "group, then parameter": params_of(lambda lib: [{"params": leaf(lib)}, leaf(lib)]),
    "nothing": params_of(lambda lib: iter([])),
    "empty groups": empty_groups,
    "names": names,
    "group without names": group_without_names,
    "names of a loaded state": names_of_a_loaded_state,
    "other number of groups": loading({"state": {}, "param_groups": []}),
    "other size of group": loading({"state": {}, "param_groups": [{"params": [0, 1]}]}),
    "state without groups": loading({"state": {}}),
    "groups without state": loading({"param_groups": []}),
    "gradients set to zero": gradients_set_to_zero,
    "closure": closure,
    "pickle": copies(lambda o: pickle.loads(pickle.dumps(o))),
    "deepcopy": copies(copy.deepcopy),
    "data is exchanged": data_is_exchanged,
    "data of another shape": data_of_another_shape,
    "two optimizers": two_optimizers,
    "frozen midway": frozen_midway,
    "order of hooks": order_of_hooks,
    "hook of wrong result": hook_of_wrong_result,
    "hooks of states": hooks_of_states,
    "own optimizer": own_optimizer,
    "base class": lambda lib: lib.optim.Optimizer([leaf(lib)], {"lr": 1}).step(),
    "implementations at once": lambda lib: lib.optim.SGD([leaf(lib)], fused=True, foreach=True),
    "whole numbers as betas": lambda lib: lib.optim.Adam([leaf(lib)], betas=(0, 0.9)),
    "tensors as betas": lambda lib: repr(
        lib.optim.Adam([leaf(lib)], betas=(lib.tensor(0.5), lib.tensor(0.25)))
    ),
}


def plain(value):
    """Numbers of tensors, rounded where the sides round differently."""
    if hasattr(value, "detach"):
        return np.round(value.detach().numpy().astype(np.float64), 10).tolist()
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    return [*map(plain, value)] if isinstance(value, (list, tuple)) else value


def outcome(scene, lib):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            result = plain(scene(lib))
        except Exception as error:
            result = type(error)
    return result, [w.category for w in caught]


@pytest.mark.parametrize("name", SCENES)
def test_scene_plays_as_with_pytorch(name):
    assert outcome(SCENES[name], dptrain) == outcome(SCENES[name], torch)


def _momentum(lib):
    class Momentum(lib.optim.Optimizer):
        """Keeps a plain number and a state of another shape than the parameter's."""

        def __init__(self, params, lr=0.1):
            super().__init__(params, {"lr": lr})

        @lib.no_grad()
        def step(self, closure=None):
            for group in self.param_groups:
                for p in group["params"]:
                    state = self.state[p]
                    if not state:
                        state["step"], state["mean"] = 0, lib.zeros((), dtype=p.dtype)
                    state["step"] += 1
                    state["mean"].mul_(0.9).add_(p.grad.mean(), alpha=0.1)
                    p.sub_(state["mean"] * group["lr"] / state["step"])

    return Momentum


def test_the_state_of_an_optimizer_that_steps_itself_comes_back_as_it_was():
    ends = []
    for lib in (dptrain, torch):
        kind, p = _momentum(lib), leaf(lib, 1, 2, 3)
        first = kind([p])
        gradient(lib, p, 1, 2, 4)
        first.step()
        second = kind([p])
        second.load_state_dict(copy.deepcopy(first.state_dict()))
        second.step()
        state = second.state_dict()["state"][0]
        assert type(state["step"]) is int
        ends.append([state["step"], state["mean"].item(), *p.tolist()])
    assert ends[0] == pytest.approx(ends[1])


def test_schedulers_may_derive_from_the_older_name():
    rates = []
    for lib in (dptrain, torch):

        class Warmup(lib.optim.lr_scheduler._LRScheduler):
            def get_lr(self):
                return [base * min(1.0, (self.last_epoch + 1) / 4) for base in self.base_lrs]

        p = leaf(lib)
        gradient(lib, p, 1, 1)
        optimizer = lib.optim.SGD([p], lr=1.0)
        scheduler, seen = Warmup(optimizer), []
        for _ in range(5):
            optimizer.step()
            scheduler.step()
            seen += scheduler.get_last_lr()
        rates.append(seen)
    assert rates[0] == rates[1]
