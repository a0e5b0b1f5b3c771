"""DataParallel over virtual devices: the numbers of one device, the semantics of PyTorch's."""

import copy
import pickle
from collections import namedtuple

import fake_cupy
import numpy as np
import pytest
from fake_cupy import over_the_stand_in

import dptrain
import dptrain.nn.functional as F
from dptrain import nn, optim
from dptrain.comm import nccl_local
from dptrain.core import kernels
from dptrain.nn.parallel import data_parallel, gather, parallel_apply, replicate, scatter

COUNTS = [1, 2, 3, 4]


@pytest.fixture(autouse=True)
def double():
    dptrain.set_default_dtype(dptrain.float64)
    dptrain.manual_seed(0)
    yield
    dptrain.set_default_dtype(dptrain.float32)


def small_cnn():
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 8, 3), nn.GroupNorm(2, 8),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    )  # fmt: skip


def transformer():
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    return nn.Sequential(
        nn.Unflatten(1, (8, 8)), nn.TransformerEncoder(layer, 1), nn.Flatten(), nn.Linear(64, 5)
    )


def embedding_rnn():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.LSTM(8, 6, num_layers=2, batch_first=True, bidirectional=True)
            self.head = nn.Linear(12, 5)

        def forward(self, x):
            out, _ = self.rnn(x.reshape(-1, 8, 8))
            return self.head(out[:, -1])

    return Net()


MODELS = {
    "mlp": lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 5)),
    "cnn": small_cnn,
    "transformer": transformer,
    "lstm": embedding_rnn,
}


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("batch", [7, 3])
def test_training_equals_one_device(host_devices, name, count, batch):
    host_devices(4)
    alone = MODELS[name]()
    split = nn.DataParallel(copy.deepcopy(alone), device_ids=range(count))
    shape = (batch, 64) if name == "transformer" else (batch, 1, 8, 8)
    optimizers = [optim.SGD(m.parameters(), lr=0.1, momentum=0.9) for m in (alone, split)]
    for _ in range(3):
        x, y = dptrain.randn(shape), dptrain.randint(0, 5, (batch,))
        for model, optimizer in zip((alone, split), optimizers, strict=True):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    for (key, a), b in zip(
        alone.state_dict().items(), split.module.state_dict().values(), strict=True
    ):
        np.testing.assert_allclose(b.numpy(), a.numpy(), rtol=1e-12, atol=1e-14, err_msg=key)


@pytest.mark.parametrize("count", COUNTS)
def test_loss_per_replica_equals_the_loss_of_the_batch(host_devices, count):
    host_devices(4)
    model = nn.DataParallel(small_cnn(), device_ids=range(count))
    x, y = dptrain.randn(7, 1, 8, 8), dptrain.randint(0, 5, (7,))
    gradients = []
    for reduction in ("mean", "sum"):
        for loss in (
            F.cross_entropy(model(x), y, reduction=reduction),
            model.replica_loss(
                lambda out, t, r=reduction: F.cross_entropy(out, t, reduction=r), x, y, reduction
            ),
        ):
            model.zero_grad()
            loss.backward()
            gradients.append((loss.item(), [p.grad.numpy().copy() for p in model.parameters()]))
    for whole, parts in (gradients[:2], gradients[2:]):
        assert parts[0] == pytest.approx(whole[0], rel=1e-12)
        for a, b in zip(whole[1], parts[1], strict=True):
            np.testing.assert_allclose(b, a, rtol=1e-11, atol=1e-14)


class Recorder(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 2)
        self.seen = []

    def forward(self, x, scale=None, *, options=None):
        self.seen.append((str(x.device), tuple(x.shape), scale, options))
        return self.fc(x)


def test_arguments_are_split_or_repeated(host_devices):
    host_devices(4)
    model = nn.DataParallel(Recorder())
    mask = dptrain.arange(10.0)
    out = model(dptrain.ones(10, 3), 2, options={"mask": mask, "name": "a"})
    assert out.shape == (10, 2)
    assert out.device == dptrain.device("cpu", 0)
    seen = sorted(model.module.seen, key=lambda s: s[0])
    assert [s[:3] for s in seen] == [
        ("cpu:0", (3, 3), 2), ("cpu:1", (3, 3), 2), ("cpu:2", (3, 3), 2), ("cpu:3", (1, 3), 2),
    ]  # fmt: skip
    assert [s[3]["mask"].tolist() for s in seen] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]
    assert all(s[3]["name"] == "a" and str(s[3]["mask"].device) == s[0] for s in seen)


