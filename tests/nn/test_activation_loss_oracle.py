"""Activation and loss layers, and what samples of functions cannot show, against PyTorch."""

import copy

import numpy as np
import pytest

import dptrain
import dptrain.nn.functional as F
from dptrain.autograd import gradcheck

torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
pytestmark = pytest.mark.oracle

LIBRARIES = (dptrain, torch)

ACTIVATIONS = {
    "Threshold": lambda n: n.Threshold(0.1, 20),
    "Hardtanh": lambda n: n.Hardtanh(-0.5, 0.7),
    "ReLU6": lambda n: n.ReLU6(),
    "LeakyReLU": lambda n: n.LeakyReLU(0.2),
    "RReLU": lambda n: n.RReLU(0.1, 0.4).eval(),
    "PReLU": lambda n: n.PReLU(),
    "PReLU channels": lambda n: n.PReLU(4, init=0.1),
    "Hardshrink": lambda n: n.Hardshrink(0.3),
    "Softshrink": lambda n: n.Softshrink(0.3),
    "Hardsigmoid": lambda n: n.Hardsigmoid(),
    "Hardswish": lambda n: n.Hardswish(),
    "ELU": lambda n: n.ELU(0.5),
    "CELU": lambda n: n.CELU(0.5),
    "SELU": lambda n: n.SELU(),
    "SiLU": lambda n: n.SiLU(),
    "Mish": lambda n: n.Mish(),
    "GELU": lambda n: n.GELU(),
    "GELU tanh": lambda n: n.GELU(approximate="tanh"),
    "Softplus": lambda n: n.Softplus(2.0, 1.0),
    "Softsign": lambda n: n.Softsign(),
    "Tanhshrink": lambda n: n.Tanhshrink(),
    "LogSigmoid": lambda n: n.LogSigmoid(),
    "GLU": lambda n: n.GLU(1),
    "Softmin": lambda n: n.Softmin(dim=1),
    "Softmax2d": lambda n: n.Softmax2d(),
}
#: Built with inplace=True.
INPLACE = {
    "Threshold": lambda n: n.Threshold(0.1, 20, True),
    "Hardtanh": lambda n: n.Hardtanh(inplace=True),
    "ReLU6": lambda n: n.ReLU6(True),
    "LeakyReLU": lambda n: n.LeakyReLU(inplace=True),
    "RReLU": lambda n: n.RReLU(inplace=True).eval(),
    "Hardsigmoid": lambda n: n.Hardsigmoid(True),
    "Hardswish": lambda n: n.Hardswish(True),
    "ELU": lambda n: n.ELU(inplace=True),
    "CELU": lambda n: n.CELU(inplace=True),
    "SELU": lambda n: n.SELU(True),
    "SiLU": lambda n: n.SiLU(True),
    "Mish": lambda n: n.Mish(True),
}


def both(make):
    """The result of one function for each library."""
    return [make(lib) for lib in LIBRARIES]


def assert_close(results, rtol=1e-9):
    for got, expected in zip(*results, strict=True):
        assert got.shape == expected.shape
        np.testing.assert_allclose(got, expected, rtol=rtol, atol=1e-12)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_layers(name):
    values = np.random.default_rng(0).standard_normal((2, 4, 3, 5)) * 2
    layers = both(lambda lib: ACTIVATIONS[name](lib.nn).double())
    assert repr(layers[0]) == repr(layers[1])
    assert list(layers[0].state_dict()) == list(layers[1].state_dict())
    results = []
    for lib, layer in zip(LIBRARIES, layers, strict=True):
        x = lib.tensor(values, requires_grad=True)
        out = layer(x)
        (out * out).sum().backward()
        grads = [p.grad.numpy() for p in layer.parameters()]
        results.append((out.detach().numpy(), x.grad.numpy(), *grads))
    assert_close(results, rtol=1e-7 if name == "Hardsigmoid" else 1e-9)


