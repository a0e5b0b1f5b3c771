"""Module: registration, the tree, hooks, modes, conversions, state, text."""

import copy
import pickle
from collections import OrderedDict

import numpy as np
import pytest

import dptrain
from dptrain import nn
from dptrain.core.flat import adopt, place_of


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.act = nn.ReLU()
        self.second = nn.Linear(4, 2, bias=False)
        self.scale = nn.Parameter(dptrain.ones(2))
        self.register_buffer("seen", dptrain.tensor(0))
        self.register_buffer("cache", dptrain.zeros(3), persistent=False)

    def forward(self, x):
        return self.second(self.act(self.first(x))) * self.scale


def names(pairs):
    return [name for name, _ in pairs]


# ---- registration and attributes -------------------------------------------------------------------


def test_parameters_come_in_order_of_registration_own_ones_first():
    net = Net()
    expected = ["scale", "first.weight", "first.bias", "second.weight"]
    assert names(net.named_parameters()) == expected
    assert names(net.named_parameters(recurse=False)) == ["scale"]
    assert names(net.named_parameters(prefix="net")) == [f"net.{n}" for n in expected]
    assert [id(p) for p in net.parameters()] == [id(p) for _, p in net.named_parameters()]


def test_tied_parameters_and_modules_come_once_unless_asked():
    layer = nn.Linear(2, 2)
    net = nn.Sequential(layer, nn.ReLU(), layer)
    assert names(net.named_parameters()) == ["0.weight", "0.bias"]
    assert names(net.named_parameters(remove_duplicate=False)) == [
        "0.weight",
        "0.bias",
        "2.weight",
        "2.bias",
    ]
    assert names(net.named_modules()) == ["", "0", "1"]
    assert names(net.named_children()) == ["0", "1"]
    assert list(net.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]


def test_buffers_are_found_and_only_persistent_ones_are_saved():
    net = Net()
    assert names(net.named_buffers()) == ["seen", "cache"]
    assert len(list(net.buffers())) == 2
    assert "seen" in net.state_dict()
    assert "cache" not in net.state_dict()


def test_plain_tensors_are_no_buffers():
    net = nn.Module()
    net.x = dptrain.zeros(2)
    assert not list(net.buffers())
    assert not list(net.parameters())


def test_assignment_moves_a_name_between_the_tables():
    net = nn.Module()
    net.x = 3
    net.x = nn.Parameter(dptrain.zeros(2))
    assert "x" in dict(net.named_parameters())
    with pytest.raises(TypeError, match="cannot assign 'Tensor' as parameter 'x'"):
        net.x = dptrain.zeros(2)
    net.x = None
    assert net.x is None
    net.x = nn.Parameter(dptrain.zeros(2))
    del net.x
    assert not hasattr(net, "x")
    net.x = nn.Linear(1, 1)
    with pytest.raises(TypeError, match="cannot assign 'int' as child module 'x'"):
        net.x = 3
    net.register_buffer("b", dptrain.zeros(1))
    with pytest.raises(TypeError, match="cannot assign 'int' as buffer 'b'"):
        net.b = 3
    net.b = dptrain.ones(1)
    assert dict(net.named_buffers())["b"].tolist() == [1]
    net.b = nn.Parameter(dptrain.zeros(1))
    assert not list(net.buffers())
    assert "b" in dict(net.named_parameters(recurse=False))


def test_assignment_before_init_is_an_error():
    class Late(nn.Module):
        def __init__(self, value):
            self.x = value

    with pytest.raises(
        AttributeError, match=r"cannot assign module before Module.__init__\(\) call"
    ):
        Late(nn.ReLU())
    with pytest.raises(
        AttributeError, match=r"cannot assign parameters before Module.__init__\(\) call"
    ):
        Late(nn.Parameter(dptrain.zeros(1)))


@pytest.mark.parametrize(
    ("register", "what", "value"),
    [
        ("register_parameter", "parameter", nn.Parameter(dptrain.zeros(1))),
        ("register_buffer", "buffer", dptrain.zeros(1)),
        ("add_module", "module", nn.ReLU()),
    ],
)
def test_names_that_cannot_be_used_are_refused(register, what, value):
    net = nn.Module()
    net.taken = 1
    for name, message in [
        ("", f'{what} name can\'t be empty string ""'),
        ("a.b", f'{what} name can\'t contain "."' + (", got: a.b" if what == "module" else "")),
        ("taken", "attribute 'taken' already exists"),
    ]:
        with pytest.raises(KeyError) as caught:
            getattr(net, register)(name, value)
        assert caught.value.args == (message,)
    with pytest.raises(TypeError, match=f"{what} name should be a string"):
        getattr(net, register)(3, value)


