"""Hooks on one module and on all of them: order, arguments, replacement, errors, in both libraries."""

import pytest
from scenarios import agree, attempt, collector

import dptrain

pytestmark = pytest.mark.oracle

SCENARIOS, scenario = collector()


def layer(lib, factor=2.0):
    made = lib.nn.Linear(1, 1, bias=False)
    with lib.no_grad():
        made.weight.fill_(factor)
    return made


def values(parts):
    return [None if p is None else p.tolist() for p in parts]


@scenario
def order_of_hooks(lib):
    said, module = [], layer(lib)
    everywhere = lib.nn.modules.module
    handles = [
        everywhere.register_module_forward_pre_hook(lambda m, a: said.append("all pre")),
        everywhere.register_module_forward_hook(lambda m, a, r: said.append("all")),
        everywhere.register_module_forward_hook(
            lambda m, a, k, r: said.append(("all", len(a), list(k))), with_kwargs=True
        ),
        everywhere.register_module_full_backward_pre_hook(
            lambda m, g: said.append(("all back pre", values(g)))
        ),
        everywhere.register_module_full_backward_hook(
            lambda m, gi, go: said.append(("all back", values(gi), values(go)))
        ),
        module.register_forward_pre_hook(lambda m, a: said.append("pre 1")),
        module.register_forward_pre_hook(lambda m, a: said.append("pre 2"), prepend=True),
        module.register_forward_hook(lambda m, a, r: said.append("1")),
        module.register_forward_hook(lambda m, a, r: said.append("2"), prepend=True),
        module.register_full_backward_hook(lambda m, gi, go: said.append("back 1")),
        module.register_full_backward_hook(lambda m, gi, go: said.append("back 2"), prepend=True),
        module.register_full_backward_pre_hook(lambda m, g: said.append("back pre")),
    ]
    try:
        module(lib.ones(1, 1, requires_grad=True)).sum().backward()
    finally:
        for handle in handles:
            handle.remove()
    count = len(said)
    module(lib.ones(1, 1))
    return [*said, len(said) == count]


@scenario
def what_hooks_replace(lib):
    module = layer(lib)
    x = lib.ones(1, 1, requires_grad=True)
    everywhere = lib.nn.modules.module
    facts = []
    with everywhere.register_module_forward_pre_hook(lambda m, a: a[0] + 1):
        facts.append(module(x))
    own = module.register_forward_hook(lambda m, a, r: r + 1)
    with everywhere.register_module_forward_hook(lambda m, a, r: r * 10), own:
        facts.append(module(x))
    with everywhere.register_module_full_backward_hook(lambda m, gi, go: (gi[0] * 3,)):
        module(x).sum().backward()
        facts += [x.grad, module.weight.grad]
    with everywhere.register_module_full_backward_pre_hook(lambda m, go: (go[0] * 5,)):
        module.zero_grad()
        module(x).sum().backward()
        facts += [x.grad, module.weight.grad]
    with module.register_forward_pre_hook(lambda m, a, k: ((a[0] * 2,), k), with_kwargs=True):
        facts.append(module(x))
    return facts


class Broken:
    """Makes a module whose forward raises."""

    def __new__(cls, lib):
        class Raises(lib.nn.Module):
            def forward(self, x):
                raise KeyError("inside")

        return Raises()


@scenario
def hooks_that_always_run(lib):
    said, module = [], Broken(lib)
    module.register_forward_hook(lambda m, a, r: said.append(("always", r)), always_call=True)
    module.register_forward_hook(lambda m, a, r: said.append("never"))
    module.register_forward_hook(
        lambda m, a, k, r: said.append(("named", list(k), r)), always_call=True, with_kwargs=True
    )
    facts = [attempt(lambda: module(1)), list(said)]
    with lib.nn.modules.module.register_module_forward_hook(
        lambda m, a, r: said.append("everywhere"), always_call=True
    ):
        facts.append(attempt(lambda: module(x=1)))
    facts.append(list(said))
    said.clear()
    late = layer(lib)
    late.register_forward_hook(lambda m, a, r: said.append("once"), always_call=True)
    late.register_forward_hook(lambda m, a, r: 1 / 0)
    return [*facts, attempt(lambda: late(lib.ones(1, 1)))[0], said]


@scenario
def old_backward_hooks(lib):
    said, module = [], layer(lib)
    with module.register_backward_hook(lambda m, gi, go: said.append(values(go))):
        module(lib.ones(1, 1, requires_grad=True)).sum().backward()
        mixed = attempt(lambda: module.register_full_backward_hook(print))
    still = attempt(lambda: module.register_full_backward_hook(print))
    other = layer(lib)
    other.register_full_backward_hook(lambda m, gi, go: None)
    also = attempt(lambda: other.register_backward_hook(print))
    return [said, mixed, still, also]


@scenario
def hooks_on_registration(lib):
    said, everywhere = [], lib.nn.modules.module
    handles = [
        everywhere.register_module_parameter_registration_hook(
            lambda m, name, p: said.append((type(m).__name__, name))
        ),
        everywhere.register_module_buffer_registration_hook(
            lambda m, name, b: b * 2 if name == "b" else None
        ),
        everywhere.register_module_module_registration_hook(
            lambda m, name, child: lib.nn.Tanh() if name == "swap" else None
        ),
    ]
    try:
        module = layer(lib)
        module.register_buffer("b", lib.ones(1))
        module.swap = lib.nn.ReLU()
        module.add_module("keep", lib.nn.ReLU())
    finally:
        for handle in handles:
            handle.remove()
    return [said, module.b, repr(module)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SCENARIOS)
def test_both_libraries_agree(name):
    agree(SCENARIOS[name])


@pytest.mark.filterwarnings("ignore")
def test_an_error_in_a_hook_that_always_runs_does_not_hide_the_first():
    module = Broken(dptrain)
    module.register_forward_hook(lambda m, a, r: 1 / 0, always_call=True)
    with pytest.raises(KeyError, match="inside"):
        module(1)


def test_backward_hooks_on_all_modules_are_of_one_kind():
    from dptrain.nn.modules import module as everywhere

    said = []
    with everywhere.register_module_backward_hook(lambda m, gi, go: said.append(values(go))):
        layer(dptrain)(dptrain.ones(1, 1, requires_grad=True)).sum().backward()
        with pytest.raises(RuntimeError, match="both regular backward hooks and full"):
            everywhere.register_module_full_backward_hook(print)
    assert said == [[[[1.0]]]]
    with (
        everywhere.register_module_full_backward_hook(print),
        pytest.raises(RuntimeError, match="both regular backward hooks and full"),
    ):
        everywhere.register_module_backward_hook(print)
