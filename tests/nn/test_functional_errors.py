"""Bad use of every function of nn.functional: refused with PyTorch's kind of exception, naming the function.

`CALLS` has one good call of each; from it come the cases that all have (no tensor, an unknown keyword, too
many arguments). `MISTAKES` are of one function each: shapes, types, options, ranges.
"""

import re

import pytest

import dptrain
from dptrain.nn import functional as F

pytestmark = [
    pytest.mark.filterwarnings("ignore:reduction. 'mean' divides the total loss"),
    pytest.mark.filterwarnings("ignore:Using a target size"),
    pytest.mark.filterwarnings("ignore:`nn.functional.upsample"),
]


def f(m, *shape):
    return m.ones(*shape)


def i(m, *values):
    return m.tensor(list(values))


ONE_TENSOR = [
    "celu",
    "celu_",
    "elu",
    "elu_",
    "gelu",
    "glu",
    "hardshrink",
    "hardsigmoid",
    "hardswish",
    "hardtanh",
    "hardtanh_",
    "leaky_relu",
    "leaky_relu_",
    "logsigmoid",
    "mish",
    "relu",
    "relu6",
    "relu_",
    "rrelu",
    "rrelu_",
    "selu",
    "selu_",
    "sigmoid",
    "silu",
    "softplus",
    "softshrink",
    "softsign",
    "tanh",
    "tanhshrink",
    "dropout",
    "dropout1d",
    "dropout2d",
    "dropout3d",
    "alpha_dropout",
    "feature_alpha_dropout",
    "normalize",
    "pdist",
    "gumbel_softmax",
]
TWO_TENSORS = [
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "hinge_embedding_loss",
    "huber_loss",
    "kl_div",
    "l1_loss",
    "mse_loss",
    "multilabel_soft_margin_loss",
    "poisson_nll_loss",
    "smooth_l1_loss",
    "soft_margin_loss",
    "cosine_similarity",
    "pairwise_distance",
]
THREE_TENSORS = [
    "gaussian_nll_loss",
    "margin_ranking_loss",
    "triplet_margin_loss",
    "triplet_margin_with_distance_loss",
]


def grid(m, rank, size=6):
    return f(m, 1, 2, *[size] * rank)


