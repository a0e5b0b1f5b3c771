"""`make_graphed_callables` without a GPU: what is recorded, and what a replayed call gives.

A "graph" here is the work itself, run again over the same arrays: it reads the inputs where the recording
read them and writes its results where the recording wrote them, as a CUDA graph does.
"""

import numpy as np
import pytest

import dptrain
from dptrain import nn
from dptrain.cuda import graphed


class Again:
    """In the place of a CUDA graph."""

    def __init__(self, work):
        self.work, self.replays = work, 0
        self.results = self._flat(work())

    def _flat(self, found):
        outs = found[0] if isinstance(found[0], tuple) else found
        return [None if t is None else t._array for t in outs]

    def replay(self):
        self.replays += 1
        with dptrain.enable_grad():
            for old, new in zip(self.results, self._flat(self.work()), strict=True):
                if old is not None:
                    np.copyto(old, new)


@pytest.fixture
def graphs(monkeypatch):
    made = []

    def record(pool, side, work):
        results = []

        def first():
            results.append(work())
            return results[-1]

        made.append(Again(first))
        return results[0], made[-1]

    def fresh_gradients(outputs, wanted, grads, allow_unused):
        """Of the forward pass as it is now: a graph holds no values of the recording."""
        for one in made:
            if any(r is outputs[0]._array for r in one.results):
                outputs = [t for t in one.work()[0] if t.requires_grad]
        return dptrain.autograd.grad(outputs, wanted, grads, allow_unused=allow_unused)

    monkeypatch.setattr(graphed, "gradients", fresh_gradients)
    monkeypatch.setattr(graphed, "_record", record)
    monkeypatch.setattr(graphed, "_warm_up", lambda *args: None)
    monkeypatch.setattr(graphed, "graph_pool_handle", lambda: None)
    monkeypatch.setattr(graphed, "Stream", lambda: None)
    return made


def net():
    dptrain.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))


def train(model, steps=3):
    optimizer = dptrain.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    stream, found = np.random.default_rng(1), []
    for _ in range(steps):
        x = dptrain.tensor(
            stream.standard_normal((3, 4)), dtype=dptrain.float32, requires_grad=True
        )
        optimizer.zero_grad()
        loss = (model(x) ** 2).sum()
        loss.backward()
        optimizer.step()
        found += [loss.item(), x.grad.numpy().copy()]
    return found + [p.detach().numpy().copy() for p in model.parameters()]


def test_a_graphed_module_trains_as_the_module(graphs):
    expected = train(net())
    sample = dptrain.zeros(3, 4, requires_grad=True)
    model = net()
    assert dptrain.cuda.make_graphed_callables(model, (sample,)) is model
    for a, b in zip(train(model), expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    assert [g.replays for g in graphs] == [3, 3]


def test_the_mode_that_was_not_recorded_runs_the_modules_own_forward(graphs):
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))
    model = dptrain.cuda.make_graphed_callables(model, (dptrain.zeros(3, 4),))
    model.eval()
    x = dptrain.randn(7, 4)
    assert dptrain.equal(model(x), nn.functional.linear(x, model[0].weight, model[0].bias))
    assert [g.replays for g in graphs] == [0, 0]
    model.train()
    model(dptrain.ones(3, 4))
    assert graphs[0].replays == 1


def test_functions_and_several_callables_with_several_results(graphs):
    def double(x, y):
        return x * y, (x > 0)

    first, second = dptrain.cuda.make_graphed_callables(
        (double, nn.Linear(3, 1)),
        (
            (dptrain.ones(2, 3, requires_grad=True), dptrain.ones(2, 3)),
            (dptrain.ones(2, 3, requires_grad=True),),
        ),
    )
    x, y = dptrain.randn(2, 3, requires_grad=True), dptrain.randn(2, 3)
    product, positive = first(x, y)
    assert dptrain.equal(product, x * y)
    assert dptrain.equal(positive, x > 0)
    second(product).sum().backward()
    wide = second.weight.detach().expand(2, 3)
    np.testing.assert_allclose(x.grad.numpy(), (wide * y).numpy(), rtol=1e-6)
    assert second.weight.grad.shape == (1, 3)
    # Gradients are the caller's own: the next replay does not change them.
    kept = second.weight.grad.clone()
    second(dptrain.randn(2, 3, requires_grad=True)).sum().backward()
    assert not dptrain.equal(second.weight.grad, kept)
    assert len(graphs) == 4


def test_bad_use(graphs):
    make = dptrain.cuda.make_graphed_callables
    with pytest.raises(TypeError, match="sample_args must be tensors, got int"):
        make(lambda x: x, (3,))
    hooked = nn.Linear(1, 1)
    hooked.register_forward_hook(lambda *args: None)
    with pytest.raises(RuntimeError, match="must not have hooks"):
        make(hooked, (dptrain.ones(1, 1),))
    trained = nn.Linear(1, 1)
    trained.register_buffer("b", dptrain.ones(1, requires_grad=True))
    with pytest.raises(RuntimeError, match="only parameters may be trainable"):
        make(trained, (dptrain.ones(1, 1),))
    with pytest.raises(ValueError, match="2 callables, but 1 tuples"):
        make((nn.Linear(1, 1), nn.Linear(1, 1)), ((dptrain.ones(1, 1),),))
    with pytest.raises(TypeError, match="results must be tensors, got Tensor, int"):
        make(lambda x: (x, 3), (dptrain.ones(1),))
    model = make(nn.Linear(4, 2), (dptrain.ones(3, 4),))
    with pytest.raises(RuntimeError, match=r"float32\[3, 4\]\), got \(dptrain.float32\[2, 4\]"):
        model(dptrain.ones(2, 4))


def test_without_a_gpu_it_says_so():
    if dptrain.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(RuntimeError, match="no CUDA device is available"):
        dptrain.cuda.make_graphed_callables(nn.Linear(1, 1), (dptrain.ones(1, 1),))
