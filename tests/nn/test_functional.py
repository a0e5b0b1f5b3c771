"""Functions and layers: closed forms, finite differences, errors."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import dptrain
import dptrain.nn.functional as F
from dptrain import nn
from dptrain.autograd import gradcheck


def draw(*shape, seed=0, grad=True):
    values = np.random.default_rng(seed).standard_normal(shape)
    return dptrain.tensor(values, requires_grad=grad)


def classes(c, *shape, seed=0):
    return dptrain.tensor(np.random.default_rng(seed).integers(0, c, shape))


def log_softmax(x, axis=1):
    x = x - x.max(axis=axis, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=axis, keepdims=True))


# ---- derivatives -----------------------------------------------------------------------------------

WEIGHT = dptrain.tensor([0.5, 2.0, 0.0, 1.0], dtype=dptrain.float64)
IGNORING = dptrain.tensor([0, -100, 3])
PROBABILITIES = dptrain.tensor(
    np.random.default_rng(5).dirichlet(np.ones(4), 3), dtype=dptrain.float64
)

DERIVATIVES = {
    "linear": (F.linear, lambda: [draw(2, 3, 4), draw(5, 4, seed=1), draw(5, seed=2)]),
    "linear without bias": (F.linear, lambda: [draw(4), draw(5, 4, seed=1)]),
    "conv2d": (
        lambda x, w, b: F.conv2d(x, w, b, stride=2, padding=1),
        lambda: [draw(2, 2, 5, 5), draw(3, 2, 3, 3, seed=1), draw(3, seed=2)],
    ),
    "max_pool2d": (lambda x: F.max_pool2d(x, 2), lambda: [draw(2, 2, 4, 4)]),
    "avg_pool2d": (lambda x: F.avg_pool2d(x, 2, padding=1), lambda: [draw(2, 2, 4, 4)]),
    "relu": (F.relu, lambda: [draw(3, 4)]),
    "relu in place": (lambda x: F.relu(x * 1, inplace=True), lambda: [draw(3, 4)]),
    "softmax": (lambda x: F.softmax(x, 1), lambda: [draw(3, 4)]),
    "log_softmax": (lambda x: F.log_softmax(x, 0), lambda: [draw(3, 4)]),
    "mse": (F.mse_loss, lambda: [draw(3, 4), draw(3, 4, seed=1)]),
    "nll": (
        lambda x: F.nll_loss(x, IGNORING, WEIGHT),
        lambda: [draw(3, 4)],
    ),
    "cross entropy": (lambda x: F.cross_entropy(x, classes(4, 3)), lambda: [draw(3, 4)]),
    "cross entropy sum": (
        lambda x: F.cross_entropy(x, classes(4, 3), reduction="sum"),
        lambda: [draw(3, 4)],
    ),
    "cross entropy of images": (
        lambda x: F.cross_entropy(x, classes(4, 3, 2, 2), reduction="none"),
        lambda: [draw(3, 4, 2, 2)],
    ),
    "cross entropy smoothed": (
        lambda x: F.cross_entropy(x, IGNORING, WEIGHT, label_smoothing=0.2),
        lambda: [draw(3, 4)],
    ),
    "cross entropy of probabilities": (
        lambda x, t: F.cross_entropy(x, t, WEIGHT, label_smoothing=0.1),
        lambda: [draw(3, 4), PROBABILITIES.clone().requires_grad_()],
    ),
}


@pytest.mark.parametrize(("function", "inputs"), DERIVATIVES.values(), ids=DERIVATIVES)
def test_derivatives_agree_with_finite_differences(function, inputs):
    gradcheck(function, inputs())


# ---- losses ----------------------------------------------------------------------------------------


@given(st.integers(1, 6), st.integers(1, 5), st.sampled_from(["mean", "sum"]))
def test_fused_cross_entropy_is_the_composed_one(n, c, reduction):
    x, target = draw(n, c, seed=n), classes(c, n, seed=c)
    y = draw(n, c, seed=n)
    fused = F.cross_entropy(x, target, reduction=reduction)
    composed = F.nll_loss(F.log_softmax(y, 1), target, reduction=reduction)
    assert fused.item() == pytest.approx(composed.item(), rel=1e-12)
    fused.backward()
    composed.backward()
    np.testing.assert_allclose(x.grad.numpy(), y.grad.numpy(), rtol=1e-10, atol=1e-14)


def test_cross_entropy_is_the_mean_of_minus_log_probabilities():
    x, target = draw(5, 3), classes(3, 5)
    logp = log_softmax(x.detach().numpy())[np.arange(5), target.numpy()]
    assert F.cross_entropy(x, target).item() == pytest.approx(-logp.mean())
    assert F.cross_entropy(x, target, reduction="sum").item() == pytest.approx(-logp.sum())
    np.testing.assert_allclose(F.cross_entropy(x, target, reduction="none").detach().numpy(), -logp)


def test_ignored_positions_do_not_count():
    x, target = draw(3, 4), dptrain.tensor([1, 2, 3])
    ignoring = dptrain.tensor([1, -100, 3])
    kept = dptrain.tensor([0, 2])
    assert F.cross_entropy(x, ignoring).item() == pytest.approx(
        F.cross_entropy(x[kept], target[kept]).item()
    )
    assert F.cross_entropy(x, target, ignore_index=2).item() == pytest.approx(
        F.cross_entropy(x, ignoring).item()
    )
    F.cross_entropy(x, ignoring).backward()
    assert not x.grad.numpy()[1].any()
    assert math.isnan(F.cross_entropy(x, dptrain.tensor([-100] * 3)).item())


def test_class_probabilities_that_are_certain_equal_class_indices():
    x, target = draw(4, 3), classes(3, 4)
    certain = F.one_hot(target, 3).double()
    for smoothing in (0.0, 0.3):
        assert F.cross_entropy(x, certain, label_smoothing=smoothing).item() == pytest.approx(
            F.cross_entropy(x, target, label_smoothing=smoothing).item()
        )


def test_one_sample_without_batch_equals_a_batch_of_one():
    x, target = draw(4), dptrain.tensor(2)
    for kwargs in ({}, {"label_smoothing": 0.1}, {"reduction": "none"}, {"weight": WEIGHT + 1}):
        one = F.cross_entropy(x, target, **kwargs)
        batch = F.cross_entropy(x.unsqueeze(0), target.unsqueeze(0), **kwargs)
        assert one.shape == ()
        assert one.item() == pytest.approx(batch.item())


def test_loss_of_an_empty_batch_is_nan_or_zero():
    x, target = draw(0, 3), classes(3, 0)
    assert math.isnan(F.cross_entropy(x, target).item())
    assert F.cross_entropy(x, target, reduction="sum").item() == 0


def test_loss_modules_pass_their_options_on():
    x, target = draw(3, 4), IGNORING
    weight = WEIGHT + 1
    loss = nn.CrossEntropyLoss(weight, ignore_index=3, reduction="sum", label_smoothing=0.1)
    options = {"ignore_index": 3, "reduction": "sum", "label_smoothing": 0.1}
    expected = F.cross_entropy(x, dptrain.tensor([0, 1, 3]), weight, **options)
    assert loss(x, dptrain.tensor([0, 1, 3])).item() == expected.item()
    assert list(loss.state_dict()) == ["weight"]
    assert nn.NLLLoss(weight)(x, target).item() == F.nll_loss(x, target, weight).item()
    assert nn.MSELoss(reduction="sum")(x, x * 2).item() == pytest.approx(
        (x.detach().numpy() ** 2).sum()
    )


@pytest.mark.parametrize("loss", [F.cross_entropy, F.nll_loss])
def test_targets_that_do_not_fit_are_refused(loss):
    x = draw(3, 4)
    with pytest.raises(
        ValueError, match=r"Expected input batch_size \(3\) to match target batch_size \(4\)\."
    ):
        loss(x, classes(4, 4))
    with pytest.raises(RuntimeError, match=r"expected scalar type Long .* found dptrain.int32"):
        loss(x, classes(4, 3).int())
    with pytest.raises(RuntimeError, match=r"Expected target size \[3\], got \[3, 2\]"):
        loss(x, classes(4, 3, 2))
    with pytest.raises(IndexError, match="Target 4 is out of bounds for 4 classes"):
        loss(x, dptrain.tensor([0, 4, 1]))
    with pytest.raises(IndexError, match="Target -1 is out of bounds"):
        loss(x, dptrain.tensor([0, -1, 1]))
    with pytest.raises(ValueError, match="most is not a valid value for reduction"):
        loss(x, classes(4, 3), reduction="most")
    with pytest.raises(RuntimeError, match="for all 4 classes or no classes"):
        loss(x, classes(4, 3), weight=WEIGHT[:3])
    with pytest.raises(RuntimeError, match=r"expected scalar type dptrain.float64 for weight"):
        loss(x, classes(4, 3), weight=WEIGHT.float())
    with pytest.raises(ValueError, match="1D target must have size 1, but got target size: 3"):
        loss(draw(4), classes(4, 3))
    assert loss(draw(4), classes(4, 1)).shape == ()
    with pytest.raises(ValueError if loss is F.nll_loss else RuntimeError, match="1D or more"):
        loss(draw(), classes(4, 3))
    with pytest.raises(RuntimeError, match=r"not implemented for input of dptrain\.int64"):
        loss(x.long(), classes(4, 3))
    with pytest.raises(
        TypeError, match=r"argument 'target' \(position 2\) must be Tensor, not list"
    ):
        loss(x, [0, 1, 2])


@pytest.mark.parametrize("sizes", [(3.5, 2), (2, "3")])
def test_layer_sizes_must_be_integers(sizes):
    with pytest.raises(
        TypeError, match=r"Linear\(\): argument '\w+_features' \(position \d\) must be int"
    ):
        nn.Linear(*sizes)


def test_options_of_cross_entropy_that_do_not_fit_are_refused():
    x = draw(3, 4)
    with pytest.raises(RuntimeError, match="label_smoothing must be between"):
        F.cross_entropy(x, classes(4, 3), label_smoothing=1.5)
    with pytest.raises(ValueError, match="to match target batch_size"):
        F.cross_entropy(x, PROBABILITIES[:2])
    with pytest.raises(RuntimeError, match=r"shape \[3, 4\], got \[3\]"):
        F.cross_entropy(x, draw(3))
    with pytest.raises(RuntimeError, match="ignore_index is not supported for floating point"):
        F.cross_entropy(x, PROBABILITIES, ignore_index=1)


def test_mean_squared_error_warns_of_broadcasting():
    with pytest.warns(UserWarning, match="Using a target size"):
        F.mse_loss(draw(3, 1), draw(3))


def test_one_hot_marks_one_class_in_each_row():
    t = dptrain.tensor([[0, 2], [1, 0]])
    assert F.one_hot(t).tolist() == [[[1, 0, 0], [0, 0, 1]], [[0, 1, 0], [1, 0, 0]]]
    assert F.one_hot(t, 5).shape == (2, 2, 5)
    assert F.one_hot(t[:0], 2).shape == (0, 2, 2)
    for bad, n, message in [
        (t, 2, "smaller than num_classes"),
        (t - 1, -1, "must be non-negative"),
        (t, 0, "num_classes should be positive"),
        (t[:0], -1, "Can not infer"),
        (t.int(), -1, "only applicable to index tensor"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            F.one_hot(bad, n)


# ---- dropout and activations -----------------------------------------------------------------------


def test_dropout_scales_what_it_keeps_and_drops_the_right_share():
    dptrain.manual_seed(0)
    x = dptrain.ones(100, 100)
    y = F.dropout(x, 0.25).numpy()
    kept = y != 0
    np.testing.assert_array_equal(y[kept], np.float32(1 / 0.75))
    # Four standard deviations of a binomial share over 10,000 draws.
    assert abs(kept.mean() - 0.75) < 4 * math.sqrt(0.75 * 0.25 / 1e4)


def test_dropout_passes_gradients_where_it_kept():
    x = dptrain.ones(50, requires_grad=True)
    y = F.dropout(x, 0.5)
    y.sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), y.detach().numpy())


def test_dropout_outside_of_training_is_the_identity():
    x = draw(5)
    assert F.dropout(x, 0.5, training=False) is x
    assert F.dropout(x, 0.0) is x
    assert nn.Dropout(0.9).eval()(x) is x
    assert not F.dropout(x, 1.0).detach().numpy().any()


def test_dropout_in_place_changes_its_input():
    x = draw(50) * 1
    y = F.dropout(x, 0.5, inplace=True)
    assert y is x
    assert 0 in y.detach().numpy()
    with pytest.raises(RuntimeError, match="leaf Variable that requires grad"):
        F.dropout(draw(5), 0.5, inplace=True)


@pytest.mark.parametrize("p", [-0.1, 1.1, math.nan])
def test_dropout_probability_is_checked(p):
    with pytest.raises(ValueError, match="dropout probability has to be between 0 and 1"):
        F.dropout(draw(3), p)
    with pytest.raises(ValueError, match="dropout probability has to be between 0 and 1"):
        nn.Dropout(p)


def test_relu_in_place_changes_its_input():
    x = dptrain.tensor([-1.0, 2.0])
    assert nn.ReLU(inplace=True)(x) is x
    assert x.tolist() == [0, 2]
    assert F.relu_(dptrain.tensor([-3.0])).tolist() == [0]
    with pytest.raises(RuntimeError, match="leaf Variable that requires grad"):
        F.relu(draw(2), inplace=True)


def test_activation_layers_are_their_functions():
    x = draw(3, 4)
    v = x.detach().numpy()
    for layer, expected in [
        (nn.ReLU(), np.maximum(v, 0)),
        (nn.Sigmoid(), 1 / (1 + np.exp(-v))),
        (nn.Tanh(), np.tanh(v)),
        (nn.LogSoftmax(dim=1), log_softmax(v)),
        (nn.Softmax(dim=0), np.exp(log_softmax(v, 0))),
    ]:
        np.testing.assert_allclose(layer(x).detach().numpy(), expected, rtol=1e-12)
    for layer, name in ((nn.Softmax(), "softmax"), (nn.Softmin(), "softmin")):
        with pytest.warns(UserWarning, match=f"Implicit dimension choice for {name}") as caught:
            rows = layer(x).sum(1)
        np.testing.assert_allclose(rows.detach().numpy(), 1)  # 2-d: along 1
        assert caught[0].filename == __file__


# ---- layers ----------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 3), max_size=3), st.integers(0, 4), st.integers(1, 4))
def test_linear_layer_is_x_times_w_transposed_plus_b(lead, features, out):
    weight, bias = draw(out, features, seed=1), draw(out, seed=2)
    x = draw(*lead, features)
    got = F.linear(x, weight, bias).detach().numpy()
    w, b = weight.detach().numpy(), bias.detach().numpy()
    np.testing.assert_allclose(got, x.detach().numpy() @ w.T + b, atol=1e-12)


def test_layers_keep_their_shapes():
    x = dptrain.randn(2, 3, 8, 8)
    assert nn.Conv2d(3, 6, 3, stride=2, padding=1)(x).shape == (2, 6, 4, 4)
    assert nn.Conv2d(3, 6, (1, 4), padding="same", bias=False)(x).shape == (2, 6, 8, 8)
    assert nn.Conv2d(3, 6, 3, groups=3)(x[0]).shape == (6, 6, 6)
    assert nn.MaxPool2d(2)(x).shape == (2, 3, 4, 4)
    assert nn.MaxPool2d(3, stride=2, ceil_mode=True)(x).shape == (2, 3, 4, 4)
    assert nn.AvgPool2d(2, stride=1)(x).shape == (2, 3, 7, 7)
    assert nn.Flatten()(x).shape == (2, 192)
    assert nn.Flatten(2)(x).shape == (2, 3, 64)
    assert nn.Flatten(0, 1)(x).shape == (6, 8, 8)
    assert nn.Identity(1, a=2)(x) is x
    assert nn.Linear(8, 5, dtype=dptrain.float64).weight.dtype is dptrain.float64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": 0}, "groups must be a positive integer"),
        ({"groups": 2}, "in_channels must be divisible by groups"),
        ({"in_channels": 4, "groups": 4}, "out_channels must be divisible by groups"),
        ({"padding": "some"}, "Invalid padding string 'some'"),
        ({"padding": "same", "stride": 2}, "not supported for strided convolutions"),
        ({"padding_mode": "mirror"}, "padding_mode must be one of"),
    ],
)
def test_convolution_options_that_do_not_fit_are_refused(options, message):
    arguments = {"in_channels": 3, "out_channels": 6, "kernel_size": 3, **options}
    with pytest.raises(ValueError, match=message):
        nn.Conv2d(**arguments)


def test_wrappers_of_parallel_are_where_pytorch_has_them():
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        nn.parallel.Nothing  # noqa: B018
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        nn.Nothing  # noqa: B018


@pytest.mark.oracle
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weight", [None, [1.0, 0.0, 2.0]])
@pytest.mark.parametrize("target", [[1, 1], [1, 2], [0, 0]])
def test_positions_that_do_not_count_get_no_gradient(target, weight, label_smoothing):
    torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
    found = []
    for lib in (dptrain, torch):
        x = lib.tensor([[0.5, -1.0, 2.0], [1.0, 0.0, -0.5]], dtype=lib.float64, requires_grad=True)
        loss = lib.nn.functional.cross_entropy(
            x,
            lib.tensor(target),
            None if weight is None else lib.tensor(weight, dtype=lib.float64),
            ignore_index=target[0],
            label_smoothing=label_smoothing,
        )
        loss.backward()
        found.append([loss.item(), *x.grad.flatten().tolist()])
    np.testing.assert_allclose(found[0], found[1], rtol=1e-12, atol=1e-12)


@pytest.mark.oracle
@pytest.mark.parametrize("sizes", [(7,), (3, 4), (2, 3, 2)])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_cross_entropy_at_every_place_of_an_image_has_both_derivatives(sizes, last, reduction):
    torch = pytest.importorskip("torch", reason="compares with PyTorch")
    rng = np.random.default_rng(len(sizes))
    logits, target = rng.standard_normal((2, 5, *sizes)), rng.integers(0, 5, (2, *sizes))
    if last:
        logits = np.moveaxis(np.ascontiguousarray(np.moveaxis(logits, 1, -1)), -1, 1)
    along = rng.standard_normal(logits.shape)
    found = []
    for lib in (torch, dptrain):
        x = lib.tensor(logits, requires_grad=True)
        loss = lib.nn.functional.cross_entropy(x, lib.tensor(target), reduction=reduction)
        (first,) = lib.autograd.grad(loss, x, create_graph=True)
        (second,) = lib.autograd.grad((first * lib.tensor(along)).sum(), x)
        found.append([v.detach().numpy() for v in (loss, first, second)])
    for got, expected in zip(*reversed(found), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.oracle
@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
@pytest.mark.parametrize("dim", [0, 1, 2, -1])
def test_softmax_along_any_dimension_of_images_in_any_order(name, dim):
    torch = pytest.importorskip("torch", reason="compares with PyTorch")
    rng = np.random.default_rng(3)
    values, grad = rng.standard_normal((2, 2, 3, 5, 4))
    for order in ((0, 1, 2, 3), (0, 2, 3, 1), (3, 2, 1, 0)):
        found = []
        for lib in (torch, dptrain):
            back = tuple(int(d) for d in np.argsort(order))
            lying = np.ascontiguousarray(values.transpose(order)).transpose(back)
            x = lib.tensor(lying, requires_grad=True)
            out = getattr(lib.nn.functional, name)(x, dim)
            out.backward(lib.tensor(grad))
            found.append((out.detach().numpy(), x.grad.numpy()))
        for got, expected in zip(*reversed(found), strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-14)