#: Function -> the arguments of a call that succeeds.
CALLS = {
    **{n: lambda m: (f(m, 3, 4),) for n in ONE_TENSOR},
    **{n: lambda m: (f(m, 3, 4), f(m, 3, 4)) for n in TWO_TENSORS},
    **{n: lambda m: (f(m, 3, 4), f(m, 3, 4), f(m, 3, 4)) for n in THREE_TENSORS},
    **{n: lambda m: (f(m, 3, 4), 1) for n in ("softmax", "log_softmax", "softmin")},
    "threshold": lambda m: (f(m, 3), 0.5, 1.0),
    "threshold_": lambda m: (f(m, 3), 0.5, 1.0),
    "prelu": lambda m: (f(m, 3), f(m, 1)),
    "linear": lambda m: (f(m, 2, 3), f(m, 4, 3)),
    "bilinear": lambda m: (f(m, 2, 3), f(m, 2, 4), f(m, 5, 3, 4)),
    "embedding": lambda m: (i(m, 0, 1), f(m, 3, 2)),
    "embedding_bag": lambda m: (i(m, 0, 1), f(m, 3, 2), i(m, 0)),
    "one_hot": lambda m: (i(m, 0, 1), 3),
    "batch_norm": lambda m: (grid(m, 1), m.zeros(2), f(m, 2)),
    "instance_norm": lambda m: (grid(m, 1),),
    "layer_norm": lambda m: (f(m, 2, 3), (3,)),
    "rms_norm": lambda m: (f(m, 2, 3), (3,)),
    "group_norm": lambda m: (grid(m, 1), 2),
    "local_response_norm": lambda m: (grid(m, 1), 2),
    "cross_entropy": lambda m: (f(m, 2, 3), i(m, 0, 2)),
    "nll_loss": lambda m: (f(m, 2, 3), i(m, 0, 2)),
    "linear_cross_entropy": lambda m: (f(m, 2, 4), f(m, 3, 4), i(m, 0, 2)),
    "multi_margin_loss": lambda m: (f(m, 2, 3), i(m, 0, 2)),
    "multilabel_margin_loss": lambda m: (f(m, 3), i(m, 0, -1, 1)),
    "cosine_embedding_loss": lambda m: (f(m, 2, 3), f(m, 2, 3), f(m, 2)),
    "ctc_loss": lambda m: (f(m, 5, 1, 3), m.ones(1, 2).long(), i(m, 5), i(m, 2)),
    "scaled_dot_product_attention": lambda m: (f(m, 1, 2, 3), f(m, 1, 2, 3), f(m, 1, 2, 3)),
    "multi_head_attention_forward": lambda m: (
        *[f(m, 3, 1, 2)] * 3,
        2,
        1,
        f(m, 6, 2),
        f(m, 6),
        None,
        None,
        False,
        0.0,
        f(m, 2, 2),
        f(m, 2),
    ),
    "affine_grid": lambda m: (f(m, 1, 2, 3), [1, 1, 2, 2], False),
    "grid_sample": lambda m: (grid(m, 2), m.zeros(1, 2, 2, 2), "bilinear", "zeros", False),
    "interpolate": lambda m: (grid(m, 2), 3),
    "upsample": lambda m: (grid(m, 2), 3),
    "upsample_bilinear": lambda m: (grid(m, 2), 3),
    "upsample_nearest": lambda m: (grid(m, 2), 3),
    "pad": lambda m: (grid(m, 1), (1, 1)),
    "pixel_shuffle": lambda m: (f(m, 1, 4, 2, 2), 2),
    "pixel_unshuffle": lambda m: (f(m, 1, 1, 4, 4), 2),
    "channel_shuffle": lambda m: (grid(m, 2), 2),
    "native_channel_shuffle": lambda m: (grid(m, 2), 2),
    "unfold": lambda m: (grid(m, 2), 2),
    "fold": lambda m: (f(m, 1, 8, 4), (3, 3), 2),
    "dropout2d": lambda m: (grid(m, 2),),
    "dropout3d": lambda m: (grid(m, 3),),
    "conv_tbc": lambda m: (f(m, 4, 2, 3), f(m, 2, 3, 5), f(m, 5)),
}
for _rank in (1, 2, 3):
    CALLS |= {
        f"conv{_rank}d": lambda m, r=_rank: (grid(m, r), f(m, 4, 2, *[3] * r)),
        f"conv_transpose{_rank}d": lambda m, r=_rank: (grid(m, r), f(m, 2, 4, *[3] * r)),
        f"avg_pool{_rank}d": lambda m, r=_rank: (grid(m, r), 2),
        f"lp_pool{_rank}d": lambda m, r=_rank: (grid(m, r), 2.0, 2),
        f"adaptive_avg_pool{_rank}d": lambda m, r=_rank: (grid(m, r), 2),
        f"max_unpool{_rank}d": lambda m, r=_rank: (
            f(m, 1, 1, *[2] * r),
            m.arange(2**r).view(1, 1, *[2] * r),
            2,
        ),
    }
    for _end in ("", "_with_indices"):
        CALLS[f"max_pool{_rank}d{_end}"] = lambda m, r=_rank: (grid(m, r), 2)
        CALLS[f"adaptive_max_pool{_rank}d{_end}"] = lambda m, r=_rank: (grid(m, r), 2)
        if _rank > 1:
            CALLS[f"fractional_max_pool{_rank}d{_end}"] = lambda m, r=_rank: (grid(m, r), 2, 3)

