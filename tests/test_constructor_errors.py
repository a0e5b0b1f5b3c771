"""Every layer and every optimizer refuses bad construction, with PyTorch's kind of exception."""

import inspect

import pytest

import dptrain
from dptrain import nn, optim

#: `Identity` takes any arguments.
LAYERS = sorted(
    n
    for n in dir(nn)
    if inspect.isclass(getattr(nn, n)) and issubclass(getattr(nn, n), nn.Module) and n != "Identity"
)
OPTIMIZERS = sorted(
    n
    for n in dir(optim)
    if inspect.isclass(getattr(optim, n))
    and issubclass(getattr(optim, n), optim.Optimizer)
    and n != "Optimizer"
)


def required(layer):
    """As many numbers as the constructor asks for."""
    parameters = list(inspect.signature(layer.__init__).parameters.values())[1:]
    return [2 for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]


def parameter(m):
    return m.nn.Parameter(m.ones(2, 2))


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore:`NLLLoss2d` has been deprecated")
@pytest.mark.parametrize("name", LAYERS)
def test_layers_refuse_unknown_arguments(name):
    torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
    for m in (dptrain, torch):
        layer = getattr(m.nn, name, None)
        if layer is None:
            continue
        with pytest.raises(TypeError):
            layer(*required(layer), no_such_argument=1)
        if required(layer):
            with pytest.raises(TypeError):
                layer()


@pytest.mark.oracle
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda cls, p: cls([]), ValueError),
        (lambda cls, p: cls(p), TypeError),
        (lambda cls, p: cls([3]), TypeError),
        (lambda cls, p: cls([p], lr=-1.0), ValueError),
        (lambda cls, p: cls([p], no_such_option=1), TypeError),
        (lambda cls, p: cls([p * 2]), ValueError),
        (lambda cls, p: cls([p]).load_state_dict({"state": {}, "param_groups": []}), ValueError),
        (lambda cls, p: cls([p]).add_param_group(3), (TypeError, ValueError)),
        (lambda cls, p: cls([p]).add_param_group({"params": [p]}), ValueError),
    ],
    ids=["empty", "tensor", "number", "lr", "unknown", "non-leaf", "groups", "no-dict", "twice"],
)
def test_optimizers_refuse_bad_use(name, call, error):
    torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
    for m in (torch, dptrain):
        cls = getattr(m.optim, name)
        with pytest.raises(error):
            call(cls, parameter(m))