@pytest.mark.parametrize("name", INPLACE)
def test_activations_in_place(name):
    values = np.random.default_rng(1).standard_normal((3, 4)) * 2
    layers = both(lambda lib: INPLACE[name](lib.nn))
    assert repr(layers[0]) == repr(layers[1])
    results = []
    for lib, layer in zip(LIBRARIES, layers, strict=True):
        x = lib.tensor(values, requires_grad=True)
        changed = x * 1
        out = layer(changed)
        assert out is changed
        out.sum().backward()
        results.append((out.detach().numpy(), x.grad.numpy()))
    assert_close(results, rtol=1e-7 if name == "Hardsigmoid" else 1e-9)


@pytest.mark.parametrize(
    "name", ["celu_", "elu_", "hardtanh_", "leaky_relu_", "selu_", "relu_", "rrelu_"]
)
def test_in_place_functions(name):
    values = np.random.default_rng(1).standard_normal((3, 4))
    results = []
    for f, lib in ((F, dptrain), (torch.nn.functional, torch)):
        x = lib.tensor(values)
        assert getattr(f, name)(x) is x
        results.append((x.numpy(),))
    assert_close(results)


@pytest.mark.parametrize(
    "name",
    [
        "gelu",
        "silu",
        "mish",
        "elu",
        "selu",
        "celu",
        "hardswish",
        "hardsigmoid",
        "softplus",
        "logsigmoid",
        "leaky_relu",
        "relu6",
        "hardtanh",
        "hardshrink",
        "softshrink",
        "softsign",
        "tanhshrink",
        "glu",
    ],
)
@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_half_precision_loses_one_rounding_at_most(name, kind):
    values = np.linspace(-4, 4, 42)
    results = []
    for f, lib in ((F, dptrain), (torch.nn.functional, torch)):
        out = getattr(f, name)(lib.tensor(values).to(getattr(lib, kind)))
        assert str(out.dtype).split(".")[1] == kind
        results.append(np.asarray(out.to(lib.float32).tolist()))
    np.testing.assert_allclose(
        *results, rtol={"float16": 2e-3, "bfloat16": 1.6e-2}[kind], atol=1e-4
    )


@pytest.mark.parametrize(
    "name",
    [
        "relu6",
        "hardtanh",
        "leaky_relu",
        "elu",
        "selu",
        "celu",
        "gelu",
        "silu",
        "mish",
        "hardsigmoid",
        "hardswish",
        "softplus",
        "softsign",
        "logsigmoid",
        "hardshrink",
        "softshrink",
        "tanhshrink",
        "glu",
    ],
)
def test_nodes_have_the_names_of_pytorch(name):
    names = []
    for f, lib in ((F, dptrain), (torch.nn.functional, torch)):
        out = getattr(f, name)(lib.ones(4, requires_grad=True))
        node = out._node if lib is dptrain else out.grad_fn
        names.append(node.grad_name if lib is dptrain else node.name())
    assert names[0] == names[1]


LOSSES = {
    "L1": (lambda n: n.L1Loss(), "pair"),
    "L1 sum": (lambda n: n.L1Loss(reduction="sum"), "pair"),
    "MSE": (lambda n: n.MSELoss(reduction="none"), "pair"),
    "SmoothL1": (lambda n: n.SmoothL1Loss(beta=0.5), "pair"),
    "Huber": (lambda n: n.HuberLoss("sum", 0.5), "pair"),
    "PoissonNLL": (lambda n: n.PoissonNLLLoss(full=True), "counts"),
    "PoissonNLL plain": (lambda n: n.PoissonNLLLoss(False, reduction="none"), "positive"),
    "GaussianNLL": (lambda n: n.GaussianNLLLoss(full=True, eps=0.3), "variance"),
    "BCE": (lambda n: n.BCELoss(), "probabilities"),
    "BCEWithLogits": (lambda n: n.BCEWithLogitsLoss(), "logits"),
    "KLDiv": (lambda n: n.KLDivLoss(reduction="batchmean"), "logits"),
    "KLDiv log": (lambda n: n.KLDivLoss(reduction="sum", log_target=True), "pair"),
    "SoftMargin": (lambda n: n.SoftMarginLoss(), "signs"),
    "HingeEmbedding": (lambda n: n.HingeEmbeddingLoss(0.5), "signs"),
    "CosineEmbedding": (lambda n: n.CosineEmbeddingLoss(0.1, reduction="none"), "two and signs"),
    "MarginRanking": (lambda n: n.MarginRankingLoss(0.1), "three"),
    "TripletMargin": (lambda n: n.TripletMarginLoss(2.0, 1.0, swap=True), "three"),
    "TripletMarginWithDistance": (
        lambda n: n.TripletMarginWithDistanceLoss(
            distance_function=n.PairwiseDistance(p=3.0), margin=2.0
        ),
        "three",
    ),
    "MultiMargin": (lambda n: n.MultiMarginLoss(2, 0.5), "classes"),
    "MultiLabelMargin": (lambda n: n.MultiLabelMarginLoss(), "labels"),
    "MultiLabelSoftMargin": (lambda n: n.MultiLabelSoftMarginLoss(reduction="sum"), "logits"),
    "CosineSimilarity": (lambda n: n.CosineSimilarity(dim=-1), "pair"),
    "PairwiseDistance": (lambda n: n.PairwiseDistance(1.0, keepdim=True), "pair"),
}


