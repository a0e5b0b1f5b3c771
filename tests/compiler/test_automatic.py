"""Modules that are replayed by themselves: nobody can tell, but by the time it takes."""

import copy
import gc
import pickle
import threading
import weakref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from replayed import AHEAD, IMAGES, Net, ready, sequential
from training import F, batches, classes, nn, normal, state

import dptrain
from dptrain.compiler import automatic, explain
from dptrain.core.flat import place_of
from dptrain.nn import replays


def train(make, data, enabled, change=lambda i, model, optimizer: None, **options):
    """Losses, gradients, parameters, buffers and the next random numbers of a training."""
    replays.state.enabled = enabled
    dptrain.manual_seed(0)
    model = make()
    optimizer = dptrain.optim.Adam(model.parameters(), lr=0.01, **options)
    seen = []
    for i, (x, y) in enumerate(data):
        change(i, model, optimizer)
        optimizer.zero_grad()
        out = model(x)
        loss = F.cross_entropy(out, y)
        loss.backward()
        grads = [None if p.grad is None else p.grad.numpy().tobytes() for p in model.parameters()]
        seen += [out.detach().numpy().tobytes(), loss.item(), grads]
        optimizer.step()
    return [seen, state(model), dptrain.rand(3).numpy().tobytes()], model


def assert_same(make, data, change=lambda i, model, optimizer: None, replayed=None):
    """The same bits with and without replays; how many there were."""
    plain, _ = train(make, data, False, change)
    mine, model = train(make, data, True, change)
    assert mine == plain
    report = explain(model)
    assert report.replays == (len(data) - AHEAD if replayed is None else replayed), report
    return model


@pytest.mark.parametrize("make", [Net, sequential])
def test_a_training_has_the_bits_of_the_plain_one(make):
    assert_same(make, batches(12, IMAGES, classes(3, 5)))


def test_a_last_smaller_batch_runs_as_it_is():
    data = batches(9, IMAGES, classes(3, 5)) + batches(1, normal(2, 1, 8, 8), classes(3, 2))
    assert_same(Net, data * 2, replayed=18 - AHEAD)


@pytest.mark.parametrize(
    "change",
    [
        lambda model, optimizer: setattr(model, "scale", 0.25),
        lambda model, optimizer: setattr(model.drop, "p", 0.5),
        lambda model, optimizer: model.eval(),
        lambda model, optimizer: model.conv.weight.requires_grad_(False),
        lambda model, optimizer: setattr(model, "head", nn.Linear(36, 3)),
        lambda model, optimizer: model.layers.append(nn.Linear(36, 36)),
        lambda model, optimizer: model.load_state_dict(copy.deepcopy(model.state_dict())),
        lambda model, optimizer: setattr(model.head.weight, "data", model.head.weight.data * 2),
        lambda model, optimizer: model.head.register_forward_hook(lambda m, a, out: out * 2),
        lambda model, optimizer: model.register_forward_hook(lambda m, a, out: out * 2),
        lambda model, optimizer: setattr(model, "forward", lambda x: Net.forward(model, x) * 2),
        lambda model, optimizer: optimizer.param_groups[0].update(lr=0.1),
        lambda model, optimizer: model.head.weight.register_hook(lambda g: g * 2),
        lambda model, optimizer: setattr(Net, "forward", _other_forward),
        lambda model, optimizer: setattr(Net.forward, "__code__", _other_forward.__code__),
    ],
)
def test_what_changes_on_the_way_is_seen(change, monkeypatch):
    original, code = Net.forward, Net.forward.__code__
    monkeypatch.setattr(Net, "forward", original)  # put back afterwards
    monkeypatch.setattr(original, "__code__", code)
    data = batches(14, IMAGES, classes(3, 5))
    results = []
    for enabled in (False, True):
        Net.forward, original.__code__ = original, code
        at_ten = lambda i, model, optimizer: change(model, optimizer) if i == 10 else None  # noqa: E731
        result, model = train(Net, data, enabled, at_ten)
        results.append(result)
    assert results[1] == results[0]
    assert (
        explain(model).replays >= 3
        or "hooks" in str(explain(model))
        or "call of its own" in str(explain(model))
    )


def _other_forward(self, x):
    x = F.max_pool2d(F.relu(self.norm(self.conv(x))), 2)
    return self.head(dptrain.flatten(x, 1) * self.scale)


def test_what_the_caller_keeps_stays_as_it_is():
    model, x = ready()
    outputs, grads = [], []
    for _ in range(3):
        model.zero_grad()
        out = model(x)
        out.sum().backward()
        outputs.append((out, out.detach().numpy().tobytes()))
        grads.append((model.head.weight.grad, model.head.weight.grad.numpy().tobytes()))
    assert explain(model).replays == 3
    assert all(kept.detach().numpy().tobytes() == was for kept, was in outputs + grads)


