"""Compiled training steps: the bits of the plain ones, for models, optimizers and schedules of all kinds."""

import gc
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from training import F, assert_same, batches, classes, classifier_step, nn, normal

import dptrain

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import models


@pytest.mark.parametrize("name", ["mlp", "lenet", "resnet20", "gpt", "video", "audio"])
def test_benchmark_models(name):
    shape, count = models.SAMPLES[name]
    inputs = classes(count, 2, *shape) if name == "gpt" else normal(4, *shape)
    targets = classes(count, 2 * shape[0]) if name == "gpt" else classes(count, 4)

    def make():
        model = models.build(dptrain, name)
        optimizer = dptrain.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        return model, classifier_step(model, optimizer)

    assert_same(make, batches(5, inputs, targets))


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.table = nn.Embedding(11, 6)
        self.cells = kind(6, 5, num_layers=2, dropout=0.3, batch_first=True)
        self.head = nn.Linear(5, 3)

    def forward(self, x):
        out, _ = self.cells(self.table(x))
        return self.head(out[:, -1])


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.2, batch_first=True)
        self.blocks = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.blocks(x).mean(1))


def _convolutional():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout2d(0.4),
        nn.MaxPool2d(2), nn.Conv2d(4, 4, 3, groups=2), nn.GroupNorm(2, 4), nn.GELU(), nn.AvgPool2d(2),
        nn.Flatten(), nn.Linear(4, 6), nn.LayerNorm(6), nn.Tanh(), nn.Dropout(0.2), nn.Linear(6, 3),
    )  # fmt: skip


SMALL = {
    "convolutional": (_convolutional, normal(4, 2, 8, 8)),
    "lstm": (lambda: Recurrent(nn.LSTM), classes(11, 4, 7)),
    "gru": (lambda: Recurrent(nn.GRU), classes(11, 4, 7)),
    "transformer": (Encoder, normal(4, 5, 8)),
}


@pytest.mark.parametrize("name", SMALL)
def test_layers_with_random_numbers_and_averages(name):
    build, inputs = SMALL[name]

    def make():
        model = build()
        return model, classifier_step(model, dptrain.optim.AdamW(model.parameters(), lr=0.01))

    assert_same(make, batches(7, inputs, classes(3, 4)))


def _mlp():
    return nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 3))