def operands(kind, lib):
    rng = np.random.default_rng(2)
    x, y, z = rng.standard_normal((3, 5, 4))
    make = lib.tensor
    return {
        "pair": lambda: [make(x), make(y)],
        "counts": lambda: [make(x), make(np.floor(np.abs(y) * 4))],
        "positive": lambda: [make(np.abs(x) + 0.1), make(np.abs(y))],
        "variance": lambda: [make(x), make(y), make(np.abs(z))],
        "probabilities": lambda: [make(1 / (1 + np.exp(-x))), make(1 / (1 + np.exp(-y)))],
        "logits": lambda: [make(x), make(1 / (1 + np.exp(-y)))],
        "signs": lambda: [make(x), make(np.sign(y))],
        "two and signs": lambda: [make(x), make(y), make(np.sign(z[:, 0]))],
        "three": lambda: [make(x), make(y), make(z)],
        "classes": lambda: [make(x), make(rng.integers(0, 4, 5))],
        "labels": lambda: [make(x), make(rng.integers(-1, 4, (5, 4)))],
    }[kind]()


@pytest.mark.parametrize("name", LOSSES)
def test_loss_layers(name):
    build, kind = LOSSES[name]
    layers = both(lambda lib: build(lib.nn))
    assert repr(layers[0]) == repr(layers[1])
    assert list(layers[0].state_dict()) == list(layers[1].state_dict())
    results = []
    for lib, layer in zip(LIBRARIES, layers, strict=True):
        args = operands(kind, lib)
        args[0].requires_grad_()
        out = layer(*args)
        (out * out).sum().backward()
        results.append((out.detach().numpy(), args[0].grad.numpy()))
    assert_close(results)


def test_weights_are_buffers():
    for name in ("BCELoss", "BCEWithLogitsLoss", "MultiMarginLoss", "MultiLabelSoftMarginLoss"):
        ours, theirs = both(lambda lib, n=name: getattr(lib.nn, n)(weight=lib.ones(3)))
        assert list(ours.state_dict()) == list(theirs.state_dict()) == ["weight"]
        assert copy.deepcopy(ours).weight.tolist() == [1.0] * 3
    pos = both(lambda lib: lib.nn.BCEWithLogitsLoss(pos_weight=lib.ones(3)))
    assert list(pos[0].state_dict()) == list(pos[1].state_dict())


@pytest.mark.filterwarnings("ignore:size_average and reduce args")
@pytest.mark.parametrize("average", [None, True, False])
@pytest.mark.parametrize("reduce", [None, True, False])
@pytest.mark.parametrize("name", ["L1Loss", "MSELoss", "BCEWithLogitsLoss", "CrossEntropyLoss"])
def test_older_forms_of_reduction(name, average, reduce):
    kind = "classes" if name == "CrossEntropyLoss" else "logits"
    results = both(
        lambda lib: (
            getattr(lib.nn, name)(size_average=average, reduce=reduce)(
                *operands(kind, lib)
            ).numpy(),
        )
    )
    assert_close(results)


# ---- CTC ---------------------------------------------------------------------------------------------