def test_gradients_that_are_held_keep_their_values_beside_an_optimizer():
    model, x = ready(sequential)
    optimizer = dptrain.optim.SGD(model.parameters(), lr=0.1)
    held = []
    for _ in range(12):
        optimizer.zero_grad()
        model(x).pow(2).sum().backward()
        grads = [p.grad for p in model.parameters()]
        held.append((grads, [g.numpy().tobytes() for g in grads]))
        optimizer.step()
    for grads, were in held:
        assert [g.numpy().tobytes() for g in grads] == were


def test_two_calls_before_their_backward_passes():
    model, x = ready()
    model.eval()
    for _ in range(AHEAD):
        model(x).sum().backward()
    model.zero_grad()
    a, b = model(x), model(2 * x)
    (a.sum() + (b * b).sum()).backward()
    mine = [p.grad.numpy().copy() for p in model.parameters()]
    replays.state.enabled = False
    model.zero_grad()
    a, b = model(x), model(2 * x)
    (a.sum() + (b * b).sum()).backward()
    for p, g in zip(model.parameters(), mine, strict=True):
        np.testing.assert_array_equal(p.grad.numpy(), g)


def test_gradients_add_up_and_may_be_asked_for_twice():
    model, x = ready(sequential, shape=(5, 64))
    model.eval()
    for _ in range(AHEAD):
        model(x).sum().backward()
    before = explain(model).replays
    model.zero_grad()
    out = model(x).sum()
    out.backward(retain_graph=True)
    once = [p.grad.numpy().copy() for p in model.parameters()]
    out.backward()
    for p, g in zip(model.parameters(), once, strict=True):
        np.testing.assert_array_equal(p.grad.numpy(), 2 * g)
    with pytest.raises(RuntimeError, match="a second time"):
        out.backward()
    model.zero_grad(set_to_none=False)
    model(x).sum().backward()
    for p, g in zip(model.parameters(), once, strict=True):
        np.testing.assert_array_equal(p.grad.numpy(), g)
    assert explain(model).replays == before + 2


def penalty(model, x):
    """The gradients of a loss that holds the gradient by the input (Gulrajani et al., 2017)."""
    x = x.clone().requires_grad_()
    (g,) = dptrain.autograd.grad(model(x).sum(), x, create_graph=True)
    loss = ((g.flatten(1).norm(2, dim=1) - 1) ** 2).mean()
    model.zero_grad()
    loss.backward()
    return [None if p.grad is None else p.grad.numpy().tobytes() for p in model.parameters()]


@pytest.mark.parametrize("make", [Net, sequential])
@pytest.mark.parametrize("calls", [AHEAD, AHEAD - 1])
def test_a_second_derivative_is_that_of_the_plain_call(make, calls):
    results = []
    for enabled in (False, True):
        replays.state.enabled = enabled
        dptrain.manual_seed(0)
        model = make()
        x = dptrain.from_numpy(IMAGES(np.random.default_rng(0)))
        for _ in range(calls):  # a call of a recording, or a replay, is the next
            model(x.clone().requires_grad_()).sum().backward()
        model.zero_grad()
        first = penalty(model, x)
        second = penalty(model, x)
        results.append([first, second, state(model), dptrain.rand(2).tolist()])
    assert results[1] == results[0]
    assert "differentiated twice" in str(explain(model))


def test_a_second_derivative_of_a_module_that_has_changed_is_no_wrong_number():
    model, x = ready()
    x = x.clone().requires_grad_()
    for _ in range(AHEAD):
        model(x).sum().backward()
    before = explain(model).replays
    out = model(x)
    assert explain(model).replays == before + 1
    model.eval()
    with pytest.raises(RuntimeError, match="Net was changed"):
        dptrain.autograd.grad(out.sum(), x, create_graph=True)
    model.train()
    assert dptrain.autograd.grad(out.sum(), x, create_graph=True)[0].grad_fn is not None


def test_a_parameter_that_changed_before_backward_is_an_error():
    model, x = ready()
    loss = model(x).sum()
    with dptrain.no_grad():
        model.head.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


class Embedded(nn.Module):
    def __init__(self):
        super().__init__()
        self.rows = nn.Embedding(5, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.rows(x))


def test_a_failure_is_told_as_ever():
    model, good = Embedded(), dptrain.tensor([0, 4])
    bad = dptrain.tensor([0, 7])
    messages = []
    for _ in range(2):
        with pytest.raises(IndexError) as caught:
            model(bad)
        messages.append(str(caught.value))
        for _ in range(AHEAD + 1):
            model(good).sum().backward()
    assert explain(model).replays > 0
    assert messages[0] == messages[1]


