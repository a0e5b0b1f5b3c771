"""Virtual host devices: what lives where, what may meet, what stays there."""

import copy
import pickle

import numpy as np
import pytest
from op_samples import SAMPLES
from sample_args import Arg
from test_ops import as_list, build, flat, ours, resolve

import dptrain
from dptrain import nn, optim
from dptrain.core.arrays import is_array
from dptrain.core.host_array import DeviceMismatchError, HostArray


@pytest.fixture(autouse=True)
def four_devices(host_devices):
    host_devices(4)


def test_devices_are_named_and_counted():
    assert [str(dptrain.ones(1, device=f"cpu:{i}").device) for i in range(4)] == [
        f"cpu:{i}" for i in range(4)
    ]
    assert (
        dptrain.ones(1).device == dptrain.device("cpu", 0) == dptrain.ones(1, device="cpu").device
    )
    assert dptrain.ones(1, device=dptrain.device("cpu", 2)).get_device() == 2
    with pytest.raises(RuntimeError, match=r"'cpu:4' was asked for, but there are cpu:0 to cpu:3"):
        dptrain.ones(1, device="cpu:4")


def test_one_host_device_has_no_index(host_devices):
    host_devices(1)
    assert dptrain.ones(1).device == dptrain.device("cpu")
    assert dptrain.ones(1, device="cpu:0").device == dptrain.device("cpu")
    with pytest.raises(RuntimeError, match="DPTRAIN_HOST_DEVICES=2"):
        dptrain.ones(1, device="cpu:1")


@pytest.mark.parametrize("text", ["0", "-1", "two", "65", "1.5"])
def test_a_bad_number_of_devices_is_refused(host_devices, text):
    host_devices(text)
    with pytest.raises(ValueError, match=f"DPTRAIN_HOST_DEVICES='{text}' is no number of devices"):
        dptrain.ones(1)


@pytest.mark.parametrize(
    "meet",
    [
        lambda a, b: a + b,
        lambda a, b: b * a,
        lambda a, b: a @ b,
        lambda a, b: dptrain.cat([a, b]),
        lambda a, b: dptrain.where(a > 0, a, b),
        lambda a, b: nn.functional.linear(a, b),
        lambda a, b: a.add_(b),
        lambda a, b: nn.functional.mse_loss(a, b),
        lambda a, b: a[b.long()],
    ],
)
@pytest.mark.parametrize("places", [("cpu:1", "cpu:2"), ("cpu:1", "cpu:0"), ("cpu", "cpu:3")])
def test_two_devices_do_not_meet(meet, places):
    a, b = (dptrain.ones(2, 2, device=p) for p in places)
    with pytest.raises(RuntimeError, match=r"on the same device.*two devices, cpu:\d and cpu:\d!"):
        meet(a, b)


def test_values_leave_a_device_only_when_asked():
    x = dptrain.arange(3, device="cpu:1")
    with pytest.raises(TypeError, match="can't convert cpu:1 device type tensor to numpy"):
        x.numpy()
    with pytest.raises(TypeError, match="Implicit conversion of an array on cpu:1"):
        np.asarray(x._array)
    assert x.cpu().numpy().tolist() == x.tolist() == x.numpy(force=True).tolist() == [0, 1, 2]
    assert (x[1].item(), float(x[2]), bool(x[0])) == (1, 2.0, False)


def test_a_move_copies_and_its_gradient_comes_back():
    x = dptrain.tensor([1.0, 2.0], device="cpu:1", requires_grad=True)
    y = x.to("cpu:2")
    assert y.to("cpu:2") is y
    y.detach().zero_()
    assert x.tolist() == [1, 2]
    (x.to("cpu:3") * 3).sum().backward()
    assert x.grad.device == x.device
    assert x.grad.tolist() == [3, 3]


def test_text_names_the_device():
    assert repr(dptrain.ones(1, device="cpu:2")) == "tensor([1.], device='cpu:2')"
    assert repr(dptrain.ones(1)) == "tensor([1.])"


def test_copies_stay_on_the_device():
    x = dptrain.ones(2, device="cpu:2")
    for other in (
        copy.deepcopy(x),
        pickle.loads(pickle.dumps(x)),
        x.clone(),
        dptrain.zeros_like(x),
    ):
        assert str(other.device) == "cpu:2"
    assert str(dptrain.tensor(x).device) == "cpu:2"


@pytest.mark.parametrize("make", [optim.SGD, optim.Adam, optim.RMSprop])
def test_training_on_a_device_gives_the_bits_of_the_first(make):
    results = []
    for place in ("cpu:0", "cpu:3"):
        dptrain.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
            nn.Linear(36, 5),
        ).to(place)  # fmt: skip
        optimizer = make(model.parameters(), lr=0.01)
        x = dptrain.randn(6, 1, 8, 8).to(place)
        target = dptrain.arange(6, device=place) % 5
        for _ in range(3):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), target).backward()
            optimizer.step()
        assert all(str(p.device) == str(p.grad.device) == place for p in model.parameters())
        assert all(str(b.device) == place for b in model.buffers())
        results.append([v.cpu().numpy() for v in model.state_dict().values()])
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)


# ---- every operation ---------------------------------------------------------------------------


def on_device(array, arg):
    tensor = ours(array, arg).to("cpu:1")
    return tensor.requires_grad_() if arg.kind == "x" else tensor


def run(name, call, make):
    """Results of a sample and the gradients of its inputs, plain and with a graph of their own."""
    dptrain.manual_seed(0)
    args, kwargs = build(call, np.float64, make)
    results = [
        r
        for r in as_list(resolve(name, dptrain, None)(*args, **kwargs))
        if isinstance(r, dptrain.Tensor)
    ]
    roots = [r.sum() for r in results if r.requires_grad]
    leaves = [a for a in flat(args) if isinstance(a, dptrain.Tensor) and a.requires_grad]
    grads = []
    for create_graph in (False, True) if roots and leaves else ():
        try:
            grads += dptrain.autograd.grad(
                roots, leaves, retain_graph=True, allow_unused=True, create_graph=create_graph
            )
        except DeviceMismatchError:
            raise
        except (
            RuntimeError
        ) as error:  # no derivative, or none of second order: on all devices alike
            grads.append(str(error).partition(":")[0])
    return results + grads


@pytest.mark.parametrize("name", list(SAMPLES))
def test_every_operation_stays_on_its_device(name):
    for call in SAMPLES[name]:
        if not any(isinstance(a, Arg) for a in flat(call.args)):
            continue  # nothing that lives anywhere
        expected = run(name, call, lambda a, s: ours(a, s, grad=True))
        found = run(name, call, on_device)
        assert len(found) == len(expected)
        for f, e in zip(found, expected, strict=True):
            if not isinstance(e, dptrain.Tensor):
                assert f == e
                continue
            assert str(f.device) == "cpu:1"
            assert type(f._array) is HostArray
            assert f.dtype is e.dtype
            np.testing.assert_array_equal(f.detach().cpu().numpy(), e.detach().numpy())


def test_an_array_of_a_device_is_an_array():
    assert is_array(dptrain.ones(1, device="cpu:1")._array)
    assert not is_array([1.0])
    assert not is_array(np.float64(1))
