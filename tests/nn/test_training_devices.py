"""Optimizers, clipping, recomputing and copies of modules on a virtual device: the bits of the first one, elsewhere."""

import copy
import pickle

import numpy as np
import pytest
from on_devices import leaves, moved, same_everywhere, weighted

import dptrain
from dptrain import nn, optim
from dptrain.nn import functional as F
from dptrain.utils.checkpoint import checkpoint

RNG = np.random.default_rng(5)
LINE = RNG.standard_normal((2, 4, 6)).astype(np.float32)
ROWS = RNG.standard_normal((5, 6)).astype(np.float32)
IMAGE = RNG.standard_normal((2, 4, 8, 6)).astype(np.float32)


@pytest.fixture(autouse=True)
def four_devices(host_devices):
    host_devices(4)


OPTIMIZERS = {
    "ASGD": {},
    "Adadelta": {"weight_decay": 0.1},
    "Adafactor": {},
    "Adagrad": {"lr_decay": 0.1},
    "Adam": {"amsgrad": True},
    "AdamW": {"maximize": True},
    "Adamax": {},
    "LBFGS": {"line_search_fn": "strong_wolfe"},
    "Muon": {},
    "NAdam": {},
    "RAdam": {"weight_decay": 0.1},
    "RMSprop": {"centered": True, "momentum": 0.5},
    "Rprop": {},
    "SGD": {"momentum": 0.9, "nesterov": True},
}


def test_every_optimizer_is_in_the_table():
    assert set(OPTIMIZERS) == set(optim.__all__) - {"Optimizer", "lr_scheduler", "swa_utils"}


def hosted(value):
    """What a checkpoint that was read on the host holds."""
    if isinstance(value, dptrain.Tensor):
        return value.detach().cpu()
    if isinstance(value, dict):
        return {k: hosted(v) for k, v in value.items()}
    return [hosted(v) for v in value] if isinstance(value, list) else value


def trained(name, place, foreach=None):
    """A small network after ten steps, and the state of its optimizer."""
    model = nn.Sequential(
        nn.Linear(6, 4, name != "Muon"), nn.Tanh(), nn.Linear(4, 3, name != "Muon")
    )
    model.to(place)
    options = dict(OPTIMIZERS[name])
    optimizer = getattr(optim, name)(model.parameters(), lr=0.05, **options)
    values, target = moved(ROWS, place).detach(), dptrain.arange(5, device=place) % 3

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(values), target)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        return loss

    for _ in range(10):
        loss = optimizer.step(closure)
    return model, optimizer, loss


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_stays_on_its_device(name):
    def run(place):
        model, optimizer, loss = trained(name, place)
        kept = [
            t for t in leaves(list(optimizer.state_dict()["state"].values())) if t.ndim
        ]  # steps are numbers of the host, as in PyTorch
        return [loss, *model.parameters(), *(p.grad for p in model.parameters()), *kept]

    same_everywhere(run)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_state_returns_to_the_device(name):
    def run(place):
        model, optimizer, _ = trained(name, place)
        states = hosted([model.state_dict(), optimizer.state_dict()])
        other, again, _ = trained(name, place)
        other.load_state_dict(states[0])
        again.load_state_dict(states[1])
        for p in other.parameters():
            p.grad = dptrain.ones_like(p)
        if name != "LBFGS":
            again.step()
        kept = [t for t in leaves(list(again.state_dict()["state"].values())) if t.ndim]
        return [*other.parameters(), *kept]

    same_everywhere(run)


@pytest.mark.parametrize("order", [1.0, 2.0, np.inf])
def test_gradients_are_clipped_where_they_are(order):
    def run(place):
        weights = [moved(x_, place) for x_ in (ROWS, LINE, np.zeros((0, 2), np.float32))]
        weighted([w * w for w in weights[:2]]).backward()
        weights[2].grad = weights[2].detach() * 0
        total = nn.utils.clip_grad_norm_(weights, 0.1, order)
        nn.utils.clip_grad_value_(weights[:1], 1e-3)
        return [total, *(w.grad for w in weights)]

    same_everywhere(run)


