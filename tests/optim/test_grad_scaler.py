"""Loss scaling: PyTorch's scales, skipped steps and parameters, its errors, and one pass over flat storage."""

import copy
import pickle
from itertools import pairwise

import numpy as np
import pytest

import dptrain
from dptrain import amp, nn, optim
from dptrain.core import kernels
from dptrain.core.flat import adopt, gradients

SIZES = (8, 16, 4)


def weights(seed=0):
    draw = np.random.default_rng(seed).standard_normal
    return [
        0.3 * draw(shape).astype(np.float32) for a, b in pairwise(SIZES) for shape in ((b, a), (b,))
    ]


def mlp(L):
    net = L.nn.Sequential(L.nn.Linear(8, 16), L.nn.ReLU(), L.nn.Linear(16, 4))
    with L.no_grad():
        for p, values in zip(net.parameters(), weights(), strict=True):
            p.copy_(L.tensor(values))
    return net


def batches(L, count):
    draw = np.random.default_rng(1)
    for _ in range(count):
        yield (
            L.tensor(draw.standard_normal((6, 8)).astype(np.float32)),
            L.tensor(draw.integers(0, 4, 6)),
        )


def ready(scale=4.0, lr=1.0, **options):
    """A scaler that has scaled, and one parameter with a gradient."""
    p = nn.Parameter(dptrain.ones(3))
    optimizer = optim.SGD([p], lr=lr)
    scaler = amp.GradScaler("cpu", init_scale=scale, **options)
    scaler.scale(p.sum()).backward()
    return scaler, optimizer, p


# ---- against PyTorch -------------------------------------------------------------------------------


def one_optimizer(L, net):
    return [L.optim.AdamW(net.parameters(), lr=0.01)]


def two_optimizers(L, net):
    first, last = net[0], net[2]
    return [
        L.optim.SGD(first.parameters(), lr=0.1, momentum=0.9),
        L.optim.Adam([{"params": [last.weight]}, {"params": [last.bias], "lr": 0.05}], lr=0.01),
    ]


def train(L, make, clip, accumulate):
    net = mlp(L)
    optimizers = make(L, net)
    scaler = L.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=4)
    params = list(net.parameters())
    trace = []
    for i, (x, y) in enumerate(batches(L, 30)):
        loss = L.nn.functional.cross_entropy(net(x), y) / accumulate
        scaler.scale(loss).backward()
        if i in (2, 3, 11, 20):  # an infinite gradient, of the first layer or the last
            params[i % 4].grad.view(-1)[i % 3] = [np.inf, -np.inf, np.nan][i % 3]
        if (i + 1) % accumulate:
            continue
        before = [p.detach().clone() for p in params]
        for optimizer in optimizers:
            if clip:
                scaler.unscale_(optimizer)
                L.nn.utils.clip_grad_norm_(
                    [p for g in optimizer.param_groups for p in g["params"]], 0.5
                )
            scaler.step(optimizer)
        scaler.update()
        for optimizer in optimizers:
            optimizer.zero_grad()
        changed = [bool((a != b).any()) for a, b in zip(before, params, strict=True)]
        trace.append((changed, scaler.get_scale(), scaler.state_dict()))
    return trace, [p.detach().numpy() for p in params]


