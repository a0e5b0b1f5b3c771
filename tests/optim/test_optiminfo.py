"""Every optimizer with every set of options that PyTorch tests its own with, beside PyTorch.

The options and the errors come from PyTorch's table of optimizers (`optim_db`), so that nothing is left
out because we did not think of it.
"""

import copy
import warnings

import numpy as np
import pytest

import dptrain
from dptrain import nn, optim

torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
pytest.importorskip("expecttest", reason="extra `oracle` is not installed")
pytestmark = pytest.mark.oracle

from optim_pairs import assert_same_structure, ours_of, theirs_of, values  # noqa: E402
from torch.testing._internal.common_optimizers import OptimizerErrorEnum, optim_db  # noqa: E402

SHAPES = [(3, 4), (4,), (), (2, 3, 2), (1, 5)]
MATRICES = [(3, 4), (6, 2), (4, 4), (1, 5)]
#: Sparse gradients are not supported.
INFOS = [info for info in optim_db if info.optim_cls.__name__ != "SparseAdam"]
CASES = [
    pytest.param(info, case.kwargs, id=f"{info.optim_cls.__name__}-{case.desc}")
    for info in INFOS
    for case in info.optim_inputs_func(device="cpu")
]
ERRORS = [
    pytest.param(info, error, id=f"{info.optim_cls.__name__}-{error.optimizer_error_input.desc}")
    for info in INFOS
    for error in info.optim_error_inputs_func(device="cpu", dtype=torch.float64)
    if "complex" not in error.optimizer_error_input.desc  # there are no complex tensors
]


class Pair:
    """One optimizer on both sides: two groups with rates of their own."""

    def __init__(self, info, options, dtype):
        self.name, self.dtype = info.optim_cls.__name__, dtype
        self.shapes = MATRICES if self.name == "Muon" else SHAPES
        start = [values(0, i, s, dtype) for i, s in enumerate(self.shapes)]
        self.ours = [nn.Parameter(dptrain.tensor(v)) for v in start]
        self.theirs = [torch.nn.Parameter(torch.tensor(v)) for v in start]
        self.options = options
        self.a = self.make(optim, self.ours, ours_of(options))
        self.b = self.make(torch.optim, self.theirs, copy.deepcopy(options))

    def make(self, library, params, options):
        if self.name == "LBFGS":  # one group only
            return library.LBFGS(params, **options)
        groups = [{"params": params[:2], "lr": 0.03}, {"params": params[2:]}]
        return getattr(library, self.name)(groups, **options)

    def give_gradients(self, step):
        for i, (p, q) in enumerate(zip(self.ours, self.theirs, strict=True)):
            if (step + i) % 4 == 3:  # not every parameter has one in every step
                p.grad = q.grad = None
            else:
                g = values(step + 1, i, self.shapes[i], self.dtype)
                p.grad, q.grad = dptrain.tensor(g), torch.tensor(g)

    def step(self, steps):
        if self.name == "LBFGS":
            self.a.step(lambda: quadratic(self.a, self.ours, dptrain.tensor))
            self.b.step(lambda: quadratic(self.b, self.theirs, torch.tensor))
            return
        for step in steps:
            self.give_gradients(step)
            self.a.step()
            self.b.step()

    def assert_same(self, exchanged=False):
        tolerance = 1e-10 if self.dtype is np.float64 else 2e-6
        if self.name == "LBFGS" and self.dtype is np.float32:  # a search amplifies roundings
            tolerance = 1e-3
        elif self.name in ("NAdam", "ASGD") and exchanged:
            # PyTorch's loading widens their float32 numbers to the parameter's type.
            tolerance = 2e-6
        for p, q in zip(self.ours, self.theirs, strict=True):
            np.testing.assert_allclose(
                p.detach().numpy(), q.detach().numpy(), rtol=tolerance, atol=tolerance
            )
        if tolerance < 1e-3:
            assert_same_structure(self.a.state_dict(), self.b.state_dict(), tolerance)


def quadratic(optimizer, params, tensor):
    optimizer.zero_grad()
    loss = sum(
        ((p - tensor(values(50, i, tuple(p.shape)))) ** 2 * (i + 1)).sum()
        for i, p in enumerate(params)
    )
    loss.backward()
    return loss


@pytest.mark.parametrize("dtype", [np.float64, np.float32], ids=["float64", "float32"])
@pytest.mark.parametrize(("info", "options"), CASES)
def test_ten_steps_with_the_states_exchanged_midway_are_pytorchs(info, options, dtype):
    pair = Pair(info, options, dtype)
    assert repr(pair.a) == repr(pair.b)
    assert_same_structure(pair.a.state_dict(), pair.b.state_dict(), 0)
    assert list(pair.a.defaults) == list(pair.b.defaults)
    pair.step(range(5))
    pair.assert_same()
    ours, theirs = copy.deepcopy(pair.a.state_dict()), copy.deepcopy(pair.b.state_dict())
    pair.a = pair.make(optim, pair.ours, ours_of(options))
    pair.a.load_state_dict(theirs)
    pair.b = pair.make(torch.optim, pair.theirs, copy.deepcopy(options))
    pair.b.load_state_dict(theirs_of(ours))
    pair.assert_same(exchanged=True)
    pair.step(range(5, 10))
    pair.assert_same(exchanged=True)


def raised(make, name, params, options, on):
    """The kind of error (or of warning) and its words."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        try:
            optimizer = getattr(make, name)(params, **options)
            if on is OptimizerErrorEnum.STEP_ERROR:
                optimizer.step()
        except Exception as error:
            return error
    return None


@pytest.mark.parametrize(("info", "error"), ERRORS)
def test_what_pytorch_refuses_is_refused_alike(info, error):
    given, name = error.optimizer_error_input, info.optim_cls.__name__
    params = given.params
    if params is None:
        params = [torch.nn.Parameter(torch.randn(2, 3, dtype=torch.float64))]
    converted = ours_of(params)  # before PyTorch takes the names out of the groups
    theirs = raised(torch.optim, name, params, given.kwargs, error.error_on)
    ours = raised(optim, name, converted, ours_of(given.kwargs), error.error_on)
    assert theirs is not None
    assert type(ours) is type(theirs), f"ours {ours!r}, PyTorch's {theirs!r}"