def test_values_of_the_wrong_kind_are_refused():
    net = nn.Module()
    with pytest.raises(TypeError, match="object to parameter 'w'"):
        net.register_parameter("w", dptrain.zeros(1))
    with pytest.raises(TypeError, match="object to buffer 'w'"):
        net.register_buffer("w", 3)
    with pytest.raises(TypeError, match="int is not a Module subclass"):
        net.add_module("w", 3)
    with pytest.raises(AttributeError, match="'Module' object has no attribute 'w'"):
        net.w  # noqa: B018
    with pytest.raises(NotImplementedError, match='missing the required "forward"'):
        net(1)


def test_get_submodule_follows_the_path():
    net = nn.Sequential(Net())
    assert net.get_submodule("0.first") is net[0].first
    assert net.get_submodule("") is net
    with pytest.raises(AttributeError, match="Net has no attribute `third`"):
        net.get_submodule("0.third")
    with pytest.raises(AttributeError, match=r"`scale` is not an nn\.Module"):
        net.get_submodule("0.scale")
    assert net.get_parameter("0.first.weight") is net[0].first.weight
    with pytest.raises(AttributeError, match=r"`seen` is not an nn.Parameter"):
        net.get_parameter("0.seen")


def test_dir_lists_what_is_registered():
    assert {"first", "scale", "seen", "forward", "training"} <= set(dir(Net()))


def test_parameter_is_a_leaf_that_shares_its_data():
    data = dptrain.zeros(3)
    p = nn.Parameter(data)
    assert p.requires_grad
    assert p.is_leaf
    assert p.data_ptr() == data.data_ptr()
    assert repr(p) == "Parameter containing:\ntensor([0., 0., 0.], requires_grad=True)"
    assert not nn.Parameter(dptrain.tensor([1, 2]), requires_grad=False).requires_grad
    with pytest.raises(RuntimeError, match="floating point"):
        nn.Parameter(dptrain.tensor([1, 2]))
    with pytest.raises(TypeError, match="must be a Tensor"):
        nn.Parameter([1.0])
    for twin in (copy.deepcopy(p), pickle.loads(pickle.dumps(p))):
        assert type(twin) is nn.Parameter
        assert twin.requires_grad
        assert twin.data_ptr() != p.data_ptr()


# ---- hooks -----------------------------------------------------------------------------------------


def test_hooks_run_in_order_and_replace_what_they_return():
    net = nn.Identity()
    seen = []
    net.register_forward_pre_hook(lambda m, args: seen.append("pre") or (args[0] + 1,))
    net.register_forward_pre_hook(lambda m, args: seen.append("pre2") or args[0] * 2)
    net.register_forward_hook(lambda m, args, out: seen.append(("post", args[0], out)))
    net.register_forward_hook(lambda m, args, out: out + 100)
    first = net.register_forward_hook(lambda m, args, out: seen.append("first"), prepend=True)
    assert net(3) == 108
    assert seen == ["pre", "pre2", "first", ("post", 8, 8)]
    first.remove()
    first.remove()
    net(3)
    assert seen.count("first") == 1


def test_hooks_may_see_keyword_arguments():
    class Plus(nn.Module):
        def forward(self, x, *, by):
            return x + by

    net = Plus()
    pre = net.register_forward_pre_hook(
        lambda m, args, kwargs: (args, {"by": kwargs["by"] * 10}), with_kwargs=True
    )
    post = net.register_forward_hook(lambda m, args, kwargs, out: (out, kwargs), with_kwargs=True)
    assert net(1, by=2) == (21, {"by": 20})
    pre.remove()
    post.remove()
    assert net(1, by=2) == 3
    with (
        net.register_forward_pre_hook(lambda m, args, kwargs: 5, with_kwargs=True),
        pytest.raises(RuntimeError, match="forward pre-hook must return None or a tuple"),
    ):
        net(1, by=2)


# ---- modes and conversions -------------------------------------------------------------------------


def test_modes_reach_all_modules():
    net = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout()))
    assert net.eval() is net
    assert not any(m.training for m in net.modules())
    net.train()
    assert all(m.training for m in net.modules())
    with pytest.raises(ValueError, match="expected to be boolean"):
        net.train(3)


