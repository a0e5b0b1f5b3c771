"""Layer functions against PyTorch: values, first and second derivatives."""

import numpy as np
import pytest

import dptrain
import dptrain.nn.functional as F
from dptrain.autograd import gradcheck, gradgradcheck

torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
pytestmark = [
    pytest.mark.oracle,
    pytest.mark.filterwarnings("ignore:.*output shape and scale.*"),
]
RNG = np.random.default_rng(5)


def x(*shape):
    return RNG.standard_normal(shape)


def pos(*shape):
    return RNG.uniform(0.5, 2.0, shape)


def i(*shape, high=5):
    return RNG.integers(0, high, shape)


def b(*shape):
    return RNG.random(shape) < 0.6


IMAGE, LINE, VOLUME = x(2, 4, 5, 6), x(2, 4, 7), x(2, 2, 4, 3, 5)
STATS = {
    "running_mean": x(4),
    "running_var": pos(4),
}
THETA = np.array([[[0.7, 0.2, 0.1], [-0.3, 0.9, 0.05]], [[1.4, 0.1, 0.0], [0.2, 1.3, -0.2]]])
THETA3 = np.concatenate([np.eye(3)[None] * 0.8 + 0.1 * x(1, 3, 3), 0.1 * x(1, 3, 1)], axis=2)
GRID = RNG.uniform(-1.4, 1.4, (2, 3, 4, 2))
Q, K, V = x(2, 4, 3, 5), x(2, 4, 6, 5), x(2, 4, 6, 2)

