"""L-BFGS against PyTorch: the same losses from the same number of evaluations, with every option."""

import numpy as np
import pytest

import dptrain
from dptrain import optim

torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
pytestmark = pytest.mark.oracle

OPTIONS = [
    {},
    {"lr": 0.3, "max_iter": 5, "history_size": 3},
    {"tolerance_grad": 1.0},
    {"tolerance_change": 0.1},
    {"max_eval": 3},
    {"line_search_fn": "strong_wolfe"},
    {"line_search_fn": "strong_wolfe", "lr": 4.0, "max_iter": 4, "history_size": 2},
    {"line_search_fn": "strong_wolfe", "lr": 40.0, "max_eval": 7},
    {"line_search_fn": "strong_wolfe", "lr": 1e-3, "max_iter": 6},
]

rng = np.random.default_rng(0)
X, Y = rng.standard_normal((30, 6)), rng.standard_normal((30, 2))
START = [rng.standard_normal(s) for s in ((6, 5), (5, 2), (2,), (3,))]


class Fit:
    """A small regression; the last parameter has no gradient."""

    def __init__(self, lib, **options):
        self.lib, self.calls = lib, 0
        self.params = [lib.nn.Parameter(lib.tensor(w.copy())) for w in START]
        self.x, self.y = lib.tensor(X), lib.tensor(Y)
        self.optimizer = lib.optim.LBFGS(self.params, **options)

    def closure(self):
        self.calls += 1
        self.optimizer.zero_grad()
        a, b, c, _ = self.params
        loss = ((self.lib.tanh(self.x @ a) @ b + c - self.y) ** 2).sum()
        loss = loss + 0.1 * sum((p * p).sum() for p in (a, b))
        loss.backward()
        return loss

    def step(self):
        return self.optimizer.step(self.closure).item()

    def values(self):
        return [p.detach().numpy() for p in self.params]


def state_of(fit):
    return fit.optimizer.state_dict()["state"][0]


@pytest.mark.parametrize("options", OPTIONS)
def test_losses_and_evaluations_are_those_of_pytorch(options):
    ours, theirs = Fit(dptrain, **options), Fit(torch, **options)
    for _ in range(3):
        # Rounding grows with the iterations: a hundred of them make 1e-15 into 1e-9.
        assert ours.step() == pytest.approx(theirs.step(), rel=1e-9)
    assert ours.calls == theirs.calls
    a, b = state_of(ours), state_of(theirs)
    assert sorted(a) == sorted(b)
    assert [a[k] for k in ("func_evals", "n_iter")] == [b[k] for k in ("func_evals", "n_iter")]
    assert [len(a[k]) for k in ("old_dirs", "old_stps", "ro")] == [
        len(b[k]) for k in ("old_dirs", "old_stps", "ro")
    ]
    for p, q in zip(ours.values(), theirs.values(), strict=True):
        np.testing.assert_allclose(p, q, rtol=1e-6, atol=1e-6)


def test_ten_steps_agree_to_the_last_digits():
    ours, theirs = Fit(dptrain, max_iter=2), Fit(torch, max_iter=2)
    for _ in range(10):
        assert ours.step() == pytest.approx(theirs.step(), rel=1e-10)
    for p, q in zip(ours.values(), theirs.values(), strict=True):
        np.testing.assert_allclose(p, q, rtol=1e-10, atol=1e-10)


def as_torch(value):
    if isinstance(value, list):
        return [as_torch(v) for v in value]
    return torch.tensor(np.array(value.numpy())) if isinstance(value, dptrain.Tensor) else value


def test_state_goes_from_pytorch_to_us_and_back():
    options = {"max_iter": 3, "line_search_fn": "strong_wolfe"}
    ours, theirs = Fit(dptrain, **options), Fit(torch, **options)
    for _ in range(2):
        theirs.step()
    for p, q in zip(ours.params, theirs.params, strict=True):
        p.data = dptrain.tensor(q.detach().numpy().copy())
    ours.optimizer.load_state_dict(theirs.optimizer.state_dict())
    for _ in range(2):
        assert ours.step() == pytest.approx(theirs.step(), rel=1e-10)
    saved = ours.optimizer.state_dict()
    saved["state"] = {
        0: {k: as_torch(v) for k, v in saved["state"][0].items()},
    }
    theirs.optimizer.load_state_dict(saved)
    for _ in range(2):
        assert ours.step() == pytest.approx(theirs.step(), rel=1e-10)
    assert repr(ours.optimizer) == repr(theirs.optimizer)


def test_default_options_are_those_of_pytorch():
    a, b = Fit(dptrain).optimizer, Fit(torch).optimizer
    assert a.defaults == b.defaults
    assert list(a.defaults) == list(b.defaults)
    assert repr(a) == repr(b)


def test_float32_reaches_the_same_minimum():
    losses = []
    for lib in (dptrain, torch):
        p = lib.nn.Parameter(lib.tensor([3.0, -2.0]))
        o = lib.optim.LBFGS([p], line_search_fn="strong_wolfe")

        def closure(p=p, o=o):
            o.zero_grad()
            loss = ((1 - p[0]) ** 2 + 100 * (p[1] - p[0] ** 2) ** 2).sum()
            loss.backward()
            return loss

        for _ in range(8):
            o.step(closure)
        losses.append(closure().item())
        assert str(p.dtype).endswith("float32")
    assert max(losses) < 1e-6


def test_gradient_that_is_small_enough_ends_the_step():
    p = dptrain.nn.Parameter(dptrain.zeros(2))
    o = optim.LBFGS([p])

    def closure():
        o.zero_grad()
        loss = (p * p).sum()
        loss.backward()
        return loss

    assert o.step(closure).item() == 0
    assert o.state[p] == {"func_evals": 1, "n_iter": 0}