def test_copies_and_files_hold_no_recordings():
    model, x = ready(sequential, shape=(5, 64))
    assert explain(model).recordings == 1
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert explain(other).recordings == 0
        model.eval(), other.eval()
        assert other(x).detach().numpy().tobytes() == model(x).detach().numpy().tobytes()
        model.train()


def test_another_module_with_the_attributes_of_this_one_is_another_module():
    model, x = ready(sequential, shape=(5, 64))
    model.eval()
    other = nn.Sequential.__new__(nn.Sequential)
    other.__dict__.update(model.__dict__)
    other._modules = {**model._modules, "5": nn.Linear(16, 1)}
    assert model(x).shape == (5, 3)
    assert other(x).shape == (5, 1)


def test_a_module_that_nobody_needs_goes_with_its_recordings():
    model, _ = ready()
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_other_threads_run_as_it_is():
    model, x = ready()
    before = explain(model).replays
    runs = [threading.Thread(target=lambda: model(x)) for _ in range(3)]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    assert explain(model).replays == before
    model(x)
    assert explain(model).replays == before + 1


def test_an_optimizer_that_comes_late():
    def run(enabled):
        replays.state.enabled = enabled
        model, x = ready(sequential, shape=(5, 64))
        optimizer = dptrain.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        assert all(place_of(p).storage.lies_here(p) for p in model.parameters())
        for _ in range(10):
            optimizer.zero_grad()
            model(x).pow(2).mean().backward()
            optimizer.step()
        return state(model)

    assert run(True) == run(False)


@settings(max_examples=15, deadline=None)
@given(
    st.lists(
        st.sampled_from(["step", "eval", "train", "peek", "accumulate", "freeze"]), max_size=25
    )
)
def test_whatever_happens_between_the_calls(actions):
    data = batches(1, IMAGES, classes(3, 5))[0]

    def run(enabled):
        replays.state.enabled = enabled
        dptrain.manual_seed(0)
        model = Net()
        optimizer = dptrain.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for action in ["step"] * AHEAD + actions + ["step"]:
            if action in ("eval", "train"):
                getattr(model, action)()
                continue
            if action == "freeze":
                model.conv.requires_grad_(not model.conv.weight.requires_grad)
                continue
            loss = F.cross_entropy(model(data[0]), data[1])
            if action == "peek":
                continue  # a graph that is never walked
            loss.backward()
            if action == "step":
                optimizer.step()
                optimizer.zero_grad()
        return state(model), [
            None if p.grad is None else p.grad.tolist() for p in model.parameters()
        ]

    assert run(True) == run(False)


class Large(nn.Module):
    """Many results."""

    def __init__(self, size):
        super().__init__()
        self.layer = nn.Linear(2, size)
        self.parts = nn.ModuleList([nn.ReLU()])

    def forward(self, x):
        return self.parts[0](self.layer(x)).sum(1)


def test_large_steps_and_many_recordings_run_as_they_are(monkeypatch):
    x = dptrain.ones(4, 2)

    def reason(size):
        model = Large(size)
        for _ in range(AHEAD + 1):
            model(x).sum().backward()
        return model, str(explain(model))

    monkeypatch.setattr(automatic, "_MOST_RESULTS", 1 << 16)
    assert "MiB" in reason(1 << 13)[1]
    small, text = reason(100)
    assert explain(small).replays == 1, text
    monkeypatch.setattr(automatic, "_MOST_GRADIENTS", 1000)
    assert "MiB" in reason(100)[1]
    monkeypatch.setattr(automatic, "_MOST_GRADIENTS", 10000)
    monkeypatch.setattr(automatic, "_MOST_BYTES", 5000)
    assert "beside" in reason(100)[1]


def test_the_switch(monkeypatch):
    monkeypatch.setattr(replays.state, "enabled", False)
    model, _ = ready(count=AHEAD + 3)
    assert explain(model).calls == 0


@pytest.mark.parametrize("change", ["nothing", "a part", "a forgotten graph"])
def test_calls_that_are_walked_back_together_run_as_they_are_but_for_the_first(change):
    def run(enabled):
        replays.state.enabled = enabled
        dptrain.manual_seed(0)
        model, seen = sequential(), []
        data = iter(batches(60, IMAGES, classes(3, 5)))
        for step in range(10):
            if step == 7 and change == "a part":
                model[1].weight.data = model[1].weight.data * 2
            model.zero_grad()
            losses = []
            for time in range(6):
                x, y = next(data)
                losses.append(F.cross_entropy(model(x), y))
                if change == "a forgotten graph" and time == 2:
                    losses.pop(), losses.clear()
            dptrain.stack(losses).sum().backward()
            seen += [loss.item() for loss in losses]
            seen += [p.grad.numpy().tobytes() for p in model.parameters()]
        return seen, model

    plain, _ = run(False)
    mine, model = run(True)
    assert mine == plain
    assert 6 <= explain(model).replays <= 60 - AHEAD