def test_a_short_batch_uses_fewer_devices(host_devices):
    host_devices(4)
    model = nn.DataParallel(Recorder())
    assert model(dptrain.ones(2, 3)).shape == (2, 2)
    assert sorted(s[0] for s in model.seen) == ["cpu:0", "cpu:1"]
    assert model(dptrain.ones(1, 3)).shape == (1, 2)


def test_results_are_joined_where_asked_and_along_dim(host_devices):
    host_devices(3)

    class Turned(nn.Module):
        def forward(self, x):
            return {"x": x, "pair": (x * 2, [x + 1, None])}

    model = nn.DataParallel(Turned(), output_device=2, dim=1)
    x = dptrain.arange(12.0).reshape(2, 6)
    out = model(x)
    assert str(out["x"].device) == "cpu:2"
    assert out["x"].cpu().equal(x)
    assert out["pair"][0].cpu().equal(x * 2)
    assert out["pair"][1][0].cpu().equal(x + 1)
    assert out["pair"][1][1] is None


def test_scalars_are_gathered_to_a_vector(host_devices):
    host_devices(3)

    class Mean(nn.Module):
        def forward(self, x):
            return x.mean()

    with pytest.warns(UserWarning, match="all input tensors were scalars"):
        out = nn.DataParallel(Mean())(dptrain.tensor([1.0, 2.0, 6.0]))
    assert out.tolist() == [1, 2, 6]


Point = namedtuple("Point", ["x", "y"])


def test_scatter_and_gather_are_each_others_inverse(host_devices):
    host_devices(3)
    devices = [dptrain.device("cpu", i) for i in range(3)]
    value = Point([dptrain.arange(7)], {"b": (dptrain.arange(14).reshape(7, 2),)})
    parts = scatter(value, devices)
    assert [type(p) for p in parts] == [Point] * 3
    back = gather(parts, devices[1])
    assert back.x[0].cpu().equal(value.x[0])
    assert back.y["b"][0].cpu().equal(value.y["b"][0])
    assert str(back.x[0].device) == "cpu:1"
    with pytest.raises(ValueError, match="same number of keys"):
        gather([{"a": dptrain.ones(1)}, {"b": dptrain.ones(1, device="cpu:1")}], devices[0])
    with pytest.raises(TypeError, match="the module returned str"):
        gather(["a", "b"], devices[0])


def test_running_statistics_are_those_of_the_first_share(host_devices):
    host_devices(2)
    model = nn.DataParallel(nn.BatchNorm1d(2, momentum=1.0))
    x = dptrain.randn(6, 2)
    model(x)
    np.testing.assert_allclose(model.module.running_mean.numpy(), x[:3].numpy().mean(0), rtol=1e-12)
    assert model.module.num_batches_tracked.item() == 1


def test_dropout_differs_over_devices_and_not_over_runs(host_devices):
    host_devices(4)
    model = nn.DataParallel(nn.Sequential(nn.Dropout(0.5), nn.Identity()))
    runs = []
    for _ in range(2):
        dptrain.manual_seed(3)
        runs.append(model(dptrain.ones(8, 64)).numpy())
    np.testing.assert_array_equal(*runs)
    shares = runs[0].reshape(4, 2 * 64)
    assert len({s.tobytes() for s in shares}) == 4


def test_draws_in_forward_do_not_depend_on_the_order_of_the_threads(host_devices):
    host_devices(4)

    class Noisy(nn.Module):
        def forward(self, x):
            return x + dptrain.randn(x.shape, device=x.device)

    model = nn.DataParallel(Noisy())
    runs = set()
    for _ in range(20):
        dptrain.manual_seed(0)
        runs.add(model(dptrain.zeros(8, 16)).numpy().tobytes())
    assert len(runs) == 1