def test_apply_visits_children_first():
    seen = []
    net = nn.Sequential(nn.ReLU(), nn.Sequential(nn.Tanh()))
    net.apply(lambda m: seen.append(type(m).__name__))
    assert seen == ["ReLU", "Tanh", "Sequential", "Sequential"]


def test_requires_grad_and_zero_grad_reach_all_parameters():
    net = Net()
    net(dptrain.ones(1, 3)).sum().backward()
    net.zero_grad(set_to_none=False)
    assert all(not p.grad.numpy().any() for p in net.parameters())
    net.zero_grad()
    assert all(p.grad is None for p in net.parameters())
    net.requires_grad_(False)
    assert not any(p.requires_grad for p in net.parameters())


@pytest.mark.parametrize("convert", [lambda m: m.double(), lambda m: m.to(dptrain.float64)])
def test_conversion_keeps_parameters_gradients_and_integer_buffers(convert):
    net = Net()
    net(dptrain.ones(1, 3)).sum().backward()
    params, grads = list(net.parameters()), [p.grad.tolist() for p in net.parameters()]
    values = [p.tolist() for p in params]
    assert convert(net) is net
    for p, q, grad, kept in zip(net.parameters(), params, grads, values, strict=True):
        assert p is q
        assert p.dtype is p.grad.dtype is dptrain.float64
        assert p.grad.tolist() == grad
        assert p.tolist() == kept
    assert net.seen.dtype is dptrain.int64
    assert net.cache.dtype is dptrain.float64
    assert net(dptrain.ones(1, 3, dtype=dptrain.float64)).dtype is dptrain.float64
    assert net.half().scale.dtype is dptrain.float16
    assert net.bfloat16().scale.dtype is dptrain.bfloat16
    assert net.float().scale.dtype is dptrain.float32
    assert net.cpu().to("cpu").scale.dtype is dptrain.float32
    assert net.to(dptrain.zeros(1, dtype=dptrain.float64)).scale.dtype is dptrain.float64


def test_conversion_to_what_cannot_be_is_refused():
    with pytest.raises(TypeError, match="only accepts floating point dtypes"):
        Net().to(dptrain.int64)
    with pytest.raises(TypeError, match="only accepts floating point dtypes"):
        Net().to(dtype=dptrain.int32)
    with pytest.raises(RuntimeError, match="cuda"):
        Net().cuda()


# ---- state -----------------------------------------------------------------------------------------


def test_state_shares_memory_and_is_detached():
    net = Net()
    state = net.state_dict()
    assert isinstance(state, OrderedDict)
    assert list(state) == ["scale", "seen", "first.weight", "first.bias", "second.weight"]
    assert not any(t.requires_grad for t in state.values())
    with dptrain.no_grad():
        net.scale.fill_(7)
    assert state["scale"].tolist() == [7, 7]
    assert net.state_dict(keep_vars=True)["scale"] is net.scale
    into = OrderedDict(x=1)
    assert net.state_dict(destination=into, prefix="net.") is into
    assert list(into)[:2] == ["x", "net.scale"]


def test_loading_copies_in_place_so_that_flat_storage_stays():
    net, other = Net(), Net()
    adopt(net.parameters())
    places = [place_of(p) for p in net.parameters()]
    result = net.load_state_dict(other.state_dict())
    assert str(result) == "<All keys matched successfully>"
    assert result.missing_keys == result.unexpected_keys == []
    for p, q, place in zip(net.parameters(), other.parameters(), places, strict=True):
        assert p.tolist() == q.tolist()
        assert place_of(p) is place
        assert np.may_share_memory(p.detach().numpy(), place.storage.data)


@pytest.mark.oracle
@pytest.mark.parametrize("form", ["channels_last", "channels_last_3d"])
def test_a_memory_format_concerns_only_parameters_that_can_have_one(form):
    torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
    strides = []
    for m in (dptrain, torch):
        conv = m.nn.Conv2d(2, 3, 3) if form == "channels_last" else m.nn.Conv3d(2, 3, 3)
        module = m.nn.Sequential(conv, m.nn.BatchNorm2d(3), m.nn.Linear(2, 2))
        module = module.to(memory_format=getattr(m, form))
        strides.append([p.stride() for p in module.parameters()])
    assert strides[0] == strides[1]


def test_loading_converts_dtypes_and_takes_arrays_and_old_scalars():
    net = Net()
    state = {k: v.numpy().astype(np.float64) for k, v in Net().state_dict().items()}
    state["seen"] = np.array([5])
    net.load_state_dict(state)
    assert net.scale.dtype is dptrain.float32
    assert net.seen.item() == 5
    assert net.seen.shape == ()