#: name, arguments, keyword arguments; floating point arrays require gradients where listed by position.
CASES = [
    ("batch_norm", [IMAGE, None, None, x(4), x(4), True], {}),
    ("batch_norm", [x(6, 3), None, None, None, None, True], {"eps": 0.1}),
    ("batch_norm", [LINE, None, None, None, x(4), True], {}),
    ("batch_norm", [IMAGE, STATS["running_mean"], STATS["running_var"], x(4), x(4)], {}),
    ("batch_norm", [VOLUME, x(2), pos(2), x(2), x(2), True, 0.3], {}),
    ("layer_norm", [x(3, 4, 5), [5], x(5), x(5)], {}),
    ("layer_norm", [x(3, 4, 5), [4, 5], x(4, 5), None], {"eps": 0.01}),
    ("layer_norm", [x(3, 5), (5,)], {}),
    ("layer_norm", [x(0, 5), (5,), x(5), x(5)], {}),
    ("group_norm", [IMAGE, 2, x(4), x(4)], {}),
    ("group_norm", [x(3, 6), 3], {}),
    ("group_norm", [VOLUME, 1, x(2), None], {}),
    ("instance_norm", [IMAGE], {}),
    ("instance_norm", [LINE, x(4), pos(4), x(4), x(4)], {}),
    ("instance_norm", [LINE, x(4), pos(4), x(4), x(4), False], {}),
    ("rms_norm", [x(3, 4, 5), [5], x(5)], {}),
    ("rms_norm", [x(3, 4, 5), [4, 5]], {"eps": 0.1}),
    ("local_response_norm", [IMAGE, 3], {}),
    ("local_response_norm", [LINE, 2], {"alpha": 0.5, "beta": 0.5, "k": 2.0}),
    ("pad", [IMAGE, (1, 2)], {}),
    ("pad", [IMAGE, (1, -2, -1, 3)], {"value": 1.5}),
    ("pad", [IMAGE, (0, 1, 2, 0, 1, 1, 2, 0)], {}),
    ("pad", [LINE, (2, 3), "reflect"], {}),
    ("pad", [IMAGE, (2, 1, 1, 3), "reflect"], {}),
    ("pad", [VOLUME, (1, 2, 2, 1, 3, 1), "reflect"], {}),
    ("pad", [LINE, (8, 1), "replicate"], {}),
    ("pad", [IMAGE, (2, 1, -1, 3), "replicate"], {}),
    ("pad", [VOLUME, (1, 1, 2, 2, 0, 3), "replicate"], {}),
    ("pad", [LINE, (7, 3), "circular"], {}),
    ("pad", [IMAGE, (2, 1, 5, 3), "circular"], {}),
    ("pad", [x(3, 4), (1, 2), "circular"], {}),
    ("pad", [IMAGE, (-1, 2, -2, 1), "circular"], {}),
    ("pad", [VOLUME, (-2, 1, 1, -1, -1, 2), "circular"], {}),
    ("lp_pool1d", [pos(2, 3, 8), 2, 3], {}),
    ("lp_pool2d", [pos(2, 3, 6, 7), 3, (2, 3), 2], {"ceil_mode": True}),
    ("lp_pool3d", [pos(1, 2, 4, 4, 5), 1, 2], {}),
    ("max_pool1d", [LINE, 3, 2, 1], {"return_indices": True}),
    ("max_pool2d", [IMAGE, (3, 2), 2, (1, 0), 1, True], {"return_indices": True}),
    ("max_pool2d", [x(4, 5, 6), 2], {"return_indices": True}),
    ("max_pool3d", [VOLUME, 2, 1, 1], {"return_indices": True}),
    ("adaptive_max_pool1d", [LINE, 3], {"return_indices": True}),
    ("adaptive_max_pool2d", [IMAGE, (3, None)], {"return_indices": True}),
    ("adaptive_max_pool2d", [IMAGE, 7], {}),
    ("adaptive_max_pool3d", [VOLUME, (2, 2, 3)], {"return_indices": True}),
    (
        "fractional_max_pool2d",
        [IMAGE, 2, (3, 4)],
        {"return_indices": True, "_random_samples": RNG.random((2, 4, 2))},
    ),
    (
        "fractional_max_pool3d",
        [VOLUME, (2, 1, 2)],
        {"output_ratio": (0.6, 0.7, 0.7), "_random_samples": RNG.random((2, 2, 3))},
    ),
    ("max_unpool1d", [x(2, 3), np.array([[0, 3, 5], [1, 2, 4]]), 2], {}),
    ("max_unpool2d", [x(1, 1, 2, 2), np.array([[[[0, 3], [9, 14]]]]), 2], {"output_size": (5, 4)}),
    ("max_unpool3d", [x(1, 1, 1, 2, 1), np.array([[[[[0], [9]]]]]), 2], {}),
    ("unfold", [IMAGE, (2, 3)], {}),
    ("unfold", [IMAGE, 2, 2, 1, (2, 1)], {}),
    ("unfold", [x(4, 5, 6), 3], {"padding": 1}),
    ("fold", [x(2, 12, 16), (5, 6), (2, 3)], {}),
    ("fold", [x(8, 6), (5, 4), 2], {"dilation": 2, "stride": 2, "padding": 1}),
    ("pixel_shuffle", [x(2, 8, 3, 2), 2], {}),
    ("pixel_unshuffle", [x(8, 4, 6), 2], {}),
    ("channel_shuffle", [x(2, 6, 3, 2), 3], {}),
    ("embedding", [i(3, 4), x(5, 3)], {}),
    ("embedding", [i(3, 4), x(5, 3), 2], {"scale_grad_by_freq": False}),
    ("embedding", [i(7), x(5, 3), -1], {"scale_grad_by_freq": True}),
    ("embedding", [i(0), x(5, 3)], {}),
    ("embedding_bag", [i(3, 4), x(5, 3)], {}),
    ("embedding_bag", [i(3, 4), x(5, 3)], {"mode": "sum", "per_sample_weights": x(3, 4)}),
    ("embedding_bag", [i(6), x(5, 3), np.array([0, 2, 2, 5])], {"mode": "max"}),
    ("embedding_bag", [i(6), x(5, 3), np.array([0, 2, 2, 6])], {"include_last_offset": True}),
    ("embedding_bag", [i(6), x(5, 3), np.array([0, 3])], {"mode": "mean", "padding_idx": 1}),
    ("bilinear", [x(2, 3), x(2, 4), x(5, 3, 4), x(5)], {}),
    ("bilinear", [x(3), x(4), x(5, 3, 4)], {}),
    ("interpolate", [IMAGE], {"scale_factor": 2}),
    ("interpolate", [IMAGE, (7, 4)], {}),
    ("upsample_nearest", [IMAGE, (7, 4)], {}),
    ("upsample_bilinear", [IMAGE], {"scale_factor": 2}),
    ("interpolate", [LINE], {"scale_factor": 1.7, "mode": "nearest-exact"}),
    ("interpolate", [LINE, 11], {"mode": "linear"}),
    ("interpolate", [LINE, 3], {"mode": "linear", "align_corners": True}),
    ("interpolate", [IMAGE], {"scale_factor": (1.6, 0.7), "mode": "bilinear"}),
    (
        "interpolate",
        [IMAGE],
        {"scale_factor": 1.7, "mode": "bilinear", "recompute_scale_factor": True},
    ),
    ("interpolate", [IMAGE, (9, 3)], {"mode": "bicubic"}),
    ("interpolate", [IMAGE, (9, 3)], {"mode": "bicubic", "align_corners": True}),
    *(
        ("interpolate", [IMAGE, size], {"mode": m, "antialias": True})
        for m in ("bilinear", "bicubic", "lanczos")
        for size in ((2, 3), (7, 4))
    ),
    (
        "interpolate",
        [IMAGE, (3, 9)],
        {"mode": "bicubic", "antialias": True, "align_corners": True},
    ),
    ("interpolate", [IMAGE], {"scale_factor": (0.4, 0.6), "mode": "bilinear", "antialias": True}),
    ("interpolate", [VOLUME, (6, 2, 7)], {"mode": "trilinear"}),
    ("interpolate", [VOLUME, 3], {"mode": "area"}),
    ("linear_cross_entropy", [x(6, 3), x(4, 3), i(6, high=4)], {}),
    (
        "linear_cross_entropy",
        [x(6, 3), x(4, 3), i(6, high=4)],
        {"linear_bias": x(4), "label_smoothing": 0.1, "ignore_index": 2, "reduction": "sum"},
    ),
    ("linear_cross_entropy", [x(6, 3), x(4, 2, 3), i(6, 2, high=4)], {"linear_bias": x(4, 2)}),
    ("affine_grid", [THETA, (2, 1, 3, 4)], {"align_corners": False}),
    ("affine_grid", [THETA3, (1, 1, 3, 2, 4)], {"align_corners": True}),
    *(
        (
            "grid_sample",
            [x(2, 2, 4, 5), GRID, "bicubic"],
            {"padding_mode": p, "align_corners": a},
        )
        for p in ("zeros", "border", "reflection")
        for a in (True, False)
    ),
    *(
        ("grid_sample", [x(2, 2, 4, 5), GRID], {"padding_mode": p, "align_corners": a})
        for p in ("zeros", "border", "reflection")
        for a in (False, True)
    ),
    ("grid_sample", [x(2, 2, 4, 5), GRID], {"mode": "nearest", "align_corners": False}),
    (
        "grid_sample",
        [x(2, 2, 3, 4, 5), RNG.uniform(-1, 1, (2, 2, 1, 3, 3))],
        {"align_corners": False},
    ),
    ("scaled_dot_product_attention", [Q, K, V], {}),
    ("scaled_dot_product_attention", [Q, K, V], {"is_causal": True}),
    ("scaled_dot_product_attention", [Q, K, V], {"scale": 0.3, "attn_mask": x(3, 6)}),
    ("scaled_dot_product_attention", [Q, K, V], {"attn_mask": b(2, 1, 3, 6)}),
    (
        "scaled_dot_product_attention",
        [Q, K[:, :2], V[:, :2]],
        {"enable_gqa": True},
    ),
]
IDS = [f"{name}-{n}" for n, (name, *_) in enumerate(CASES)]
#: Arguments by position or name that PyTorch does not differentiate.
CONSTANTS = {"batch_norm": (1, 2), "instance_norm": (1, 2)}
#: PyTorch has no derivative for the mask of the chosen kernel, nor for samples.
NAMED_CONSTANTS = ("_random_samples",)