@pytest.mark.oracle
@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("make", [one_optimizer, two_optimizers])
def test_scales_skips_and_parameters_are_pytorchs(make, clip, accumulate):
    torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
    theirs, ours = (train(L, make, clip, accumulate) for L in (torch, dptrain))
    assert ours[0] == theirs[0]
    assert len({scale for _, scale, _ in ours[0]}) > 2
    for a, b in zip(ours[1], theirs[1], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


MISUSES = {
    "unscale twice": lambda L, s, o, p: (s.unscale_(o), s.unscale_(o)),
    "unscale after step": lambda L, s, o, p: (s.step(o), s.unscale_(o)),
    "step twice": lambda L, s, o, p: (s.step(o), s.step(o)),
    "step after update": lambda L, s, o, p: (s.step(o), s.update(), s.step(o)),
    "update at once": lambda L, s, o, p: s.update(),
    "update twice": lambda L, s, o, p: (s.step(o), s.update(), s.update()),
    "no gradients": lambda L, s, o, p: (o.zero_grad(), s.step(o)),
    "closure": lambda L, s, o, p: s.step(o, closure=lambda: 0),
    "nothing scaled": lambda L, s, o, p: L.amp.GradScaler("cpu").step(o),
    "unscale of nothing": lambda L, s, o, p: L.amp.GradScaler("cpu").unscale_(o),
    "update of nothing": lambda L, s, o, p: L.amp.GradScaler("cpu").update(),
    "scale of text": lambda L, s, o, p: s.scale([3]),
    "new scale": lambda L, s, o, p: s.update(32.0),
    "new scale tensor": lambda L, s, o, p: s.update(L.tensor(16.0)),
    "new scale of two": lambda L, s, o, p: s.update(L.tensor([16.0, 2.0])),
    "new scale with gradient": lambda L, s, o, p: s.update(L.tensor(16.0, requires_grad=True)),
    "empty state": lambda L, s, o, p: s.load_state_dict({}),
    "pickle in between": lambda L, s, o, p: (s.unscale_(o), pickle.dumps(s)),
    "value of step": lambda L, s, o, p: s.step(o),
    "infinite": lambda L, s, o, p: (p.grad.fill_(float("inf")), s.step(o), s.update()),
    "smallest": lambda L, s, o, p: (
        s.update(1e-45),
        s.scale(p.sum()).backward(),
        s.step(o),
        s.update(),
    ),
    "largest": lambda L, s, o, p: (
        s.set_growth_interval(1),
        s.update(3e38),
        p.grad.zero_(),
        s.step(o),
        s.update(),
    ),
}


@pytest.mark.oracle
@pytest.mark.parametrize("name", MISUSES)
def test_use_and_misuse_end_as_in_pytorch(name):
    torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
    outcomes = []
    for L in (torch, dptrain):
        p = L.nn.Parameter(L.ones(3))
        optimizer = L.optim.SGD([p], lr=1.0)
        scaler = L.amp.GradScaler("cpu", init_scale=4.0)
        scaler.scale(p.sum()).backward()
        try:
            MISUSES[name](L, scaler, optimizer, p)
            outcome = None
        except Exception as error:
            outcome = type(error)
        outcomes.append((outcome, scaler.get_scale(), p.tolist()))
    assert str(outcomes[0]) == str(outcomes[1])


@pytest.mark.oracle
def test_scaled_outputs_have_pytorchs_types_and_nesting():
    torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
    outcomes = []
    for L in (torch, dptrain):
        scaler = L.amp.GradScaler("cpu", init_scale=8.0)
        kinds = [L.float32, L.bfloat16, L.float16, L.float64]
        nested = [(L.ones(2, dtype=k), L.ones((), dtype=k)) for k in kinds]
        found = scaler.scale(nested)
        assert isinstance(scaler.scale(iter(nested[0])), map)
        outcomes.append([[str(t.dtype).split(".")[1] for t in pair] for pair in found])
        assert [[t.sum().item() for t in pair] for pair in found] == [[16.0, 8.0]] * 4
        assert [type(pair) for pair in found] == [tuple] * 4
    assert outcomes[0] == outcomes[1]


# ---- what it does ----------------------------------------------------------------------------------


def test_step_returns_what_the_optimizer_does_and_none_where_it_is_skipped():
    scaler, optimizer, p = ready()
    optimizer.step = lambda *args, **kwargs: (args, kwargs)
    assert scaler.step(optimizer, 1, two=2) == ((1,), {"two": 2})
    scaler.update()
    p.grad[0] = float("nan")
    assert scaler.step(optimizer) is None


def test_disabled_it_passes_everything_through():
    scaler, optimizer, p = ready(enabled=False)
    loss = p.sum()
    assert scaler.scale(loss) is loss
    scaler.unscale_(optimizer)
    scaler.step(optimizer, closure=lambda: 5)
    scaler.update()
    assert p.tolist() == [0.0] * 3
    assert (scaler.get_scale(), scaler.state_dict(), scaler.is_enabled()) == (1.0, {}, False)


def test_state_goes_on_in_another_scaler_and_through_pickle():
    scaler, optimizer, p = ready(growth_interval=2)
    scaler.step(optimizer)
    scaler.update()
    state = scaler.state_dict()
    fresh = amp.GradScaler("cpu")
    fresh.load_state_dict(state)
    for other in (fresh, pickle.loads(pickle.dumps(scaler)), copy.deepcopy(scaler)):
        assert other.state_dict() == state
        optimizer.zero_grad()
        other.scale(p.sum()).backward()
        other.step(optimizer)
        other.update()
        assert other.get_scale() == 8.0


@pytest.mark.oracle
def test_state_goes_on_from_pytorchs():
    torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
    theirs = torch.amp.GradScaler("cpu", init_scale=32.0, growth_interval=7)
    ours = amp.GradScaler("cpu")
    ours.load_state_dict(theirs.state_dict())
    assert ours.state_dict() == theirs.state_dict()


def test_float16_parameters_are_refused_and_bfloat16_ones_served():
    for kind in (dptrain.float16, dptrain.bfloat16):
        p = nn.Parameter(dptrain.ones(3, dtype=kind))
        optimizer = optim.SGD([p], lr=1.0)
        scaler = amp.GradScaler("cpu", init_scale=3.0)
        scaler.scale(p.sum()).backward()
        if kind is dptrain.float16:
            with pytest.raises(ValueError, match="FP16"):
                scaler.step(optimizer)
        else:
            scaler.step(optimizer)
            assert p.tolist() == [0.0] * 3


# ---- flat storage ----------------------------------------------------------------------------------


def test_gradients_of_one_storage_are_one_pass(monkeypatch):
    net = mlp(dptrain)
    optimizer = optim.SGD(net.parameters(), lr=0.1)
    scaler = amp.GradScaler("cpu")
    scaler.scale(net(dptrain.ones(2, 8)).sum()).backward()
    expected = [p.grad.numpy() / scaler.get_scale() for p in net.parameters()]
    calls = []
    run = kernels.kernels_for(np.zeros(0, np.float32)).unscale
    monkeypatch.setattr(
        kernels.kernels_for(np.zeros(0, np.float32)),
        "unscale",
        lambda *args: (calls.append(args[0].size), run(*args))[1],
    )
    scaler.unscale_(optimizer)
    assert len(calls) == 1
    for p, e in zip(net.parameters(), expected, strict=True):
        np.testing.assert_array_equal(p.grad.numpy(), e)


def test_only_the_optimizers_own_gradients_are_touched():
    """Two optimizers over one storage, a parameter without a gradient between, a gradient of its own."""
    params = [nn.Parameter(dptrain.ones(3)) for _ in range(6)]
    adopt(params)
    other, mine = (
        optim.SGD([params[2]], lr=1.0),
        optim.SGD([params[i] for i in (0, 1, 3, 4, 5)], lr=1.0),
    )
    scaler = amp.GradScaler("cpu", init_scale=2.0)
    scaler.scale(sum(p.sum() for p in params)).backward()
    params[2].grad[0] = float("inf")
    params[1].grad[1] = float("inf")
    params[1].grad = None  # what lies in its slot is none of its business
    params[4].grad = dptrain.full((3,), 8.0)
    params[5].grad = dptrain.full((6,), 6.0)[::2]
    assert len(gradients(mine.param_groups[0]["params"])) == 2
    scaler.step(mine)
    assert [p.tolist() for p in params] == [
        [0.0] * 3,
        [1.0] * 3,
        [1.0] * 3,
        [0.0] * 3,
        [-3.0] * 3,
        [-2.0] * 3,
    ]
    assert params[2].grad.tolist() == [np.inf, 2.0, 2.0]
    scaler.step(other)
    scaler.update()
    assert params[2].tolist() == [1.0] * 3
    assert scaler.get_scale() == 1.0


def test_a_gradient_outside_of_flat_storage_is_unscaled_where_it_lies():
    p = nn.Parameter(dptrain.ones(2, 3))
    optimizer = optim.SGD([p], lr=1.0)
    p._place = p._slot = None  # as after a move that the storage could not follow
    p.grad = dptrain.arange(6.0).reshape(3, 2).T
    scaler = amp.GradScaler("cpu", init_scale=2.0)
    scaler.scale(dptrain.ones(()))
    scaler.unscale_(optimizer)
    assert p.grad.tolist() == [[0.0, 1.0, 2.0], [0.5, 1.5, 2.5]]
