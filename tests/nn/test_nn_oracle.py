"""Modules and functions against PyTorch: text, keys, outputs, gradients, reports, errors."""

import itertools
import re

import numpy as np
import pytest

import dptrain
import dptrain.nn.functional as F
from dptrain import nn

torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
pytestmark = pytest.mark.oracle

LIBRARIES = (dptrain, torch)


def networks():
    """The same modules built by both libraries."""

    def build(lib):
        n = lib.nn
        shared = n.Linear(4, 4)
        return {
            "linear": n.Linear(3, 4),
            "no bias": n.Linear(3, 4, bias=False),
            "conv": n.Conv2d(2, 4, 3),
            "conv options": n.Conv2d(
                4, 8, (3, 2), stride=2, padding=(1, 0), dilation=2, groups=2, bias=False
            ),
            "conv same": n.Conv2d(2, 4, 3, padding="same"),
            "pools": n.Sequential(
                n.MaxPool2d(2), n.MaxPool2d((3, 2), stride=1, padding=1), n.AvgPool2d(2)
            ),
            "activations": n.Sequential(
                n.ReLU(),
                n.ReLU(inplace=True),
                n.Sigmoid(),
                n.Tanh(),
                n.Softmax(dim=1),
                n.LogSoftmax(dim=-1),
            ),
            "small ones": n.Sequential(n.Dropout(0.3), n.Flatten(), n.Identity()),
            "losses": n.ModuleList(
                [
                    n.CrossEntropyLoss(),
                    n.NLLLoss(),
                    n.MSELoss(),
                    n.CrossEntropyLoss(reduction="sum"),
                ]
            ),
            "list": n.ModuleList(
                [n.Linear(1, 1), n.Linear(1, 1), n.ReLU(), n.Sequential(n.ReLU(), n.ReLU())]
            ),
            "empty": n.Sequential(),
            "empty list": n.ModuleList(),
            "module": n.Module(),
            "nested": n.Sequential(
                n.Sequential(n.Conv2d(1, 2, 1), n.Sequential(n.ReLU())), n.Linear(2, 2)
            ),
            "tied": n.Sequential(shared, n.ReLU(), shared),
        }

    ours, theirs = build(dptrain), build(torch)
    return [pytest.param(ours[name], theirs[name], id=name) for name in ours]