def test_report_names_every_misfit_and_nothing_is_loaded():
    net = Net()
    before = {k: v.numpy().copy() for k, v in net.state_dict().items()}
    state = Net().state_dict()
    state["first.weight"] = dptrain.zeros(4, 5)
    state["second.weight"] = "text"
    del state["scale"], state["first.bias"]
    state["extra"] = dptrain.zeros(1)
    with pytest.raises(RuntimeError) as caught:
        net.load_state_dict(state)
    assert str(caught.value) == (
        "Error(s) in loading state_dict for Net:\n"
        '\tMissing key(s) in state_dict: "scale", "first.bias". \n'
        '\tUnexpected key(s) in state_dict: "extra". \n'
        "\tsize mismatch for first.weight: copying a param with shape dptrain.Size([4, 5]) from checkpoint, "
        "the shape in current model is dptrain.Size([4, 3]).\n"
        '\tWhile copying the parameter named "second.weight", expected dptrain.Tensor or numpy.ndarray from '
        "checkpoint but received <class 'str'>"
    )
    for name, held in net.state_dict().items():
        np.testing.assert_array_equal(held.numpy(), before[name])


def test_loading_without_strict_reports_what_was_left_out():
    net = Net()
    result = net.load_state_dict({"scale": dptrain.zeros(2), "x": dptrain.zeros(1)}, strict=False)
    assert net.scale.tolist() == [0, 0]
    assert result.missing_keys == ["seen", "first.weight", "first.bias", "second.weight"]
    assert result.unexpected_keys == ["x"]
    with pytest.raises(RuntimeError, match="size mismatch for scale"):
        net.load_state_dict({"scale": dptrain.zeros(3)}, strict=False)
    with pytest.raises(RuntimeError, match="dtype mismatch for seen"):
        net.load_state_dict({"seen": dptrain.tensor(0.5)}, strict=False)
    with pytest.raises(TypeError, match="Expected state_dict to be dict-like"):
        net.load_state_dict([1])


def test_copies_are_apart_and_keep_ties():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    net[1].weight = net[0].weight
    adopt(net.parameters())
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert twin[1].weight is twin[0].weight
        assert twin[0].weight.tolist() == net[0].weight.tolist()
        with dptrain.no_grad():
            twin[0].weight.fill_(9)
        assert 9 not in net[0].weight
        assert len(list(twin.parameters())) == 3


# ---- containers ------------------------------------------------------------------------------------


def test_sequential_is_a_list_of_named_modules():
    a, b, c = nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)
    net = nn.Sequential(a, b)
    assert net.append(c) is net
    assert len(net) == 3
    assert list(net) == [a, b, c]
    assert net[0] is a
    assert net[-1] is c
    assert type(net[1:]) is nn.Sequential
    assert list(net[1:]._modules) == ["1", "2"]
    net[1] = nn.Tanh()
    assert type(net[1]) is nn.Tanh
    del net[1]
    assert list(net._modules) == ["0", "1"]
    net.insert(1, b)
    assert list(net) == [a, b, c]
    assert net.pop(-1) is c
    assert len(net.extend([c, b])) == 4
    assert list(nn.Sequential(a) + nn.Sequential(b)) == [a, b]
    with pytest.raises(IndexError, match="index 9 is out of range"):
        net[9]
    with pytest.raises(IndexError, match="Index out of range: 9"):
        net.insert(9, a)
    named = nn.Sequential(OrderedDict(first=a, act=b))
    assert named.first is a
    assert named[1] is b
    x = dptrain.randn(4, 2)
    assert named(x).tolist() == b(a(x)).tolist()


def test_module_list_registers_what_it_holds():
    layers = nn.ModuleList([nn.Linear(1, 1) for _ in range(3)])
    assert len(list(layers.parameters())) == 6
    layers += [nn.ReLU()]
    assert len(layers) == 4
    assert len(layers[1:3]) == 2
    layers.insert(0, nn.Tanh())
    assert [type(m).__name__ for m in layers] == ["Tanh", "Linear", "Linear", "Linear", "ReLU"]
    del layers[1:3]
    assert list(layers._modules) == ["0", "1", "2"]
    assert len(layers + nn.ModuleList([nn.ReLU()])) == 4
    with pytest.raises(NotImplementedError):
        layers(1)