#: Function, what is wrong, the call, the kind, words that matter.
MISTAKES = [
    ("softmax", "dim", lambda F, m: F.softmax(f(m, 2), 3), IndexError, "out of range"),
    ("softmax", "text", lambda F, m: F.softmax(f(m, 2), "x"), TypeError, "dim.* must be int"),
    ("glu", "odd", lambda F, m: F.glu(f(m, 3)), RuntimeError, "must be even|Halving"),
    ("prelu", "channels", lambda F, m: F.prelu(f(m, 2, 3), f(m, 2)), RuntimeError, "prelu|channel"),
    ("dropout", "p", lambda F, m: F.dropout(f(m, 2), 1.5), ValueError, "between 0 and 1"),
    ("dropout", "training", lambda F, m: F.dropout(f(m, 2), 0.5, 1), TypeError, "training"),
    ("alpha_dropout", "p", lambda F, m: F.alpha_dropout(f(m, 2), -1.0), ValueError, "between 0 and 1"),
    ("gumbel_softmax", "integers", lambda F, m: F.gumbel_softmax(i(m, 1, 2)), RuntimeError, "gumbel|int64"),
    ("linear", "sizes", lambda F, m: F.linear(f(m, 2, 3), f(m, 4, 2)), RuntimeError, "linear|multiplied"),
    ("linear", "types", lambda F, m: F.linear(f(m, 2, 3).half(), f(m, 4, 3)), RuntimeError, "dtype"),
    ("bilinear", "types", lambda F, m: F.bilinear(f(m, 2, 3).double(), f(m, 2, 4), f(m, 5, 3, 4)), RuntimeError, "dtype"),
    ("embedding", "floats", lambda F, m: F.embedding(f(m, 2), f(m, 3, 2)), RuntimeError, "(?i)indices|long"),
    ("embedding", "range", lambda F, m: F.embedding(i(m, 5), f(m, 3, 2)), IndexError, "out of range"),
    ("embedding_bag", "mode", lambda F, m: F.embedding_bag(i(m, 0), f(m, 3, 2), i(m, 0), mode="x"), ValueError, "mode"),
    ("one_hot", "floats", lambda F, m: F.one_hot(f(m, 2)), RuntimeError, "one_hot"),
    ("one_hot", "range", lambda F, m: F.one_hot(i(m, 5), 3), RuntimeError, "one_hot|smaller"),
    ("batch_norm", "sizes", lambda F, m: F.batch_norm(grid(m, 1), m.zeros(3), f(m, 3)), RuntimeError, "running_mean"),
    ("batch_norm", "one value", lambda F, m: F.batch_norm(f(m, 1, 2), m.zeros(2), f(m, 2), training=True), ValueError, "more than 1 value"),
    ("batch_norm", "integers", lambda F, m: F.batch_norm(grid(m, 1), i(m, 0, 0), i(m, 1, 1)), RuntimeError, "batch_norm"),
    ("layer_norm", "shape", lambda F, m: F.layer_norm(f(m, 2, 3), (2,)), RuntimeError, "normalized_shape"),
    ("layer_norm", "number", lambda F, m: F.layer_norm(f(m, 2, 3), 3), TypeError, "normalized_shape.* must be tuple of ints"),
    ("rms_norm", "shape", lambda F, m: F.rms_norm(f(m, 2, 3), (2,)), RuntimeError, "normalized_shape"),
    ("group_norm", "groups", lambda F, m: F.group_norm(grid(m, 1), 3), RuntimeError, "group_norm|divisible"),
    ("cross_entropy", "batch", lambda F, m: F.cross_entropy(f(m, 2, 3), i(m, 0)), ValueError, "batch_size"),
    ("cross_entropy", "range", lambda F, m: F.cross_entropy(f(m, 2, 3), i(m, 0, 3)), IndexError, "out of bounds"),
    ("cross_entropy", "reduction", lambda F, m: F.cross_entropy(f(m, 2, 3), i(m, 0, 2), reduction="x"), ValueError, "reduction"),
    ("nll_loss", "weight", lambda F, m: F.nll_loss(f(m, 2, 3), i(m, 0, 2), f(m, 2)), RuntimeError, "weight"),
    ("mse_loss", "sizes", lambda F, m: F.mse_loss(f(m, 2), f(m, 2, 3)), RuntimeError, "mse_loss.*size"),
    ("l1_loss", "reduction", lambda F, m: F.l1_loss(f(m, 2), f(m, 2), reduction=None), ValueError, "reduction"),
    ("huber_loss", "delta", lambda F, m: F.huber_loss(f(m, 2), f(m, 2), delta=0.0), RuntimeError, "delta"),
    ("huber_loss", "integers", lambda F, m: F.huber_loss(i(m, 1), f(m, 1)), RuntimeError, "huber_loss"),
    ("smooth_l1_loss", "beta", lambda F, m: F.smooth_l1_loss(f(m, 2), f(m, 2), beta=-1.0), RuntimeError, "beta"),
    ("kl_div", "integers", lambda F, m: F.kl_div(i(m, 1), f(m, 1)), RuntimeError, "kl_div"),
    ("binary_cross_entropy", "sizes", lambda F, m: F.binary_cross_entropy(f(m, 2), f(m, 3)), ValueError, "size"),
    ("binary_cross_entropy", "types", lambda F, m: F.binary_cross_entropy(f(m, 2), f(m, 2).double()), RuntimeError, "dtype"),
    ("binary_cross_entropy", "range", lambda F, m: F.binary_cross_entropy(f(m, 2) * 2, f(m, 2)), RuntimeError, "between 0 and 1"),
    ("binary_cross_entropy_with_logits", "sizes", lambda F, m: F.binary_cross_entropy_with_logits(f(m, 2), f(m, 3)), ValueError, "size"),
    ("poisson_nll_loss", "reduction", lambda F, m: F.poisson_nll_loss(f(m, 2), f(m, 2), reduction="x"), ValueError, "reduction"),
    ("gaussian_nll_loss", "negative", lambda F, m: F.gaussian_nll_loss(f(m, 2), f(m, 2), -f(m, 2)), ValueError, "var"),
    ("margin_ranking_loss", "dims", lambda F, m: F.margin_ranking_loss(f(m, 2), f(m, 2), f(m, 2, 1)), RuntimeError, "margin_ranking_loss"),
    ("cosine_embedding_loss", "dims", lambda F, m: F.cosine_embedding_loss(f(m, 2, 3), f(m, 2, 3), f(m, 2, 1)), RuntimeError, "1D|target"),
    ("multi_margin_loss", "p", lambda F, m: F.multi_margin_loss(f(m, 2, 3), i(m, 0, 2), p=3), ValueError, "p == 1"),
    ("triplet_margin_loss", "margin", lambda F, m: F.triplet_margin_loss(f(m, 2, 3), f(m, 2, 3), f(m, 2, 3), margin=-1.0), ValueError, "margin"),
    ("ctc_loss", "blank", lambda F, m: F.ctc_loss(f(m, 5, 1, 3), m.ones(1, 2).long(), i(m, 5), i(m, 2), blank=7), RuntimeError, "blank"),
    ("scaled_dot_product_attention", "both", lambda F, m: F.scaled_dot_product_attention(*[f(m, 1, 2, 3)] * 3, f(m, 2, 2), is_causal=True), RuntimeError, "is_causal"),
    ("affine_grid", "integers", lambda F, m: F.affine_grid(m.ones(1, 2, 3).long(), [1, 1, 2, 2], False), ValueError, "affine_grid|floating"),
    ("grid_sample", "mode", lambda F, m: F.grid_sample(grid(m, 2), m.zeros(1, 2, 2, 2), "x"), ValueError, "mode"),
    ("interpolate", "neither", lambda F, m: F.interpolate(grid(m, 2)), ValueError, "size or scale_factor"),
    ("interpolate", "mode", lambda F, m: F.interpolate(grid(m, 2), 3, mode="x"), NotImplementedError, "interpolate|mode"),
    ("pad", "odd", lambda F, m: F.pad(grid(m, 1), (1,)), RuntimeError, "(?i)pad"),
    ("pad", "mode", lambda F, m: F.pad(grid(m, 1), (1, 1), "x"), NotImplementedError, "mode"),
    ("pixel_shuffle", "channels", lambda F, m: F.pixel_shuffle(f(m, 1, 3, 2, 2), 2), RuntimeError, "pixel_shuffle"),
    ("channel_shuffle", "groups", lambda F, m: F.channel_shuffle(grid(m, 2), 3), RuntimeError, "divisible|channel"),
    ("fold", "blocks", lambda F, m: F.fold(f(m, 1, 8, 5), (3, 3), 2), RuntimeError, "fold|blocks"),
    ("unfold", "integers", lambda F, m: F.unfold(grid(m, 2).long(), 2), NotImplementedError, "unfold|im2col"),
    ("conv2d", "channels", lambda F, m: F.conv2d(grid(m, 2), f(m, 4, 3, 3, 3)), RuntimeError, "channels"),
    ("conv2d", "stride", lambda F, m: F.conv2d(grid(m, 2), f(m, 4, 2, 3, 3), stride=True), TypeError, "stride"),
    ("conv2d", "padding", lambda F, m: F.conv2d(grid(m, 2), f(m, 4, 2, 3, 3), padding=1.5), TypeError, "padding"),
    ("conv1d", "bias", lambda F, m: F.conv1d(grid(m, 1), f(m, 4, 2, 3), 1.0), TypeError, "bias"),
    ("avg_pool2d", "kernel", lambda F, m: F.avg_pool2d(grid(m, 2), True), TypeError, "kernel_size"),
    ("avg_pool2d", "pad", lambda F, m: F.avg_pool2d(grid(m, 2), 2, padding=2), RuntimeError, "pad"),
    ("max_pool2d", "empty", lambda F, m: F.max_pool2d(grid(m, 2), 9), RuntimeError, "max_pool2d|too small"),
    ("max_pool2d", "booleans", lambda F, m: F.max_pool2d(grid(m, 2).bool(), 2), NotImplementedError, "max_pool2d"),
    ("adaptive_max_pool2d", "integers", lambda F, m: F.adaptive_max_pool2d(grid(m, 2).long(), 2), NotImplementedError, "adaptive_max_pool2d"),
    ("max_unpool2d", "integers", lambda F, m: F.max_unpool2d(f(m, 1, 1, 2, 2).long(), m.arange(4).view(1, 1, 2, 2), 2), NotImplementedError, "max_unpool2d"),
    ("cosine_similarity", "eps", lambda F, m: F.cosine_similarity(f(m, 2, 3), f(m, 2, 3), dim="x"), TypeError, "dim"),
    ("pdist", "dims", lambda F, m: F.pdist(f(m, 2)), RuntimeError, "pdist"),
]  # fmt: skip
#: PyTorch looks at these options itself, and takes what it does not use.
UNCHECKED_BY_PYTORCH = (AttributeError, AssertionError, UnboundLocalError)


