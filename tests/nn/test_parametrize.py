"""Parameters as vectors, and as functions of others: values, gradients, state and text of PyTorch."""

import copy
import pickle
import warnings

import numpy as np
import pytest

import dptrain
from dptrain import nn
from dptrain.nn import utils
from dptrain.nn.utils import parametrizations, parametrize


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="extra `oracle` is not installed")


def rng(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


class Symmetric(nn.Module):
    def forward(self, x):
        return (x + x.t()) / 2

    def right_inverse(self, x):
        return x


class Doubled(nn.Module):
    def forward(self, x):
        return 2 * x


# ---- vectors ---------------------------------------------------------------------------------------


def test_vector_of_parameters_and_back():
    net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    vector = utils.parameters_to_vector(net.parameters())
    assert vector.shape == (13,)
    (vector * vector).sum().backward()
    for p in net.parameters():
        np.testing.assert_allclose(p.grad.numpy(), 2 * p.detach().numpy())
    values = dptrain.arange(13.0)
    utils.vector_to_parameters(values, net.parameters())
    assert utils.parameters_to_vector(net.parameters()).tolist() == list(range(13))
    assert net[0].bias.tolist() == [6, 7, 8]


def test_vectors_and_optimizers_go_together():
    net = nn.Linear(2, 1)
    o = dptrain.optim.SGD(net.parameters(), lr=1.0)
    utils.vector_to_parameters(dptrain.tensor([1.0, 2.0, 3.0]), net.parameters())
    net(dptrain.ones(1, 2)).sum().backward()
    o.step()
    assert utils.parameters_to_vector(net.parameters()).tolist() == [0, 1, 2]


# ---- against PyTorch ---------------------------------------------------------------------------------


def sides(torch):
    for lib in (dptrain, torch):
        conv = lib.nn.Conv2d(2, 3, 2).double()
        with lib.no_grad():
            for i, p in enumerate(conv.parameters()):
                p.copy_(lib.tensor(rng(i, *p.shape)))
        yield lib, conv, lib.tensor(rng(9, 1, 2, 4, 4))


APPLY = {
    "weight_norm": lambda u, m: u.parametrizations.weight_norm(m),
    "weight_norm, dim 1": lambda u, m: u.parametrizations.weight_norm(m, dim=1),
    "weight_norm, all": lambda u, m: u.parametrizations.weight_norm(m, dim=None),
    "weight_norm, bias": lambda u, m: u.parametrizations.weight_norm(m, "bias"),
    "old weight_norm": lambda u, m: u.weight_norm(m),
    "old weight_norm, all": lambda u, m: u.weight_norm(m, dim=None),
    "spectral_norm": lambda u, m: u.parametrizations.spectral_norm(m),
    "spectral_norm, dim 1": lambda u, m: u.parametrizations.spectral_norm(m, dim=1, eps=1e-6),
    "spectral_norm, bias": lambda u, m: u.parametrizations.spectral_norm(m, "bias"),
    "spectral_norm, often": lambda u, m: u.parametrizations.spectral_norm(m, n_power_iterations=3),
    "old spectral_norm": lambda u, m: u.spectral_norm(m),
    "old spectral_norm, often": lambda u, m: u.spectral_norm(m, n_power_iterations=3, dim=1),
}


@pytest.mark.oracle
@pytest.mark.parametrize("name", APPLY)
def test_outputs_gradients_state_and_text_are_those_of_pytorch(name, torch):
    results, states = [], None
    for lib, conv, x in sides(torch):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            APPLY[name](lib.nn.utils, conv)
        if states is not None:  # the random start of power iterations
            conv.load_state_dict({k: lib.tensor(v) for k, v in states.items()})
        else:
            states = {k: v.numpy().copy() for k, v in conv.state_dict().items()}
        held = {}
        for mode in (True, True, False):
            conv.train(mode)
            conv.zero_grad()
            out = conv(x)
            (out * out).sum().backward()
            key = len(held)
            held[key, "out"] = out.detach().numpy()
            for n, p in conv.named_parameters():
                held[key, n] = p.grad.numpy().copy()
        held.update({("state", k): v.numpy().copy() for k, v in conv.state_dict().items()})
        results.append((held, repr(conv)))
    (ours, text), (theirs, expected) = results
    assert list(ours) == list(theirs)
    for key, value in ours.items():
        np.testing.assert_allclose(value, theirs[key], rtol=1e-9, atol=1e-9, err_msg=str(key))
    assert text == expected


@pytest.mark.oracle
def test_several_parametrizations_follow_pytorch(torch):
    results = []
    for lib in (dptrain, torch):

        class Twice(lib.nn.Module):
            def forward(self, x):
                return 2 * x

            def right_inverse(self, x):
                return x / 2

        class Sum(lib.nn.Module):
            def forward(self, a, b):
                return a + b

            def right_inverse(self, x):
                return x * 0.25, x * 0.75

        p = lib.nn.utils.parametrize
        layer = lib.nn.Linear(2, 2).double()
        with lib.no_grad():
            layer.weight.copy_(lib.tensor(rng(0, 2, 2)))
            layer.bias.fill_(1)
        p.register_parametrization(layer, "weight", Twice())
        p.register_parametrization(layer, "weight", Twice())
        p.register_parametrization(layer, "bias", Sum())
        layer.bias = lib.tensor([1.0, 4.0]).double()
        layer(lib.ones(1, 2).double()).sum().backward()
        held = {k: v.numpy().copy() for k, v in layer.state_dict().items()}
        held.update({k + ".grad": v.grad.numpy() for k, v in layer.named_parameters()})
        text = repr(layer)
        p.remove_parametrizations(layer, "bias")
        p.remove_parametrizations(layer, "weight", leave_parametrized=False)
        held.update({"end " + k: v.detach().numpy() for k, v in layer.named_parameters()})
        results.append((held, text, type(layer).__name__))
    (ours, *facts), (theirs, *expected) = results
    assert list(ours) == list(theirs)
    for key, value in ours.items():
        np.testing.assert_allclose(value, theirs[key], rtol=1e-12, err_msg=key)
    assert facts == expected


# ---- our own rules -----------------------------------------------------------------------------------


def test_parametrized_weight_is_trained_and_stays_what_it_is():
    layer = nn.Linear(3, 3)
    plain = type(layer)
    assert parametrize.register_parametrization(layer, "weight", Symmetric()) is layer
    assert parametrize.is_parametrized(layer, "weight")
    assert not parametrize.is_parametrized(layer, "bias")
    assert parametrize.type_before_parametrizations(layer) is plain
    o = dptrain.optim.SGD(layer.parameters(), lr=0.1)
    before = layer.weight.detach().numpy().copy()
    layer(dptrain.rand(4, 3)).sum().backward()
    o.step()
    after = layer.weight.detach().numpy()
    np.testing.assert_array_equal(after, after.T)
    assert (after != before).any()
    parametrize.remove_parametrizations(layer, "weight")
    assert type(layer) is plain
    assert isinstance(layer.weight, nn.Parameter)
    np.testing.assert_array_equal(layer.weight.detach().numpy(), after)


def test_assignment_goes_through_the_inverse():
    layer = parametrize.register_parametrization(nn.Linear(2, 2), "weight", Symmetric())
    layer.weight = dptrain.tensor([[1.0, 3.0], [3.0, 2.0]])
    assert layer.weight.tolist() == [[1, 3], [3, 2]]
    other = parametrize.register_parametrization(nn.Linear(2, 2), "weight", Doubled())
    with pytest.raises(RuntimeError, match="Doubled does not implement right_inverse"):
        other.weight = dptrain.zeros(2, 2)


def test_cache_computes_once():
    layer = parametrize.register_parametrization(nn.Linear(2, 2), "weight", Doubled())
    with parametrize.cached():
        assert layer.weight is layer.weight
    assert layer.weight is not layer.weight


def test_copies_are_independent_and_pickling_is_refused():
    layer = parametrize.register_parametrization(nn.Linear(2, 2), "weight", Doubled())
    twin = copy.deepcopy(layer)
    assert twin.weight.tolist() == layer.weight.tolist()
    parametrize.register_parametrization(twin, "bias", Doubled())
    assert isinstance(layer.bias, nn.Parameter)
    with dptrain.no_grad():
        twin.parametrizations.weight.original.zero_()
    assert layer.weight.tolist() != twin.weight.tolist()
    with pytest.raises(RuntimeError, match="only supported through state_dict"):
        pickle.dumps(layer)


def test_buffers_can_be_parametrized():
    layer = nn.Linear(2, 2)
    layer.register_buffer("scale", dptrain.tensor([3.0]))
    parametrize.register_parametrization(layer, "scale", Doubled())
    assert layer.scale.tolist() == [6.0]
    assert "parametrizations.scale.original" in dict(layer.named_buffers())


@pytest.mark.parametrize(
    ("norm", "remove"),
    [
        (utils.weight_norm, utils.remove_weight_norm),
        (utils.spectral_norm, utils.remove_spectral_norm),
    ],
)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_old_norms_are_removed_with_the_weight_they_gave(norm, remove):
    layer = nn.Linear(3, 2)
    names = [n for n, _ in layer.named_parameters()]
    assert norm(layer) is layer
    with pytest.raises(RuntimeError, match="Cannot register two"):
        norm(layer)
    layer.eval()
    out = layer(dptrain.ones(1, 3)).tolist()
    assert remove(layer) is layer
    assert sorted(n for n, _ in layer.named_parameters()) == sorted(names)
    np.testing.assert_allclose(layer(dptrain.ones(1, 3)).tolist(), out, rtol=1e-6)
    with pytest.raises(ValueError, match="not found in"):
        remove(layer)


def test_spectral_norm_has_largest_singular_value_one():
    layer = parametrizations.spectral_norm(nn.Linear(5, 4).double(), n_power_iterations=200)
    assert np.linalg.norm(layer.weight.detach().numpy(), 2) == pytest.approx(1, abs=1e-6)


def test_backward_through_two_forwards_of_a_spectral_norm():
    for layer in (
        parametrizations.spectral_norm(nn.Linear(3, 2)),
        utils.spectral_norm(nn.Linear(3, 2)),
    ):
        (layer(dptrain.ones(1, 3)) - layer(dptrain.rand(1, 3))).sum().backward()
        assert next(layer.parameters()).grad is not None


def test_old_weight_norm_is_deprecated():
    with pytest.warns(FutureWarning, match="deprecated in favor of"):
        utils.weight_norm(nn.Linear(2, 2))


class Wrong(nn.Module):
    def __init__(self, result, inverse=None):
        super().__init__()
        self.result = result
        if inverse is not None:
            self.right_inverse = inverse

    def forward(self, *args):
        return self.result


LAYER = nn.Linear(2, 2)


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (lambda: utils.vector_to_parameters([1.0], []), TypeError, "expected dptrain.Tensor"),
        (
            lambda: utils.vector_to_parameters(dptrain.ones(3), LAYER.parameters()),
            RuntimeError,
            "expected a vector of 6 elements",
        ),
        (lambda: utils.parameters_to_vector([]), RuntimeError, "non-empty list"),
        (lambda: utils.parameters_to_vector([3]), TypeError, "expected tensors.* int"),
        (
            lambda: parametrize.register_parametrization(LAYER, "nothing", Doubled()),
            ValueError,
            "does not have a parameter, a buffer, or a parametrized element with name 'nothing'",
        ),
        (
            lambda: parametrize.register_parametrization(LAYER, "weight", Wrong(3)),
            ValueError,
            "must return a tensor. Got int",
        ),
        (
            lambda: parametrize.register_parametrization(LAYER, "weight", Wrong(dptrain.ones(2))),
            ValueError,
            "may not change the shape of the tensor",
        ),
        (
            lambda: parametrize.register_parametrization(
                LAYER, "weight", Wrong(dptrain.ones(2, 2).double())
            ),
            ValueError,
            "may not change the dtype of the tensor",
        ),
        (
            lambda: parametrize.register_parametrization(LAYER, "bias", Wrong(3, lambda x: 3)),
            ValueError,
            "'right_inverse' must return a Tensor or a Sequence",
        ),
        (
            lambda: parametrize.remove_parametrizations(LAYER, "weight"),
            ValueError,
            "does not have a parametrization on weight",
        ),
        (lambda: parametrizations.spectral_norm(LAYER, "no"), ValueError, "no parameter or buffer"),
        (lambda: parametrizations.spectral_norm(LAYER, dim=5), IndexError, "Dimension out of"),
        (
            lambda: utils.spectral_norm(LAYER, n_power_iterations=0),
            ValueError,
            "Expected n_power_iterations to be positive",
        ),
        (lambda: utils.spectral_norm(LAYER, "no"), KeyError, "no"),
        (
            lambda: parametrize.remove_parametrizations(
                parametrizations.weight_norm(nn.Linear(2, 2)), "weight", leave_parametrized=False
            ),
            ValueError,
            "parametrized in terms of a sequence",
        ),
    ],
)
def test_what_has_no_meaning_is_refused(call, kind, words):
    with pytest.raises(kind, match=words):
        call()
    assert [n for n, _ in LAYER.named_parameters()] == ["weight", "bias"]


def test_parametrizations_go_to_another_module_with_their_originals():
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    parametrize.register_parametrization(first, "weight", Symmetric())
    parametrizations.weight_norm(first, "bias")
    given = parametrize.transfer_parametrizations_and_params(first, second, "weight")
    assert given is second
    assert second.weight.tolist() == first.weight.tolist()
    assert second.parametrizations.weight.original is first.parametrizations.weight.original
    assert isinstance(second.bias, nn.Parameter)
    parametrize.transfer_parametrizations_and_params(first, second, "bias")
    assert second.bias.tolist() == first.bias.tolist()
    assert parametrize.transfer_parametrizations_and_params(nn.Linear(1, 1), second) is second
    empty = parametrize.transfer_parametrizations_and_params(first, nn.Module())
    assert empty.weight.tolist() == first.weight.tolist()


@pytest.mark.oracle
def test_every_name_of_pytorch_is_there(torch):
    assert [n for n in torch.nn.utils.parametrize.__all__ if not hasattr(parametrize, n)] == []
    assert [
        n for n in torch.nn.utils.parametrizations.__all__ if not hasattr(parametrizations, n)
    ] == []