def test_a_graph_keeps_the_weights_it_was_made_with(host_devices):
    """A second forward, after a step, must not overwrite what the first one's backward needs."""
    host_devices(3)
    alone = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1))
    split = nn.DataParallel(copy.deepcopy(alone))
    x = dptrain.randn(6, 4)
    first = split(x).sum()
    expected = dptrain.autograd.grad(alone(x).sum(), list(alone.parameters()))
    with dptrain.no_grad():
        for i, p in enumerate(split.parameters()):
            if i == 3:  # the last bias: saved by nothing, so that backward may still run
                p.add_(1.0)
        split(x)
    for found, e in zip(
        dptrain.autograd.grad(first, list(split.parameters())), expected, strict=True
    ):
        np.testing.assert_allclose(found.numpy(), e.numpy(), rtol=1e-12)


def test_second_derivatives_pass_through_the_replicas(host_devices):
    host_devices(2)
    alone = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    split = nn.DataParallel(copy.deepcopy(alone))
    x = dptrain.randn(4, 3)
    results = []
    for model in (alone, split):
        params = list(model.parameters())
        grads = dptrain.autograd.grad(model(x).pow(2).sum(), params, create_graph=True)
        penalty = sum(g.pow(2).sum() for g in grads)
        results.append([g.numpy() for g in dptrain.autograd.grad(penalty, params)])
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-10, atol=1e-14)


def test_frozen_and_unused_parameters(host_devices):
    host_devices(2)

    class Partly(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.frozen, self.unused = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)
            self.frozen.requires_grad_(False)

        def forward(self, x):
            return self.frozen(self.used(x))

    model = nn.DataParallel(Partly())
    model(dptrain.ones(4, 3)).sum().backward()
    assert model.module.unused.weight.grad is None
    assert model.module.frozen.weight.grad is None
    assert model.module.used.weight.grad is not None


@pytest.mark.parametrize("where", [0, 1, 3])
def test_the_error_of_a_replica_names_its_device(host_devices, where):
    host_devices(4)

    class Picky(nn.Module):
        def forward(self, x):
            if x.device.index == where:
                raise ValueError("this share is refused")
            return x

    with pytest.raises(
        ValueError, match=rf"Caught ValueError in replica {where} on device cpu:{where}"
    ) as caught:
        nn.DataParallel(Picky())(dptrain.ones(8, 2))
    assert "this share is refused" in str(caught.value)
    assert "in forward" in str(caught.value)  # the traceback of the replica


def test_an_error_that_cannot_be_made_anew_is_wrapped(host_devices):
    host_devices(2)

    class Odd(Exception):
        def __init__(self, a, b):
            super().__init__(a, b)

    class Raises(nn.Module):
        def forward(self, x):
            raise Odd(1, 2)

    with pytest.raises(RuntimeError, match="Caught Odd in replica 0 on device cpu:0"):
        nn.DataParallel(Raises())(dptrain.ones(4))


def test_bad_devices_are_refused(host_devices):
    host_devices(2)
    with pytest.raises(RuntimeError, match="'cpu:2' was asked for, but there are cpu:0 to cpu:1"):
        nn.DataParallel(nn.Linear(1, 1), device_ids=[0, 2])
    with pytest.raises(ValueError, match="names a device twice"):
        nn.DataParallel(nn.Linear(1, 1), device_ids=[1, 1])
    with pytest.raises(ValueError, match="at least one device"):
        nn.DataParallel(nn.Linear(1, 1), device_ids=[])
    with pytest.raises(RuntimeError, match=r"on device cpu:1 \(device_ids\[0\]\).*cpu:0"):
        nn.DataParallel(nn.Linear(1, 1), device_ids=[1, 0])(dptrain.ones(2, 1))
    with pytest.raises(ValueError, match="targets into 1"):
        nn.DataParallel(nn.Linear(1, 1)).replica_loss(
            F.mse_loss, dptrain.ones(2, 1), dptrain.ones(1, 1)
        )


def test_the_module_can_live_on_any_device(host_devices):
    host_devices(3)
    model = nn.DataParallel(nn.Linear(3, 2).to("cpu:2"), device_ids=[2, 0])
    out = model(dptrain.ones(4, 3))
    out.sum().backward()
    assert str(out.device) == str(model.module.weight.grad.device) == "cpu:2"


def test_one_device_is_a_plain_call():
    model = nn.DataParallel(nn.Linear(3, 2))
    x = dptrain.ones(4, 3)
    assert model(x).equal(model.module(x))