OPTIMIZERS = {
    "SGD": {"lr": 0.1},
    "momentum": {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
    "Adam": {"amsgrad": True},
    "AdamW": {},
    "Adagrad": {},
    "Adadelta": {},
    "Adamax": {},
    "ASGD": {},
    "NAdam": {},
    "RAdam": {},
    "RMSprop": {"momentum": 0.5, "centered": True},
    "Rprop": {},
    "Adafactor": {},
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers(name):
    kind = getattr(dptrain.optim, "SGD" if name == "momentum" else name)

    def make():
        model = _mlp()
        return model, classifier_step(model, kind(model.parameters(), **OPTIMIZERS[name]))

    assert_same(make, batches(12, normal(5, 6), classes(3, 5)))


SCHEDULES = {
    "StepLR": {"step_size": 2, "gamma": 0.5},
    "CosineAnnealingLR": {"T_max": 5},
    "OneCycleLR": {"max_lr": 0.2, "total_steps": 20},
    "ExponentialLR": {"gamma": 0.8},
}


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules(name, inside):
    def make():
        model = _mlp()
        optimizer = dptrain.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        schedule = getattr(dptrain.optim.lr_scheduler, name)(optimizer, **SCHEDULES[name])
        plain = classifier_step(model, optimizer)

        def step(x, y):
            loss = plain(x, y)
            schedule.step()
            return loss

        return model, step

    def make_outside():
        model = _mlp()
        optimizer = dptrain.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        schedules.append(getattr(dptrain.optim.lr_scheduler, name)(optimizer, **SCHEDULES[name]))
        return model, classifier_step(model, optimizer)

    data = batches(12, normal(5, 6), classes(3, 5))
    if inside:
        assert_same(make, data)
        return
    schedules, trained = [], []
    for compiled in (False, True):
        dptrain.manual_seed(0)
        model, step = make_outside()
        step = dptrain.compile(step) if compiled else step
        for batch in data:
            step(*batch)
            schedules[-1].step()
        trained.append([p.detach().numpy().tobytes() for p in model.parameters()])
    assert trained[0] == trained[1]
    assert dptrain.compiler.explain(step).replays == 9


def test_clipping_and_loss_scaling():
    def make():
        model = _mlp()
        optimizer = dptrain.optim.SGD(model.parameters(), lr=0.5)
        scaler = dptrain.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=3)

        def step(x, y):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            scaler.step(optimizer)
            scaler.update()
            return loss

        return model, step

    assert_same(make, batches(10, normal(5, 6), classes(3, 5)))


def test_autocast_inside():
    def make():
        model = _mlp()
        optimizer = dptrain.optim.SGD(model.parameters(), lr=0.1)

        def step(x, y):
            optimizer.zero_grad()
            with dptrain.autocast("cpu", dptrain.bfloat16):
                loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            return loss

        return model, step

    assert_same(make, batches(6, normal(5, 6), classes(3, 5)))


def test_gradients_accumulate_within_and_across_calls():
    def make():
        model = _mlp()
        optimizer = dptrain.optim.SGD(model.parameters(), lr=0.1)

        def step(x, y, last):
            loss = F.cross_entropy(model(x), y)
            loss.backward(retain_graph=True)
            loss.backward()
            if last:
                optimizer.step()
                optimizer.zero_grad(set_to_none=False)
            return loss

        return model, step

    data = [(x, y, i % 3 == 2) for i, (x, y) in enumerate(batches(18, normal(5, 6), classes(3, 5)))]
    assert_same(make, data, replays=12)


def test_two_networks_and_their_optimizers():
    def make():
        maker, judge = nn.Linear(3, 6), nn.Sequential(nn.Linear(6, 1), nn.Sigmoid())
        first = dptrain.optim.Adam(maker.parameters(), lr=0.01)
        second = dptrain.optim.Adam(judge.parameters(), lr=0.01)

        def step(noise, real):
            second.zero_grad()
            made = maker(noise)
            loss = F.binary_cross_entropy(judge(real), dptrain.ones(5, 1)) + F.binary_cross_entropy(
                judge(made.detach()), dptrain.zeros(5, 1)
            )
            loss.backward()
            second.step()
            first.zero_grad()
            F.binary_cross_entropy(judge(made), dptrain.ones(5, 1)).backward()
            first.step()
            return loss

        return nn.ModuleList([maker, judge]), step

    assert_same(make, batches(8, normal(5, 3), normal(5, 6)))


def test_threads(monkeypatch):
    before = dptrain.get_num_threads()
    try:
        dptrain.set_num_threads(2)
        test_benchmark_models("lenet")
    finally:
        dptrain.set_num_threads(before)


def test_memory_does_not_grow():
    model = _mlp()
    step = dptrain.compile(
        classifier_step(model, dptrain.optim.Adam(model.parameters())), fullgraph=True
    )
    x, y = batches(1, normal(256, 6), classes(3, 256))[0]
    for _ in range(5):
        step(x, y)
    tracemalloc.start()
    step(x, y)
    gc.collect()
    before = tracemalloc.get_traced_memory()[0]
    for _ in range(200):
        step(x, y)
    gc.collect()
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 10_000


def test_a_step_without_arguments_reads_tensors_in_its_reach():
    x, y = batches(1, normal(5, 6), classes(3, 5))[0]

    def make():
        model = _mlp()
        plain = classifier_step(model, dptrain.optim.SGD(model.parameters(), lr=0.1))
        return model, lambda: plain(x, y)

    assert_same(make, [()] * 6)


def test_results_are_the_callers_own():
    model = _mlp()
    step = dptrain.compile(classifier_step(model, dptrain.optim.SGD(model.parameters(), lr=0.1)))
    data = batches(6, normal(5, 6), classes(3, 5))
    losses = [step(*batch) for batch in data]
    assert len({loss.item() for loss in losses}) == len(losses)
    assert all(loss.requires_grad for loss in losses)
    with pytest.raises(RuntimeError, match="second time"):
        losses[-1].backward()
    assert np.isfinite(losses[0].item())