@pytest.mark.parametrize(("ours", "theirs"), networks())
def test_text_and_names_are_those_of_pytorch(ours, theirs):
    assert repr(ours) == repr(theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for walk in ("named_parameters", "named_modules", "named_buffers", "named_children"):
        assert [n for n, _ in getattr(ours, walk)()] == [n for n, _ in getattr(theirs, walk)()]
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert tuple(p.shape) == tuple(q.shape)


def same_network():
    nets = []
    for lib in LIBRARIES:
        n = lib.nn
        nets.append(
            n.Sequential(
                n.Conv2d(2, 4, 3, padding=1),
                n.ReLU(),
                n.MaxPool2d(2),
                n.Conv2d(4, 6, (2, 3), stride=2, groups=2, bias=False),
                n.Tanh(),
                n.AvgPool2d(2, stride=1, padding=1),
                n.Flatten(),
                n.Linear(54, 5),
                n.Sigmoid(),
                n.Linear(5, 3),
            ).double()
        )
    ours, theirs = nets
    theirs.load_state_dict({k: torch.tensor(v.numpy()) for k, v in ours.state_dict().items()})
    return ours, theirs


def test_outputs_and_gradients_of_a_network():
    ours, theirs = same_network()
    x = np.random.default_rng(0).standard_normal((4, 2, 8, 10))
    y = np.random.default_rng(1).integers(0, 3, 4)
    a = dptrain.tensor(x, requires_grad=True)
    b = torch.tensor(x, requires_grad=True)
    out, expected = ours(a), theirs(b)
    np.testing.assert_allclose(out.detach().numpy(), expected.detach().numpy(), rtol=1e-10)
    nn.CrossEntropyLoss()(out, dptrain.tensor(y)).backward()
    torch.nn.CrossEntropyLoss()(expected, torch.tensor(y)).backward()
    np.testing.assert_allclose(a.grad.numpy(), b.grad.numpy(), rtol=1e-9, atol=1e-14)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        np.testing.assert_allclose(p.grad.numpy(), q.grad.numpy(), rtol=1e-9, atol=1e-14)


LOGITS = {
    "batch": ((5, 4), (5,)),
    "one": ((4,), ()),
    "images": ((2, 4, 3, 2), (2, 3, 2)),
    "sequence": ((3, 4, 6), (3, 6)),
}
OPTIONS = list(
    itertools.product(
        LOGITS, (False, True), (-100, 2), ("mean", "sum", "none"), (0.0, 0.2), (False, True)
    )
)


@pytest.mark.parametrize(
    ("shapes", "weighted", "ignore", "reduction", "smoothing", "soft"),
    [o for o in OPTIONS if not (o[5] and o[2] >= 0)],
)
def test_cross_entropy(shapes, weighted, ignore, reduction, smoothing, soft):
    rng = np.random.default_rng(3)
    x_shape, t_shape = LOGITS[shapes]
    x = rng.standard_normal(x_shape)
    t = np.asarray(rng.integers(0, 4, t_shape))
    if soft:
        t = rng.random(x_shape)
    elif t.size > 1:
        t.flat[1] = ignore
    w = rng.random(4) + 0.1 if weighted else None
    results = []
    for lib in LIBRARIES:
        a = lib.tensor(x, requires_grad=True)
        weight = None if w is None else lib.tensor(w)
        loss = lib.nn.CrossEntropyLoss(weight, ignore_index=ignore, reduction=reduction)
        loss.label_smoothing = smoothing
        out = loss(a, lib.tensor(t))
        out.sum().backward()
        results.append((out.detach().numpy(), a.grad.numpy()))
    for got, expected in zip(*results, strict=True):
        assert got.shape == expected.shape
        np.testing.assert_allclose(got, expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize(
    ("shapes", "weighted", "ignore", "reduction"),
    list(itertools.product(LOGITS, (False, True), (-100, 1), ("mean", "sum", "none"))),
)
def test_nll_loss(shapes, weighted, ignore, reduction):
    rng = np.random.default_rng(4)
    x_shape, t_shape = LOGITS[shapes]
    x, t = rng.standard_normal(x_shape), np.asarray(rng.integers(0, 4, t_shape))
    w = rng.random(4) if weighted else None
    results = []
    for lib in LIBRARIES:
        weight = None if w is None else lib.tensor(w)
        loss = lib.nn.NLLLoss(weight, ignore_index=ignore, reduction=reduction)
        results.append(loss(lib.tensor(x), lib.tensor(t)).numpy())
    assert results[0].shape == results[1].shape
    np.testing.assert_allclose(*results, rtol=1e-12)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_mse_loss(reduction):
    x, t = np.random.default_rng(0).standard_normal((2, 3, 4))
    got, expected = (
        lib.nn.MSELoss(reduction=reduction)(lib.tensor(x), lib.tensor(t)).numpy()
        for lib in LIBRARIES
    )
    np.testing.assert_allclose(got, expected, rtol=1e-12)


ERRORS = [  # the call, and whether the words are PyTorch's too
    (lambda lib, f: f.cross_entropy(lib.zeros(3, 4), lib.zeros(4).long()), True),
    (lambda lib, f: f.nll_loss(lib.zeros(3, 4), lib.zeros(4).long()), True),
    (lambda lib, f: f.cross_entropy(lib.zeros(3, 4), lib.zeros(3).long() + 4), False),
    (lambda lib, f: f.cross_entropy(lib.zeros(3, 4), lib.zeros(3).int()), False),
    (lambda lib, f: f.cross_entropy(lib.zeros(3, 4), lib.zeros(3)), False),
    (
        lambda lib, f: f.cross_entropy(lib.zeros(3, 4), lib.zeros(3).long(), weight=lib.zeros(3)),
        False,
    ),
    (
        lambda lib, f: f.cross_entropy(lib.zeros(3, 4), lib.zeros(3).long(), reduction="most"),
        True,
    ),
    (lambda lib, f: f.dropout(lib.zeros(3), p=1.5), True),
    (lambda lib, f: lib.nn.Dropout(-1), True),
    (lambda lib, f: f.linear(lib.zeros(3, 4), lib.zeros(5, 3)), False),
    (lambda lib, f: lib.nn.Conv2d(3, 4, 3, groups=2), False),
    (lambda lib, f: f.one_hot(lib.zeros(3).long() - 1), True),
    (lambda lib, f: f.one_hot(lib.zeros(3).long(), 0), False),
    (lambda lib, f: lib.nn.Module().to(lib.int64), False),
    (lambda lib, f: lib.nn.Sequential(3), False),
    (lambda lib, f: lib.nn.Module().train(3), True),
    (lambda lib, f: lib.nn.Linear(1, 1).get_submodule("x"), True),
]


def raised_by(call, *args):
    try:
        call(*args)
    except Exception as error:
        return error
    return None


@pytest.mark.parametrize(("call", "same_words"), ERRORS)
def test_errors_are_of_the_kind_of_pytorch(call, same_words):
    ours, theirs = raised_by(call, dptrain, F), raised_by(call, torch, torch.nn.functional)
    assert theirs is not None
    assert type(ours) is type(theirs)
    if same_words:
        assert str(theirs) in str(ours)  # and the name of the function


def test_load_report_is_that_of_pytorch():
    reports, results = [], []
    for lib in LIBRARIES:
        net = lib.nn.Sequential(lib.nn.Linear(2, 3), lib.nn.Linear(3, 1))
        state = {"0.weight": lib.zeros(3, 3), "1.weight": lib.zeros(1, 3), "x": lib.zeros(1)}
        with pytest.raises(RuntimeError) as caught:
            net.load_state_dict(state)
        reports.append(re.sub(r"(torch|dptrain)\.Size", "Size", str(caught.value)))
        del state["0.weight"]
        results.append(net.load_state_dict(state, strict=False))
    assert reports[0] == reports[1]
    assert str(results[0]) == str(results[1])
    assert tuple(results[0]) == tuple(results[1])


def test_gradient_clipping():
    grads = [np.random.default_rng(i).standard_normal(s) * 10 for i, s in enumerate([(3, 4), (5,)])]
    for order, limit in itertools.product((1.0, 2.0, 3.0, float("inf")), (0.1, 1e6)):
        ends = []
        for lib in LIBRARIES:
            params = [lib.nn.Parameter(lib.tensor(np.zeros(g.shape))) for g in grads]
            for p, g in zip(params, grads, strict=True):
                p.grad = lib.tensor(g)
            total = lib.nn.utils.clip_grad_norm_(params, limit, norm_type=order)
            ends.append([total.numpy(), *(p.grad.numpy() for p in params)])
        for got, expected in zip(*ends, strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-12)


@pytest.mark.parametrize(
    "make",
    [
        lambda lib: lib.nn.Linear(64, 500),
        lambda lib: lib.nn.Conv2d(8, 200, 3, groups=2),
    ],
    ids=["linear", "conv"],
)
def test_initial_values_have_the_spread_of_pytorch(make):
    torch.manual_seed(0)
    dptrain.manual_seed(0)
    for p, q in zip(make(dptrain).parameters(), make(torch).parameters(), strict=True):
        a, b = np.sort(p.detach().numpy().ravel()), np.sort(q.detach().numpy().ravel())
        # Largest distance of the two empirical distributions (Kolmogorov-Smirnov, 1 in 10^5).
        grid = np.concatenate([a, b])
        gap = np.abs(np.searchsorted(a, grid, "right") - np.searchsorted(b, grid, "right")).max()
        assert gap / a.size < 2.47 * np.sqrt(2 / a.size)