def convert(lib, name, args, kwargs):
    def one(value, key):
        if not isinstance(value, np.ndarray):
            return value
        made = lib.tensor(value.copy())
        constant = key in CONSTANTS.get(name, ()) or key in NAMED_CONSTANTS
        return made.requires_grad_() if value.dtype == np.float64 and not constant else made

    return (
        [one(a, n) for n, a in enumerate(args)],
        {k: one(v, k) for k, v in kwargs.items()},
    )


def listed(result):
    return list(result) if isinstance(result, (tuple, list)) else [result]


def leaves(args, kwargs):
    values = [*args, *kwargs.values()]
    return [v for v in values if getattr(v, "requires_grad", False)]


@pytest.mark.filterwarnings("ignore:.*upsample.*deprecated")
@pytest.mark.parametrize(("name", "args", "kwargs"), CASES, ids=IDS)
def test_values_and_gradients_equal_pytorch(name, args, kwargs):
    ends = []
    for lib, functions in ((dptrain, F), (torch, torch.nn.functional)):
        a, k = convert(lib, name, args, kwargs)
        outs = listed(getattr(functions, name)(*a, **k))
        found = [o.detach().numpy() for o in outs]
        if outs[0].requires_grad:
            weights = np.random.default_rng(0).standard_normal(outs[0].shape)
            outs[0].backward(lib.tensor(weights))
            for leaf in leaves(a, k):
                grad = leaf.grad
                found.append(np.zeros(leaf.shape) if grad is None else grad.numpy())
        # What was changed in place: running averages.
        found += [v.detach().numpy() for v in a if hasattr(v, "detach")]
        ends.append(found)
    assert len(ends[0]) == len(ends[1])
    for got, expected in zip(*ends, strict=True):
        assert got.shape == expected.shape
        assert got.dtype == expected.dtype
        np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(("name", "args", "kwargs"), CASES, ids=IDS)