CTC = {  # (frames, classes), input lengths, target lengths, form of the targets
    "padded": ((7, 5), [7, 6, 4], [3, 2, 4], "padded"),
    "joined": ((7, 5), [7, 6, 4], [3, 0, 2], "joined"),
    "too long": ((4, 3), [4, 2, 3], [2, 3, 1], "padded"),
    "one frame": ((1, 3), [1, 1, 1], [1, 0, 1], "padded"),
}


@pytest.mark.parametrize("case", CTC)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("zero_infinity", [False, True])
@pytest.mark.parametrize("blank", [0, 2])
def test_ctc_loss(case, reduction, zero_infinity, blank):
    (t, c), frames, lengths, form = CTC[case]
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((t, 3, c))
    labels = rng.integers(0, c - 1, (3, max(lengths)))
    labels = np.where(labels >= blank, labels + 1, labels)
    labels[0, : lengths[0]] = labels[0, 0]  # repeats need a blank between them
    if form == "joined":
        labels = np.concatenate([row[:n] for row, n in zip(labels, lengths, strict=True)])
    results = []
    for lib in LIBRARIES:
        x = lib.tensor(logits, requires_grad=True)
        loss = lib.nn.CTCLoss(blank, reduction, zero_infinity)
        out = loss(
            lib.log_softmax(x, 2), lib.tensor(labels), lib.tensor(frames), lib.tensor(lengths)
        )
        out.sum().backward()
        results.append((out.detach().numpy(), x.grad.numpy()))
    assert_close(results)


def test_ctc_loss_of_one_sample():
    logits = np.random.default_rng(0).standard_normal((6, 4))
    results = []
    for f, lib in ((F, dptrain), (torch.nn.functional, torch)):
        for reduction in ("none", "mean"):
            out = f.ctc_loss(
                lib.tensor(logits).log_softmax(1),
                lib.tensor([1, 2, 2]),
                lib.tensor(6),
                lib.tensor(3),
                reduction=reduction,
            )
            results.append((out.numpy(),))
    assert_close((results[0], results[2]))
    assert_close((results[1], results[3]))


def test_the_derivative_of_ctc_equals_finite_differences():
    x = dptrain.tensor(np.random.default_rng(5).standard_normal((5, 2, 4)), requires_grad=True)
    labels = dptrain.tensor([[1, 1, 3], [2, 0, 0]])
    assert gradcheck(lambda x: F.ctc_loss(x.log_softmax(2), labels, (5, 4), (3, 1)), [x])


def test_the_derivative_of_hardsigmoid_equals_finite_differences():
    x = dptrain.tensor(np.linspace(-5, 5, 20), requires_grad=True)
    assert gradcheck(F.hardsigmoid, [x])


# ---- random ones -------------------------------------------------------------------------------------


def test_gumbel_softmax_draws_from_the_distribution():
    dptrain.manual_seed(0)
    probabilities = np.array([0.5, 0.3, 0.2])
    logits = dptrain.tensor(np.log(probabilities)).expand(20000, 3)
    hard = F.gumbel_softmax(logits, hard=True)
    assert set(np.unique(hard.numpy())) == {
        0.0,
        1.0,
    }
    frequencies = hard.numpy().mean(0)
    # Four standard deviations of a binomial share.
    limits = 4 * np.sqrt(probabilities * (1 - probabilities) / 20000)
    assert (np.abs(frequencies - probabilities) < limits).all()
    soft = F.gumbel_softmax(logits[:5].clone().requires_grad_(), tau=0.5)
    np.testing.assert_allclose(soft.sum(-1).detach().numpy(), 1)
    assert soft.requires_grad


def test_slopes_of_rrelu_in_training():
    dptrain.manual_seed(0)
    x = dptrain.full((20000,), -1.0, requires_grad=True)
    out = dptrain.nn.RReLU(0.2, 0.4)(x)
    out.sum().backward()
    slopes = x.grad.numpy()
    np.testing.assert_array_equal(out.detach().numpy(), -slopes)
    assert slopes.min() >= np.float32(0.2)
    assert slopes.max() <= np.float32(0.4)
    assert abs(slopes.mean() - 0.3) < 4 * 0.2 / np.sqrt(12 * 20000)
