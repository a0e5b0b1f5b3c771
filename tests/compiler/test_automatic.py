"""Modules that are replayed by themselves: nobody can tell, but by the time it takes."""

import copy
import dataclasses
import gc
import pickle
import threading
import time
import weakref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from training import F, batches, classes, nn, normal, state

import dptrain
from dptrain.compiler import automatic, explain
from dptrain.compiler.plainness import why_not_plain
from dptrain.core.flat import place_of
from dptrain.nn import replays

#: Calls ahead of the first replay: some before the module is looked at, one of the kind, two recordings.
AHEAD = 7


@pytest.fixture(autouse=True)
def on(monkeypatch):
    monkeypatch.setattr(replays.state, "enabled", True)


class Net(nn.Module):
    """What users write."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.2)
        self.layers = nn.ModuleList([nn.Linear(36, 36) for _ in range(2)])
        self.head = nn.Linear(36, 3)
        self.scale = 0.5

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.norm(self.conv(x))), 2)
        x = dptrain.flatten(x, 1)
        for layer in self.layers:
            x = x + self.scale * dptrain.tanh(layer(self.drop(x)))
        n, width = x.shape
        return self.head(x.view(n, width))


IMAGES = normal(5, 1, 8, 8)


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


def sequential():
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, 16),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.BatchNorm1d(16),
        nn.Linear(16, 3),
    )


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
    ],
)
def test_what_changes_on_the_way_is_seen(change, monkeypatch):
    monkeypatch.setattr(Net, "forward", Net.forward)  # put back afterwards
    original = Net.forward
    data = batches(14, IMAGES, classes(3, 5))
    results = []
    for enabled in (False, True):
        Net.forward = original
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


def ready(make=Net, count=AHEAD, shape=(5, 1, 8, 8)):
    """A model whose next call is replayed, and an argument for it."""
    dptrain.manual_seed(0)
    model = make()
    x = dptrain.from_numpy(normal(*shape)(np.random.default_rng(0)))
    for _ in range(count):
        model(x).sum().backward()
    model.zero_grad()
    return model, x


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


# ---- what makes a module run as it is ---------------------------------------------------------------

COUNT = [0]
SEEN = {}
TOTAL = 0


def helper(x):
    COUNT[0] += 1
    return x


class Base(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.calls = 0
        self.log, self.table, self.kept = [], {"x": 0}, set()


class Prints(Base):
    def forward(self, x):
        print("here")
        return self.layer(x)


class Counts(Base):
    def forward(self, x):
        self.calls += 1
        return self.layer(x)


class CountsInAGlobal(Base):
    def forward(self, x):
        global TOTAL
        TOTAL += 1
        return self.layer(x)


class CountsElsewhere(Base):
    def forward(self, x):
        return self.layer(helper(x))


class CountsInAMethod(Base):
    def forward(self, x):
        return self.layer(self.note(x))

    def note(self, x):
        self.table["x"] += 1
        return x


class CountsInAProperty(Base):
    @property
    def width(self):
        self.calls += 1
        return 2

    def forward(self, x):
        return self.layer(x.view(-1, self.width))


class Keeps(Base):
    def forward(self, x):
        self.last = x
        return self.layer(x)


class KeepsInAGlobal(Base):
    def forward(self, x):
        SEEN.update(x=x)
        return self.layer(x)


class KeepsInASet(Base):
    def forward(self, x):
        self.kept.add(x)
        return self.layer(x)


class ReadsAClock(Base):
    def forward(self, x):
        return self.layer(x) * (1 + 0 * time.time())


class ReadsAValue(Base):
    def forward(self, x):
        return self.layer(x) / x.abs().max().item()


class Imports(Base):
    def forward(self, x):
        import math

        return self.layer(x) * math.pi


class Hooks(Base):
    def forward(self, x):
        h = self.layer(x)
        h.register_hook(lambda g: g * 2)
        return h


class Catches(Base):
    def forward(self, x):
        try:
            return self.layer(x)
        except RuntimeError:
            return x


class CallsItself(Base):
    def __call__(self, x):
        self.calls += 1
        return super().__call__(x)

    def forward(self, x):
        return self.layer(x)


class MakesUp(Base):
    def __getattr__(self, name):
        if name == "magic":
            self.calls += 1
            return 2
        return super().__getattr__(name)

    def forward(self, x):
        return self.magic * self.layer(x)


class Inside(Base):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(Counts(), nn.ReLU())

    def forward(self, x):
        return self.inner(x)


class AClassOfTheUser:
    def __init__(self, x):
        COUNT[0] += 1


class Constructs(Base):
    def forward(self, x):
        AClassOfTheUser(x)
        return self.layer(x)


class Subclass(nn.TransformerEncoderLayer):
    """A layer of ours of which a part was replaced."""

    calls = 0

    def _ff_block(self, x):
        type(self).calls += 1
        return super()._ff_block(x)


@pytest.mark.parametrize(
    "kind",
    [
        *(
            Prints,
            Counts,
            CountsInAGlobal,
            CountsElsewhere,
            CountsInAMethod,
            CountsInAProperty,
            Keeps,
        ),
        *(
            KeepsInAGlobal,
            KeepsInASet,
            ReadsAClock,
            ReadsAValue,
            Imports,
            Hooks,
            Catches,
            CallsItself,
        ),
        *(MakesUp, Inside, Constructs),
    ],
)
def test_code_that_does_more_than_compute(kind):
    assert why_not_plain(kind()) is not None


def test_code_that_does_more_than_compute_runs_every_time(capsys):
    x = dptrain.ones(3, 2)
    for kind in (Prints, Counts, CountsElsewhere, Inside, CallsItself, Constructs):
        model = kind()
        COUNT[0] = 0
        for _ in range(AHEAD + 5):
            model(x).sum().backward()
        inner = model.inner[0] if kind is Inside else model
        printed = capsys.readouterr().out.count("here")
        assert inner.calls + COUNT[0] + printed == AHEAD + 5, kind
        assert explain(model).replays == 0


class Plain(Base):
    """What stays within computing: comprehensions, messages of errors, branches on shapes and modes."""

    def forward(self, x, *rest, scale=1.0):
        if x.dim() != 2 or not all(r.shape == x.shape for r in rest):
            raise ValueError(f"expected two dimensions, got {tuple(x.shape)}")
        parts = [self.layer(x) * scale for _ in range(2)]
        parts.append(dptrain.sin(x) if self.training else x)
        total = sum(p.mean(dim=1, keepdim=True) for p in parts)
        names = {"a": total, "b": total + 1}
        return dptrain.cat([v for k, v in names.items() if k != "c"], dim=-1)[:, :2] @ self.square(
            x.size(1)
        )

    def square(self, n):
        return dptrain.eye(n) * super().extra_repr().count("x") + dptrain.ones(n, n)


def test_code_that_computes_only():
    assert why_not_plain(Plain()) is None
    model, x = Plain(), dptrain.ones(3, 2)
    for _ in range(AHEAD + 1):
        model(x, x, scale=2.0).sum().backward()
    assert explain(model).replays == 1
    with pytest.raises(ValueError, match="two dimensions"):
        model(x, dptrain.ones(1))


def test_a_part_of_a_layer_that_was_replaced_is_read():
    assert why_not_plain(nn.TransformerEncoderLayer(4, 2, 8)) is None
    assert why_not_plain(Subclass(4, 2, 8)) is not None


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


# ---- several results --------------------------------------------------------------------------------


class LanguageModel(nn.Module):
    """Returns logits and, given targets, the loss, as small language models are often written."""

    def __init__(self):
        super().__init__()
        self.parts = nn.ModuleDict({"rows": nn.Embedding(7, 4), "drop": nn.Dropout(0.1)})
        self.head = nn.Linear(4, 7, bias=False)
        self.config = Config()

    def forward(self, idx, targets=None):
        _, length = idx.size()
        if length > self.config.length:
            raise ValueError(f"{length} is too long")
        at = dptrain.arange(0, length, dtype=dptrain.long, device=idx.device)
        logits = self.head(self.parts.drop(self.parts.rows(idx) + self.parts.rows(at)))
        loss = None
        if targets is not None:
            loss = F.cross_entropy(
                logits.view(-1, logits.size(-1)), targets.view(-1), ignore_index=-1
            )
        return logits, loss


@dataclasses.dataclass
class Config:
    length: int = 5


class Autoencoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.down, self.up = nn.Linear(6, 4), nn.Linear(2, 6)

    def forward(self, x):
        mean, log_variance = self.down(x).chunk(2, dim=1)
        code = mean + dptrain.randn_like(mean) * dptrain.exp(log_variance / 2)
        return dptrain.sigmoid(self.up(code)), mean, log_variance


def trained(make, arguments, losses):
    """What a model and its gradients are after a call and a backward pass for each of the losses."""
    results = []
    for enabled in (False, True):
        replays.state.enabled = enabled
        dptrain.manual_seed(0)
        model = make()
        optimizer = dptrain.optim.SGD(model.parameters(), lr=0.1)
        seen = []
        for loss in losses:
            optimizer.zero_grad()
            out = model(*arguments)
            value = loss(*out)
            value.backward()
            seen += [
                value.item(),
                [None if p.grad is None else p.grad.tolist() for p in model.parameters()],
            ]
            optimizer.step()
        results.append([seen, state(model), dptrain.rand(2).tolist()])
    assert results[1] == results[0]
    return explain(model)


TOKENS = dptrain.from_numpy(np.random.default_rng(0).integers(0, 7, (3, 5)))


def test_a_loss_among_the_results():
    report = trained(LanguageModel, (TOKENS, TOKENS), [lambda logits, loss: loss] * 12)
    assert report.replays == 12 - AHEAD


def test_several_results_that_the_loss_is_made_of():
    x = dptrain.from_numpy(normal(4, 6)(np.random.default_rng(0)))

    def loss(out, mean, log_variance):
        kl = 0.5 * (mean**2 + log_variance.exp() - log_variance - 1).sum()
        return F.mse_loss(out, x, reduction="sum") + kl

    assert trained(Autoencoder, (x,), [loss] * 12).replays == 12 - AHEAD


@pytest.mark.parametrize(
    "other",
    [
        lambda logits, loss: logits.sum(),
        lambda logits, loss: loss + logits.square().mean(),
    ],
)
def test_other_results_are_differentiated_than_was_expected(other):
    calls = [lambda logits, loss: loss] * (AHEAD + 2) + [other] * 2
    report = trained(LanguageModel, (TOKENS, TOKENS), calls)
    assert "other results" in str(report)
