"""Every public class and function of `torch.optim`: same names, same arguments, order and defaults."""

import inspect

import pytest

import dptrain

torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
pytestmark = pytest.mark.oracle

MODULES = ("optim", "optim.lr_scheduler", "optim.swa_utils")
#: What is not there or differs, and why.
EXCEPTIONS = {
    "optim.SparseAdam": "sparse gradients are not supported",
    "optim.swap_in_optimizer_params_and_state": "for tracing compilers",
    "optim.lr_scheduler.Optimizer": "an import that happens to have no underscore",
    "OptimizerPreHook": "a type alias",
    "OptimizerPostHook": "a type alias",
    "profile_hook_step": "plumbing of the profiler",
    "LBFGS.step": "says itself that the closure is missing",
}


def found(library, path):
    for part in path.split("."):
        library = getattr(library, part)
    return library


def members(module):
    """Public classes and functions that PyTorch defines there."""
    held = vars(found(torch, module)).items()
    return [
        (module, name)
        for name, value in held
        if not name.startswith("_")
        and (inspect.isclass(value) or inspect.isfunction(value))
        and value.__module__.startswith("torch.optim")
        and f"{module}.{name}" not in EXCEPTIONS
    ]


def arguments(function):
    return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]


@pytest.mark.parametrize(("module", "name"), [m for module in MODULES for m in members(module)])
def test_arguments_are_those_of_pytorch(module, name):
    ours, theirs = getattr(found(dptrain, module), name), getattr(found(torch, module), name)
    assert arguments(ours) == arguments(theirs)
    if not inspect.isclass(theirs):
        return
    assert inspect.isclass(ours)
    inherited = vars(torch.nn.Module)  # modules are compared elsewhere
    for method in dir(theirs):
        known = method in EXCEPTIONS or f"{name}.{method}" in EXCEPTIONS
        if known or method.startswith("_") or method in inherited:
            continue
        assert hasattr(ours, method), method
        if callable(getattr(theirs, method)):
            assert arguments(getattr(ours, method)) == arguments(getattr(theirs, method)), method