def test_both_derivatives_equal_finite_differences(name, args, kwargs):
    if args[0].size == 0:
        return
    if name == "embedding" and len(args) > 2:
        return  # the padding row has no gradient on purpose
    converted, named = convert(dptrain, name, args, kwargs)
    places = [n for n, a in enumerate(converted) if getattr(a, "requires_grad", False)]

    def function(*moved):
        call = list(converted)
        for n, value in zip(places, moved, strict=True):
            call[n] = value
        return listed(getattr(F, name)(*call, **named))[0]

    inputs = [converted[n] for n in places]
    assert gradcheck(function, inputs)
    if mode_has_curvature(name, kwargs):
        assert gradgradcheck(function, inputs)


def mode_has_curvature(name, kwargs):
    """Second derivatives are checked where one is computed by an operation of its own."""
    return kwargs.get("mode") != "nearest" and name != "local_response_norm"


def integers(t, *shape, kind="int64"):
    count = int(np.prod(shape))
    return (t.arange(count) * 37 % 251 - 60).reshape(*shape).to(getattr(t, kind))


def halves(t, *shape, low=-1, high=1):
    return t.tensor(np.random.default_rng(1).uniform(low, high, shape)).bfloat16()


EMPTY = {
    "bfloat16 conv_transpose2d": lambda t, f: f.conv_transpose2d(
        halves(t, 1, 8, 4, 4), halves(t, 8, 3, 3, 3), stride=2
    ),
    "bfloat16 avg_pool2d": lambda t, f: f.avg_pool2d(halves(t, 2, 3, 9, 9), 6, 3, 2, True),
    "bfloat16 adaptive_avg_pool3d": lambda t, f: f.adaptive_avg_pool3d(halves(t, 4, 8, 8, 8), 5),
    "bfloat16 interpolate": lambda t, f: f.interpolate(
        halves(t, 2, 3, 4, 5), (5, 6), mode="bicubic", align_corners=True
    ),
    "bfloat16 smooth_l1_loss": lambda t, f: f.smooth_l1_loss(halves(t, 9), -halves(t, 9)),
    "bfloat16 bilinear": lambda t, f: f.bilinear(
        halves(t, 8, 8), halves(t, 8, 8), halves(t, 4, 8, 8) / 8
    ),
    "bfloat16 attention": lambda t, f: f.scaled_dot_product_attention(
        halves(t, 2, 6, 8), halves(t, 2, 6, 8), halves(t, 2, 6, 8), is_causal=True
    ),
    "bfloat16 embedding_bag": lambda t, f: f.embedding_bag(
        t.arange(64).reshape(2, 32), halves(t, 64, 3), mode="sum"
    ),
    "integer avg_pool1d": lambda t, f: f.avg_pool1d(integers(t, 2, 3, 9), 3, 2, 1),
    "integer avg_pool2d": lambda t, f: f.avg_pool2d(
        integers(t, 2, 3, 6, 5), 2, divisor_override=-2
    ),
    "integer avg_pool3d": lambda t, f: f.avg_pool3d(integers(t, 1, 2, 4, 5, 6), 2, padding=1),
    "integer avg_pool3d by 3": lambda t, f: f.avg_pool3d(
        integers(t, 1, 2, 4, 5, 6), 2, divisor_override=3
    ),
    "integer local_response_norm": lambda t, f: f.local_response_norm(integers(t, 2, 5, 3), 2),
    **{
        f"uint8 {mode} {size} {smooth}": lambda t, f, m=mode, s=size, a=smooth: f.interpolate(
            integers(t, 2, 3, 7, 9, kind="uint8"), s, mode=m, antialias=a
        )
        for mode in ("bilinear", "bicubic")
        for size in ((3, 4), (13, 8))
        for smooth in (False, True)
    },
    "uint8 nearest": lambda t, f: f.interpolate(integers(t, 2, 3, 7, kind="uint8"), 4),
    "uint8 corners": lambda t, f: f.interpolate(
        integers(t, 1, 2, 4, 4, kind="uint8"), (6, 7), mode="bilinear", align_corners=True
    ),
    "0-d multi_margin_loss": lambda t, f: f.multi_margin_loss(
        t.tensor(2.0), t.tensor([0]), reduction="none"
    ),
    "0-d multilabel_margin_loss": lambda t, f: f.multilabel_margin_loss(
        t.tensor(2.0), t.tensor([0]), reduction="none"
    ),
    "empty line batch_norm": lambda t, f: f.batch_norm(t.ones(0), t.ones(0), t.ones(0)),
    "feature_alpha_dropout of a line": lambda t, f: f.feature_alpha_dropout(t.ones(3), 0.5),
    "fractional_max_pool3d": lambda t, f: f.fractional_max_pool3d(t.ones(0, 1, 4, 5, 4), 2, 2),
    "conv1d": lambda t, f: f.conv1d(t.ones(0, 3, 5), t.ones(4, 3, 2)),
    "conv_transpose2d": lambda t, f: f.conv_transpose2d(t.ones(0, 3, 5, 5), t.ones(3, 4, 2, 2)),
    "conv3d": lambda t, f: f.conv3d(t.ones(0, 3, 5, 5, 5), t.ones(4, 3, 2, 2, 2)),
    "max_pool3d": lambda t, f: f.max_pool3d(t.ones(0, 3, 5, 5, 5), 2),
    "avg_pool1d": lambda t, f: f.avg_pool1d(t.ones(0, 3, 5), 2),
    "adaptive_max_pool2d": lambda t, f: f.adaptive_max_pool2d(t.ones(0, 3, 5, 5), 2),
    "batch_norm": lambda t, f: f.batch_norm(t.ones(0, 3, 5), None, None, training=True),
    "group_norm": lambda t, f: f.group_norm(t.ones(0, 4, 3), 2),
    "unfold": lambda t, f: f.unfold(t.ones(0, 4, 3, 3), 2),
    "interpolate": lambda t, f: f.interpolate(t.ones(0, 4, 3, 3), 2, mode="bilinear"),
    "lstm": lambda t, f: t.nn.LSTM(3, 4)(t.ones(5, 0, 3))[0],
    "embedding_bag": lambda t, f: f.embedding_bag(
        t.zeros(0).long(), t.ones(3, 2), t.zeros(2).long(), mode="max"
    ),
    "bfloat16 conv1d": lambda t, f: f.conv1d(
        t.ones(2, 3, 5).bfloat16(), t.ones(4, 3, 2).bfloat16()
    ),
    "bfloat16 layer_norm": lambda t, f: f.layer_norm(t.eye(3).bfloat16(), (3,)),
    "integer max_pool3d": lambda t, f: f.max_pool3d(t.arange(64).reshape(1, 1, 4, 4, 4), 2),
    "minus infinity": lambda t, f: f.max_pool2d(
        t.full((1, 1, 4, 4), float("-inf")), 3, 2, 1, return_indices=True
    )[1],
    "nan": lambda t, f: f.max_pool3d(t.full((1, 1, 4, 4, 4), float("nan")), 2),
    "nowhere": lambda t, f: f.scaled_dot_product_attention(
        *[t.ones(1, 3, 4)] * 3, attn_mask=t.zeros(3, 3).bool()
    ),
}


