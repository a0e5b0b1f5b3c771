"""Scenarios: functions of a library that return what a caller saw, to be equal in both."""

import re

import pytest

import dptrain

torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")


#: In PyTorch's messages.
_SLIPS = {
    "isint": "is int",
    "ParametersDict": "ParameterDict",
    " Open an issue on github if you need non-string keys.": "",
}


def collector():
    """A table of scenarios by name, and the decorator that enters them."""
    found = {}

    def scenario(function):
        found[function.__name__] = function
        return function

    return found, scenario


LAYER = re.compile(r"^[A-Z]\w+: ")


def attempt(action):
    """The result, or the kind and text of the error, without the name of the layer before PyTorch's words."""
    try:
        return action()
    except Exception as error:
        return type(error).__name__, LAYER.sub("", str(error.args[0])) if error.args else ""


def plain(value):
    """Facts without the names of the libraries."""
    if hasattr(value, "detach"):
        return plain(value.detach().tolist())
    if isinstance(value, float):
        return round(value, 9)
    if isinstance(value, str):
        text = re.sub(r"\b(torch|dptrain)\.nn\.(modules\.)?(\w+\.)?", "nn.", value)
        text = re.sub(r"\b(torch|dptrain)\b[. ]", "", text)
        text = re.sub(r"'\w*Tensor'|Tensor or None|nn.Parameter or None", "?", text)
        text = re.sub(r"Tensor-like object|numpy.ndarray", "the like", text)
        for slip, meant in _SLIPS.items():
            text = text.replace(slip, meant)
        return text
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [plain(v) for v in value]
    return value


def agree(scenario):
    ours, theirs = (plain(scenario(lib)) for lib in (dptrain, torch))
    if isinstance(theirs, list):  # the first entry that differs says more
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            assert a == b, f"entry {i}"
    assert ours == theirs


# ---- a module for them ---------------------------------------------------------------------------


def state(module):
    return {k: v.detach().tolist() for k, v in module.state_dict().items()}


def filled(lib, module):
    with lib.no_grad():
        for i, tensor in enumerate((*module.parameters(), *module.buffers())):
            tensor.copy_((lib.arange(tensor.numel()) + i).reshape(tensor.shape))
    return module


def net(lib):
    class Net(lib.nn.Module):
        def __init__(self):
            super().__init__()
            self.first = lib.nn.Linear(2, 2)
            self.norm = lib.nn.BatchNorm1d(2)
            self.tied = self.first
            self.scale = lib.nn.Parameter(lib.ones(2))
            self.register_buffer("seen", lib.zeros(1))
            self.register_buffer("hidden", lib.zeros(1), persistent=False)

        def forward(self, x):
            return self.norm(self.first(x)) * self.scale

    return filled(lib, Net())
