"""Layers of every family in a model that is replayed by itself: the bits of the plain training."""

from importlib import import_module

import numpy as np
import pytest
from replayed import AHEAD
from training import F, nn, state

import dptrain
from dptrain.compiler import explain
from dptrain.nn import replays


class Recurrent(nn.Module):
    def __init__(self, kind, **options):
        super().__init__()
        self.cells = getattr(nn, kind)(6, 5, **options)
        self.head = nn.Linear(10 if options.get("bidirectional") else 5, 2)

    def forward(self, x):
        return self.head(self.cells(x)[0])


class Attends(nn.Module):
    def __init__(self):
        super().__init__()
        self.heads = nn.MultiheadAttention(8, 2, dropout=0.1, batch_first=True)

    def forward(self, x):
        return self.heads(x, x, x, need_weights=False)[0]


class Then(nn.Module):
    """A layer, and a function of what it gives."""

    def __init__(self, function):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(6, 6)])
        self.function = function

    def forward(self, x):
        return self.function(self.layers[0](x))


def images(*layers):
    return lambda: nn.Sequential(nn.Conv2d(3, 4, 1), *(make() for make in layers))


ROWS, SEQUENCES, IMAGES = (5, 6), (3, 4, 6), (4, 3, 8, 8)
CASES = {
    "convolution": (images(lambda: nn.Conv2d(4, 6, 3, stride=2, groups=2, dilation=2)), IMAGES),
    "transposed convolution": (images(lambda: nn.ConvTranspose2d(4, 3, 3, 2)), IMAGES),
    "one dimension": (
        lambda: nn.Sequential(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4), nn.MaxPool1d(2)),
        (4, 3, 9),
    ),
    "batch norm": (images(lambda: nn.BatchNorm2d(4), nn.ReLU), IMAGES),
    "instance norm": (
        images(lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True)),
        IMAGES,
    ),
    "group norm": (images(lambda: nn.GroupNorm(2, 4)), IMAGES),
    "maximum pool": (images(lambda: nn.MaxPool2d(2)), IMAGES),
    "average pool": (images(lambda: nn.AdaptiveAvgPool2d(3), nn.Flatten), IMAGES),
    "padding": (images(lambda: nn.ReflectionPad2d(1)), IMAGES),
    "upsampling": (images(lambda: nn.Upsample(scale_factor=2, mode="bilinear")), IMAGES),
    "dropped channels": (images(lambda: nn.Dropout2d(0.3)), IMAGES),
    "shuffled pixels": (images(lambda: nn.PixelShuffle(2), lambda: nn.PixelUnshuffle(2)), IMAGES),
    "layer norm": (lambda: nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.GELU()), ROWS),
    "random slopes": (lambda: nn.Sequential(nn.Linear(6, 8), nn.RReLU(), nn.PReLU()), ROWS),
    "embedding": (
        lambda: nn.Sequential(nn.Embedding(7, 4, padding_idx=0), nn.Linear(4, 3)),
        (5, 3),
    ),
    "LSTM": (lambda: Recurrent("LSTM", batch_first=True), SEQUENCES),
    "GRU": (lambda: Recurrent("GRU", num_layers=2, dropout=0.2, bidirectional=True), SEQUENCES),
    "attention": (Attends, (3, 4, 8)),
    "transformer": (
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2),
        (3, 4, 8),
    ),
}
FUNCTIONS = {
    "cumsum": lambda x: x.cumsum(1),
    "sort": lambda x: x.sort(1)[0],
    "where": lambda x: dptrain.where(x > 0, x, 0.1 * x),
    "einsum": lambda x: dptrain.einsum("ij,kj->ik", x, x),
    "std": lambda x: x.std(1),
    "max": lambda x: x.max(1)[0],
    "stack": lambda x: dptrain.stack([x, x * 2], 0),
    "index": lambda x: x[:, [0, 2, 1]],
    "in place": lambda x: x.mul(2).add_(1).relu_(),
    "attention": lambda x: F.scaled_dot_product_attention(x[None], x[None], x[None], dropout_p=0.1),
    "rand": lambda x: x + dptrain.rand_like(x),
    "bernoulli": lambda x: x * x.new_empty((5, 1)).bernoulli_(0.5),
    "normal": lambda x: x + dptrain.empty(5, 6).normal_(),
    "scatter": lambda x: dptrain.zeros(5, 6).scatter_add(1, dptrain.zeros(5, 6, dtype=dptrain.long), x),
    "split": lambda x: sum(x.split(2, 1)),
    "types": lambda x: x.to(dptrain.bfloat16).float() + x.double(),
    "svd": lambda x: dptrain.linalg.svdvals(x),
}  # fmt: skip
CASES |= {f"then {name}": (lambda f=f: Then(f), ROWS) for name, f in FUNCTIONS.items()}


def training(make, shape, enabled):
    """What eleven steps leave behind; the loss has dense gradients, and now and then one number for all."""
    replays.state.enabled = enabled
    dptrain.manual_seed(1)
    model, draws, seen = make(), np.random.default_rng(3), []
    optimizer = dptrain.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    for i in range(AHEAD + 4):
        x = (
            draws.integers(0, 7, shape)
            if shape == (5, 3)
            else draws.standard_normal(shape).astype(np.float32)
        )
        optimizer.zero_grad()
        out = model(dptrain.from_numpy(x))
        weights = dptrain.from_numpy(draws.standard_normal(tuple(out.shape))).to(out.dtype)
        (out.sum() if i % 3 == 0 else (out * weights).sum()).backward()
        seen += [
            out.detach().numpy().tobytes(),
            *(p.grad.numpy().tobytes() for p in model.parameters()),
        ]
        optimizer.step()
    return [seen, state(model), dptrain.rand(2).tolist()], explain(model)


@pytest.mark.parametrize("case", CASES)
def test_a_training_has_the_bits_of_the_plain_one(case):
    plain, _ = training(*CASES[case], False)
    mine, report = training(*CASES[case], True)
    assert mine == plain
    assert report.replays == 4, report


@pytest.mark.parametrize("case", CASES)
def test_a_recording_that_cannot_be_used_leaves_a_call_as_it_was(case, monkeypatch):
    plain, _ = training(*CASES[case], False)
    kind = import_module("dptrain.compiler.recorder")._Recorder
    finish = kind.finish

    def refuse(self, result):
        finish(self, result)
        self.trace.refuse("the test says so")

    monkeypatch.setattr(kind, "finish", refuse)
    mine, report = training(*CASES[case], True)
    assert mine == plain
    assert report.replays == 0
    assert "the test says so" in str(report)
