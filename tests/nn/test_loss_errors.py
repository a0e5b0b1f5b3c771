"""Bad use of losses and activations: an exception of PyTorch's kind that names what was wrong."""

import pytest

import dptrain
import dptrain.nn.functional as F

#: name -> (call(lib, functional), kind, words that the message must hold)
CASES = {
    # ---- losses: shapes -------------------------------------------------------------------------
    "bce sizes": (
        lambda t, f: f.binary_cross_entropy(t.zeros(3), t.zeros(3, 1)),
        ValueError,
        ["target size", "[3, 1]", "[3]"],
    ),
    "bce logits sizes": (
        lambda t, f: f.binary_cross_entropy_with_logits(t.zeros(3), t.zeros(4)),
        ValueError,
        ["Target size", "[4]", "[3]"],
    ),
    "bce weight": (
        lambda t, f: f.binary_cross_entropy(t.zeros(3), t.zeros(3), weight=t.zeros(4)),
        RuntimeError,
        ["3", "4"],
    ),
    "bce range": (
        lambda t, f: f.binary_cross_entropy(t.ones(3) * 2, t.zeros(3)),
        RuntimeError,
        ["between 0 and 1"],
    ),
    "bce nan": (
        lambda t, f: f.binary_cross_entropy(t.ones(3) * float("nan"), t.zeros(3)),
        RuntimeError,
        ["between 0 and 1"],
    ),
    "l1 shapes": (
        lambda t, f: f.l1_loss(t.zeros(3, 2), t.zeros(3, 2), weight=t.zeros(3)),
        ValueError,
        ["same size"],
    ),
    "mse weight": (
        lambda t, f: f.mse_loss(t.zeros(3, 2), t.zeros(3, 2), weight=t.zeros(3)),
        ValueError,
        ["same size"],
    ),
    "huber weight": (
        lambda t, f: f.huber_loss(t.zeros(3, 2), t.zeros(3, 2), weight=t.zeros(3)),
        ValueError,
        ["same size"],
    ),
    "huber delta": (
        lambda t, f: f.huber_loss(t.zeros(3), t.zeros(3), delta=0.0),
        RuntimeError,
        ["delta"],
    ),
    "smooth l1 beta": (
        lambda t, f: f.smooth_l1_loss(t.zeros(3), t.zeros(3), beta=-1.0),
        RuntimeError,
        ["negative values for beta"],
    ),
    "gaussian negative": (
        lambda t, f: f.gaussian_nll_loss(t.zeros(3), t.zeros(3), -t.ones(3)),
        ValueError,
        ["negative"],
    ),
    "gaussian var shape": (
        lambda t, f: f.gaussian_nll_loss(t.zeros(3, 2), t.zeros(3, 2), t.ones(5)),
        ValueError,
        ["incorrect size"],
    ),
    "gaussian reduction": (
        lambda t, f: f.gaussian_nll_loss(t.zeros(3), t.zeros(3), t.ones(3), reduction="x"),
        ValueError,
        ["x is not valid"],
    ),
    "margin ranking dims": (
        lambda t, f: f.margin_ranking_loss(t.zeros(3), t.zeros(3), t.zeros(3, 1)),
        RuntimeError,
        ["same dimension", "[3, 1]"],
    ),
    "cosine target": (
        lambda t, f: f.cosine_embedding_loss(t.zeros(3, 2), t.zeros(3, 2), t.zeros(3, 1)),
        RuntimeError,
        ["0D or 1D target tensor expected"],
    ),
    "cosine inputs": (
        lambda t, f: f.cosine_embedding_loss(t.zeros(3), t.zeros(3), t.zeros(3)),
        RuntimeError,
        ["2D input tensors", "[3]"],
    ),
    "cosine sizes": (
        lambda t, f: f.cosine_embedding_loss(t.zeros(3, 2), t.zeros(3, 4), t.zeros(3)),
        RuntimeError,
        ["2", "4"],
    ),
    "triplet dims": (
        lambda t, f: f.triplet_margin_loss(t.zeros(3, 2), t.zeros(3), t.zeros(3, 2)),
        RuntimeError,
        ["number of dimensions", "2D", "1D"],
    ),
    "triplet margin": (
        lambda t, f: f.triplet_margin_loss(t.zeros(3, 2), t.zeros(3, 2), t.zeros(3, 2), margin=0),
        ValueError,
        ["margin", "0"],
    ),
    "triplet distance margin": (
        lambda t, f: f.triplet_margin_with_distance_loss(
            t.zeros(3, 2), t.zeros(3, 2), t.zeros(3, 2), margin=-1.0
        ),
        ValueError,
        ["margin", "-1"],
    ),
    "multi margin p": (
        lambda t, f: f.multi_margin_loss(t.zeros(3, 2), t.zeros(3).long(), p=3),
        ValueError,
        ["p == 1 and p == 2"],
    ),
    "multi margin weight": (
        lambda t, f: f.multi_margin_loss(t.zeros(3, 2), t.zeros(3).long(), weight=t.zeros(2, 2)),
        ValueError,
        ["one-dimensional"],
    ),
    "multi margin weight size": (
        lambda t, f: f.multi_margin_loss(t.zeros(3, 2), t.zeros(3).long(), weight=t.zeros(5)),
        RuntimeError,
        ["weight", "2", "5"],
    ),
    "multi margin target": (
        lambda t, f: f.multi_margin_loss(t.zeros(3, 2), t.zeros(3).long() + 2),
        RuntimeError,
        ["out of range"],
    ),
    "multi margin sizes": (
        lambda t, f: f.multi_margin_loss(t.zeros(3, 2), t.zeros(4).long()),
        RuntimeError,
        ["inconsistent target size", "[4]"],
    ),
    "multi margin dtype": (
        lambda t, f: f.multi_margin_loss(t.zeros(3, 2), t.zeros(3)),
        RuntimeError,
        ["Long"],
    ),
    "multilabel sizes": (
        lambda t, f: f.multilabel_margin_loss(t.zeros(3, 2), t.zeros(3).long()),
        RuntimeError,
        ["inconsistent target size", "[3]"],
    ),
    "multilabel range": (
        lambda t, f: f.multilabel_margin_loss(t.zeros(3, 2), t.zeros(3, 2).long() + 5),
        RuntimeError,
        ["out of range"],
    ),
    "soft margin sizes": (
        lambda t, f: f.soft_margin_loss(t.zeros(3), t.zeros(4)),
        RuntimeError,
        ["3", "4"],
    ),
    "poisson sizes": (
        lambda t, f: f.poisson_nll_loss(t.zeros(3), t.zeros(4)),
        RuntimeError,
        ["3", "4"],
    ),
    "hinge sizes": (
        lambda t, f: f.hinge_embedding_loss(t.zeros(3), t.zeros(4)),
        RuntimeError,
        ["3", "4"],
    ),
    "kl sizes": (
        lambda t, f: f.kl_div(t.zeros(3), t.zeros(4), reduction="sum"),
        RuntimeError,
        ["3", "4"],
    ),
    # ---- CTC ------------------------------------------------------------------------------------
    "ctc blank": (
        lambda t, f: f.ctc_loss(t.zeros(4, 1, 3), t.ones(1, 2).long(), (4,), (2,), blank=3),
        RuntimeError,
        ["blank", "label range"],
    ),
    "ctc frames": (
        lambda t, f: f.ctc_loss(t.zeros(4, 1, 3), t.ones(1, 2).long(), (5,), (2,)),
        RuntimeError,
        ["input_lengths", "4", "5"],
    ),
    "ctc lengths": (
        lambda t, f: f.ctc_loss(t.zeros(4, 2, 3), t.ones(2, 2).long(), (4,), (2, 2)),
        RuntimeError,
        ["input_lengths", "2"],
    ),
    "ctc targets": (
        lambda t, f: f.ctc_loss(t.zeros(4, 1, 3), t.ones(1, 2).long(), (4,), (3,)),
        RuntimeError,
        ["size", "3"],
    ),
    "ctc joined": (
        lambda t, f: f.ctc_loss(t.zeros(4, 2, 3), t.ones(3).long(), (4, 4), (2, 2)),
        RuntimeError,
        ["4"],
    ),
    "ctc integers": (
        lambda t, f: f.ctc_loss(t.zeros(4, 1, 3).long(), t.ones(1, 2).long(), (4,), (2,)),
        NotImplementedError,
        ["ctc_loss"],
    ),
    # ---- activations ----------------------------------------------------------------------------
    "glu odd": (lambda t, f: f.glu(t.zeros(3)), RuntimeError, ["even", "3"]),
    "glu dim": (lambda t, f: f.glu(t.zeros(4), 2), IndexError, ["out of range", "2"]),
    "glu 0-d": (lambda t, f: f.glu(t.zeros(())), RuntimeError, ["0-dim"]),
    "rrelu bounds": (
        lambda t, f: f.rrelu(t.zeros(3), 0.5, 0.1, training=True),
        RuntimeError,
        ["upper bound", "0.5", "0.1"],
    ),
    "celu alpha": (lambda t, f: f.celu(t.zeros(3), 0.0), RuntimeError, ["alpha cannot be 0"]),
    "gelu mode": (
        lambda t, f: f.gelu(t.zeros(3), approximate="erf"),
        RuntimeError,
        ["approximate", "none or tanh"],
    ),
    "softshrink negative": (
        lambda t, f: f.softshrink(t.zeros(3), -1.0),
        RuntimeError,
        ["greater or equal to 0", "-1"],
    ),
    "prelu channels": (
        lambda t, f: f.prelu(t.zeros(2, 3), t.zeros(4)),
        RuntimeError,
        ["parameter numbers", "4", "3"],
    ),
    "prelu weight dims": (
        lambda t, f: f.prelu(t.zeros(2, 3), t.zeros(3, 1)),
        RuntimeError,
        ["scalar or 1D", "2"],
    ),
    "prelu dtype": (
        lambda t, f: f.prelu(t.zeros(2, 3), t.zeros(3).double()),
        RuntimeError,
        ["Type promoting"],
    ),
    "softmin dim": (lambda t, f: f.softmin(t.zeros(3), 4), IndexError, ["4"]),
    "hardtanh order": (
        lambda t, f: t.nn.Hardtanh(1.0, 0.0),
        AssertionError,
        ["max_val", "min_val"],
    ),
    "softmax2d dims": (
        lambda t, f: t.nn.Softmax2d()(t.zeros(3, 4)),
        ValueError,
        ["3D or 4D", "2D"],
    ),
    "leaf in place": (
        lambda t, f: f.elu(t.zeros(3, requires_grad=True), inplace=True),
        RuntimeError,
        ["leaf Variable that requires grad"],
    ),
    # ---- modules --------------------------------------------------------------------------------
    "triplet module": (lambda t, f: t.nn.TripletMarginLoss(0.0), ValueError, ["margin"]),
    "triplet distance module": (
        lambda t, f: t.nn.TripletMarginWithDistanceLoss(margin=0.0),
        ValueError,
        ["margin"],
    ),
    "multi margin module": (lambda t, f: t.nn.MultiMarginLoss(p=3), ValueError, ["p == 1"]),
    "multi margin module weight": (
        lambda t, f: t.nn.MultiMarginLoss(weight=t.zeros(2, 2)),
        ValueError,
        ["1D"],
    ),
    # ---- distances ------------------------------------------------------------------------------
    "cosine_similarity sizes": (
        lambda t, f: f.cosine_similarity(t.zeros(3, 2), t.zeros(3, 4)),
        RuntimeError,
        ["2", "4"],
    ),
    "cosine_similarity dim": (
        lambda t, f: f.cosine_similarity(t.zeros(3, 2), t.zeros(3, 2), dim=2),
        IndexError,
        ["out of range"],
    ),
    "pairwise sizes": (
        lambda t, f: f.pairwise_distance(t.zeros(3, 2), t.zeros(3, 4)),
        RuntimeError,
        ["2", "4"],
    ),
    "normalize dim": (lambda t, f: f.normalize(t.zeros(3)), IndexError, ["out of range"]),
    "pdist dims": (lambda t, f: f.pdist(t.zeros(3)), RuntimeError, ["2D", "1D"]),
}
for _name in [
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
    "glu",
    "leaky_relu",
    "hardshrink",
    "softshrink",
]:
    CASES[f"{_name} of integers"] = (
        lambda t, f, n=_name: getattr(f, n)(t.zeros(4).long()),
        NotImplementedError,
        ["elu" if _name == "selu" else _name, "int64"],
    )
for _name in [
    "l1",
    "mse",
    "smooth_l1",
    "huber",
    "kl_div",
    "soft_margin",
    "hinge_embedding",
    "poisson_nll",
    "binary_cross_entropy_with_logits",
]:
    _full = _name if _name.endswith(("div", "logits")) else f"{_name}_loss"
    CASES[f"{_name} reduction"] = (
        lambda t, f, n=_full: getattr(f, n)(t.zeros(4), t.zeros(4), reduction="most"),
        ValueError,
        ["most is not a valid value for reduction"],
    )


def raised_by(call, *args):
    try:
        call(*args)
    except Exception as error:
        return error
    return None


@pytest.mark.parametrize("name", CASES)
def test_bad_use_is_refused(name):
    call, kind, words = CASES[name]
    error = raised_by(call, dptrain, F)
    assert type(error) is kind
    for word in words:
        assert word in str(error)


@pytest.mark.oracle
@pytest.mark.parametrize("name", CASES)
def test_the_kind_is_that_of_pytorch(name):
    torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
    call, kind, _ = CASES[name]
    assert type(raised_by(call, torch, torch.nn.functional)) is kind