def test_state_has_the_wrappers_prefix_and_attributes_are_seen(host_devices):
    host_devices(2)
    net = small_cnn()
    net.tag = "mine"
    model = nn.DataParallel(net)
    assert list(model.state_dict()) == [f"module.{k}" for k in net.state_dict()]
    assert model.tag == "mine"
    with pytest.raises(AttributeError, match="nothing"):
        _ = model.nothing
    model(dptrain.ones(4, 1, 8, 8))
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        np.testing.assert_array_equal(
            other(dptrain.ones(4, 1, 8, 8)).detach().numpy(),
            model(dptrain.ones(4, 1, 8, 8)).detach().numpy(),
        )


def test_functional_form(host_devices):
    host_devices(2)
    net = nn.Linear(3, 2)
    x = dptrain.randn(5, 3)
    np.testing.assert_allclose(
        data_parallel(net, x).detach().numpy(), net(x).detach().numpy(), rtol=1e-12
    )


def test_grad_mode_reaches_the_replicas(host_devices):
    host_devices(3)
    model = nn.DataParallel(nn.Linear(2, 2))
    with dptrain.no_grad():
        assert not model(dptrain.ones(6, 2)).requires_grad
    assert model(dptrain.ones(6, 2)).requires_grad


def test_gpus_are_the_default_where_the_module_lives_on_one(monkeypatch):
    def trained(net):
        x = dptrain.arange(30.0).reshape(5, 6).to(next(net.parameters()).device)
        net(x).square().sum().backward()
        return [p.grad.cpu().numpy() for p in net.parameters()]

    alone = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 2))
    with fake_cupy.installed(monkeypatch, 3):
        monkeypatch.setattr(kernels, "_cuda", over_the_stand_in)
        # see test_nccl_devices.py
        monkeypatch.setattr(nccl_local, "_communicators", lambda indices: None)
        split = nn.DataParallel(copy.deepcopy(alone).to("cuda:0"))
        assert [str(place) for place in split.device_ids] == ["cuda:0", "cuda:1", "cuda:2"]
        for one in (split, nn.DataParallel(copy.deepcopy(alone).to("cuda:1"), device_ids=[1, 2])):
            for found, expected in zip(trained(one), trained(copy.deepcopy(alone)), strict=True):
                np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_the_steps_of_it_can_be_put_together_by_hand(host_devices):
    """PyTorch's recipe: scatter, replicate, apply in parallel, gather."""
    host_devices(3)
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))
    whole = copy.deepcopy(net)
    x = dptrain.randn(7, 4)
    places = ["cpu:0", "cpu:1", "cpu:2"]
    inputs = scatter(x, [dptrain.device(p) for p in places])
    replicas = replicate(net, places)[: len(inputs)]
    outputs = parallel_apply(replicas, inputs, [{}] * 3, places)
    assert [str(o.device) for o in outputs] == places
    found, wanted = gather(outputs, dptrain.device("cpu:0")), whole(x)
    found.square().sum().backward()
    wanted.square().sum().backward()
    np.testing.assert_allclose(found.tolist(), wanted.tolist(), rtol=1e-12)
    for p, q in zip(net.parameters(), whole.parameters(), strict=True):
        np.testing.assert_allclose(p.grad.numpy(), q.grad.numpy(), rtol=1e-12)
    apart = replicate(net, places, detach=True)[1]
    assert not parallel_apply([apart], [x.to("cpu:1")])[0].requires_grad
    with pytest.raises(
        ValueError, match=r"inputs must have one entry for each module \(3\), got 2"
    ):
        parallel_apply(replicas, inputs[:2])
    with pytest.raises(ValueError, match="Caught ValueError in replica 1 on device cpu:1"):
        parallel_apply([lambda x: x, _refuse], [x, x.to("cpu:1")])
    with pytest.raises(ValueError, match="at least one device"):
        replicate(net, [])


def _refuse(x):
    raise ValueError("not this one")


def test_places_of_the_steps():
    from dptrain.nn.parallel.distributed import DistributedDataParallel
    from dptrain.nn.parallel.scatter_gather import scatter_kwargs

    assert DistributedDataParallel is nn.parallel.DistributedDataParallel
    assert scatter_kwargs((), None, [dptrain.device("cpu")]) == ([], [])
    assert nn.parallel.scatter_gather.gather is gather