def generic(name, m):
    function, args = getattr(m.nn.functional, name), CALLS[name](m)
    yield "no tensor", lambda: function(None, *args[1:])
    yield "unknown keyword", lambda: function(*args, no_such_argument=1)
    yield "surplus", lambda: function(*args, *[None] * 30)
    yield "nothing", lambda: function()


@pytest.mark.parametrize("name", sorted(CALLS))
def test_a_good_call_succeeds(name):
    getattr(F, name)(*CALLS[name](dptrain))


@pytest.mark.parametrize("name", sorted(CALLS))
def test_what_is_no_call_is_a_type_error_that_names_the_function(name):
    for label, call in generic(name, dptrain):
        with pytest.raises(TypeError) as caught:
            call()
        plain = re.sub(r"_with_indices$|^native_", "", name)
        assert plain.rstrip("_") in str(caught.value), (label, caught.value)
        assert caught.value.__cause__ is None, label


@pytest.mark.parametrize(
    ("name", "label", "call", "error", "words"), MISTAKES, ids=[f"{m[0]}-{m[1]}" for m in MISTAKES]
)
def test_mistakes_are_refused(name, label, call, error, words):
    with pytest.raises(error, match=words) as caught:
        call(F, dptrain)
    assert caught.value.__cause__ is None, "a foreign traceback is shown with the error"


@pytest.mark.oracle
@pytest.mark.parametrize("name", sorted(CALLS))
def test_pytorch_refuses_the_same(name):
    torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
    if not hasattr(torch.nn.functional, name):
        pytest.fail(f"PyTorch has no nn.functional.{name}")
    getattr(torch.nn.functional, name)(*CALLS[name](torch))
    for label, call in generic(name, torch):
        with pytest.raises((TypeError, *UNCHECKED_BY_PYTORCH)):
            call()
        assert label


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("name", "label", "call", "error", "words"), MISTAKES, ids=[f"{m[0]}-{m[1]}" for m in MISTAKES]
)
def test_pytorch_raises_the_same_kind(name, label, call, error, words):
    torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
    with pytest.raises(error):
        call(torch.nn.functional, torch)


def test_every_function_has_a_call():
    assert set(CALLS) == set(F.__all__)
    assert {name for name, *_ in MISTAKES} <= set(CALLS)