def test_a_norm_over_two_devices_is_one_number():
    weights = [moved(ROWS, "cpu:2"), moved(LINE, "cpu:1")]
    for w in weights:
        w.grad = w.detach().clone()
    found = nn.utils.clip_grad_norm_(weights, 1.0)
    assert str(found.device) == "cpu:2"
    assert float(found) == pytest.approx(np.sqrt((ROWS**2).sum() + (LINE**2).sum()), rel=1e-6)
    assert [str(w.grad.device) for w in weights] == ["cpu:2", "cpu:1"]


# ---- weights: vectors, segments, copies, states ---------------------------------------------------


def test_layers_and_vectors_of_parameters():
    def run(place):
        conv, norm = nn.Conv2d(4, 3, 3).to(place), nn.BatchNorm2d(3).to(place)
        image = moved(IMAGE, place).detach()
        for _ in range(2):
            norm(conv(image))
        conv.eval(), norm.eval()
        fused = nn.utils.fuse_conv_bn_eval(conv, norm)
        vector = nn.utils.parameters_to_vector(fused.parameters())
        nn.utils.vector_to_parameters(vector * 2, fused.parameters())
        averaged = optim.swa_utils.AveragedModel(conv)
        averaged.update_parameters(fused)
        shared = nn.Linear(3, 2).to(place).share_memory()
        assert all(p.is_shared() for p in shared.parameters())
        return [fused(image), vector, *averaged.parameters(), *shared.parameters()]

    same_everywhere(run)


@pytest.mark.parametrize("reentrant", [True, False])
def test_recomputed_segments_stay_on_their_device(reentrant):
    def run(place):
        layer = nn.Sequential(nn.Linear(6, 4), nn.Dropout(0.5)).to(place)
        values = moved(ROWS, place)
        seen = []
        layer[0].register_full_backward_hook(lambda m, gi, go: seen.extend([*gi, *go]))
        values.register_hook(lambda g: seen.append(g) or g * 2)
        out = checkpoint(layer, values, use_reentrant=reentrant)
        weighted([out]).backward()
        return [
            out,
            values.grad,
            *(p.grad for p in layer.parameters()),
            *(s for s in seen if s is not None),
        ]

    same_everywhere(run)


def test_copies_of_modules_stay_on_their_device():
    def run(place):
        layer = nn.Sequential(nn.LazyLinear(3), nn.BatchNorm1d(3)).to(place)
        lazy = copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))
        outs = []
        for module in (layer, *lazy):
            dptrain.manual_seed(1)
            outs.append(module(moved(ROWS, place)))
        again = pickle.loads(pickle.dumps(layer))
        return [*outs, *again.state_dict().values(), *copy.deepcopy(layer).state_dict().values()]

    same_everywhere(run)


def test_a_state_of_another_device_is_copied_into_place():
    source = nn.BatchNorm1d(3).to("cpu:1")
    source(moved(ROWS[:4, :3], "cpu:1"))
    target = nn.BatchNorm1d(3).to("cpu:3")
    target.load_state_dict(source.state_dict())
    for a, b in zip(source.state_dict().values(), target.state_dict().values(), strict=True):
        assert str(b.device) == "cpu:3"
        np.testing.assert_array_equal(a.numpy(force=True), b.numpy(force=True))


def test_to_empty_and_device_argument():
    layer = nn.Conv2d(2, 3, 3, device="cpu:1")
    assert {str(p.device) for p in layer.parameters()} == {"cpu:1"}
    assert {str(p.device) for p in layer.to_empty(device="cpu:2").parameters()} == {"cpu:2"}
    assert {str(p.device) for p in layer.cpu().parameters()} == {"cpu:0"}
    with dptrain.device("cpu:3"):
        assert {str(t.device) for t in nn.LSTM(2, 3).parameters()} == {"cpu:3"}