@pytest.mark.parametrize("name", EMPTY)
def test_empty_batches_and_special_values_equal_pytorch(name):
    ours = EMPTY[name](dptrain, F).detach()
    theirs = EMPTY[name](torch, torch.nn.functional).detach()
    assert tuple(ours.shape) == tuple(theirs.shape)
    assert ours.dtype.name == str(theirs.dtype).removeprefix("torch.")
    np.testing.assert_allclose(ours.double().numpy(), theirs.double().numpy(), atol=0.01)


CLOSED = {
    "by a bool mask": lambda t: t.tensor([[True, False], [False, False]]),
    "by infinities": lambda t: t.tensor([[0.0, 0.0], [-float("inf")] * 2]),
    "by a column": lambda t: t.tensor([[False], [True]]),
    "by a number": lambda t: t.tensor(-float("inf")),
}


@pytest.mark.parametrize("name", CLOSED)
def test_a_query_that_may_attend_nowhere_gives_zeros_and_no_gradient(name):
    ends = []
    for t in (dptrain, torch):
        x = t.arange(6.0).reshape(1, 2, 3).requires_grad_()
        out = t.nn.functional.scaled_dot_product_attention(x, x, x, attn_mask=CLOSED[name](t))
        out.pow(2).sum().backward()
        ends.append(np.stack([out.detach().numpy(), x.grad.numpy()]))
    np.testing.assert_allclose(*ends, atol=1e-5)


def test_attention_over_padding_alone_without_weights_is_finite():
    attention = dptrain.nn.MultiheadAttention(4, 2, batch_first=True)
    x = dptrain.ones(1, 2, 4, requires_grad=True)
    mask = dptrain.tensor([[True, True]])
    out, _ = attention(x, x, x, key_padding_mask=mask, need_weights=False)
    out.sum().backward()
    assert out.isfinite().all()
    assert not x.grad.any()
