"""Layers, losses, optimizers and what goes with them on a virtual device: the bits of the first one, elsewhere."""

import copy
import io
import pickle
import warnings

import numpy as np
import pytest

import dptrain
from dptrain import nn, optim
from dptrain.core.host_array import HostArray
from dptrain.nn import functional as F
from dptrain.nn.utils import parametrizations, rnn
from dptrain.utils.checkpoint import checkpoint

PLACES = ("cpu:0", "cpu:2")


@pytest.fixture(autouse=True)
def four_devices(host_devices):
    host_devices(4)


def leaves(value):
    if isinstance(value, dptrain.Tensor):
        return [value]
    if isinstance(value, rnn.PackedSequence):
        return [value.data]  # its batch sizes are always the host's
    parts = value.values() if isinstance(value, dict) else value
    return [t for p in parts for t in leaves(p)] if isinstance(value, (list, tuple, dict)) else []


def moved(value, place):
    """Arguments on a device; floating point tensors become leaves that want gradients."""
    if isinstance(value, np.ndarray):
        made = dptrain.tensor(value, device=place)
        return made.requires_grad_() if made.is_floating_point() else made
    if isinstance(value, (list, tuple)) and not all(isinstance(v, int) for v in value):
        return type(value)(moved(v, place) for v in value)
    return value


def weighted(outs):
    """One number of all outputs, with different gradients for each element."""
    total = 0
    for out in outs:
        if out.requires_grad:
            numbers = dptrain.arange(out.numel(), device=out.device).reshape(out.shape)
            total = total + (out * dptrain.cos(numbers.to(out.dtype))).sum()
    return total


def same_everywhere(run):
    """`run(place)` gives tensors of that device, and of the same bits on all."""
    results = []
    for place in PLACES:
        dptrain.manual_seed(3)
        results.append(leaves(run(place)))
    assert len(results[0]) == len(results[1]) > 0
    for first, other in zip(*results, strict=True):
        assert (str(first.device), str(other.device)) == PLACES
        assert type(other._array) is HostArray
        assert first.dtype is other.dtype
        np.testing.assert_array_equal(first.numpy(force=True), other.numpy(force=True))


def uses(layer, args, kwargs, training):
    """Outputs, gradients and state of a call."""
    layer.train(training)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        outs = leaves(layer(*args, **kwargs))
    total = weighted(outs)
    if isinstance(total, dptrain.Tensor):
        total.backward()
    held = [*leaves(args), *leaves(kwargs), *layer.parameters()]
    return outs + [t.grad for t in held if t.grad is not None] + list(layer.state_dict().values())


# ---- every module --------------------------------------------------------------------------------

RNG = np.random.default_rng(5)


def x(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def pos(*shape):
    return RNG.uniform(0.1, 0.9, shape).astype(np.float32)


def i(*shape, high=4):
    return RNG.integers(0, high, shape)


def signs(*shape):
    return RNG.choice([-1.0, 1.0], shape).astype(np.float32)


ROWS, LINE, IMAGE, VOLUME = x(5, 6), x(2, 4, 8), x(2, 4, 8, 6), x(2, 4, 5, 6, 7)
BY_RANK = {1: LINE, 2: IMAGE, 3: VOLUME}
STEPS = x(5, 3, 6)


def packed(place):
    values = dptrain.tensor(STEPS, device=place)
    return rnn.pack_padded_sequence(values, [2, 5, 3], enforce_sorted=False)


#: Module -> (arguments of the constructor, arguments of the call); a list of such for several forms.
MODULES = {
    "AdaptiveLogSoftmaxWithLoss": [((6, 10, [3, 7]), (ROWS, i(5, high=10)))],
    "BCELoss": [((), (pos(4, 3), pos(4, 3))), ((pos(3),), (pos(4, 3), pos(4, 3)))],
    "BCEWithLogitsLoss": [((), (x(4, 3), pos(4, 3))), ((None, None, None, "mean", pos(3)), (x(4, 3), pos(4, 3)))],
    "Bilinear": [((6, 4, 3), (ROWS, x(5, 4)))],
    "CTCLoss": [((), (x(7, 2, 4), i(2, 3) % 3 + 1, (7, 5), (3, 2)))],
    "ChannelShuffle": [((2,), (IMAGE,))],
    "CosineEmbeddingLoss": [((0.2,), (ROWS, x(5, 6), signs(5)))],
    "CosineSimilarity": [((), (ROWS, x(5, 6)))],
    "CrossEntropyLoss": [((), (ROWS, i(5))), ((pos(6), None, 2, None, "mean", 0.1), (ROWS, i(5))), ((), (ROWS, pos(5, 6)))],
    "CrossMapLRN2d": [((3,), (IMAGE,))],
    "Embedding": [((4, 3, 1), (i(2, 5),)), ((4, 3, None, 1.0, 2.0, True), (i(2, 5),))],
    "EmbeddingBag": [((4, 3, None, 2.0, False, mode), (i(2, 5),)) for mode in ("sum", "mean", "max")]
    + [((4, 3, None, 2.0, True, "mean", False, None, False, 1), (i(6), np.array([0, 2, 2])))],
    "Flatten": [((), (IMAGE,))],
    "Fold": [(((4, 5), 2), (x(2, 12, 12),))],
    "FractionalMaxPool2d": [((2, 3), (IMAGE,)), ((2, None, 0.5), (IMAGE,))],
    "FractionalMaxPool3d": [((2, 3), (VOLUME,))],
    "GRU": [((6, 4, 2), (STEPS,)), ((6, 4, 1, True, False, 0.0, True), ("packed",))],
    "GRUCell": [((6, 4), (ROWS,))],
    "GaussianNLLLoss": [((), (ROWS, x(5, 6), pos(5, 6))), ((), (ROWS, x(5, 6), 0.5))],
    "GroupNorm": [((2, 4), (IMAGE,))],
    "HingeEmbeddingLoss": [((), (ROWS, signs(5, 6)))],
    "KLDivLoss": [((None, None, "batchmean"), (ROWS, pos(5, 6))), ((None, None, "mean", True), (ROWS, x(5, 6)))],
    "LSTM": [((6, 4, 2, True, True, 0.3, True, 2), (STEPS,)), ((6, 4), ("packed",))],
    "LSTMCell": [((6, 4), (ROWS,))],
    "LayerNorm": [((6,), (ROWS,)), (([8, 6], 1e-5, False), (IMAGE,))],
    "RMSNorm": [((6,), (ROWS,))],
    "Linear": [((6, 3), (ROWS,)), ((6, 3, False), (ROWS,))],
    "LazyLinear": [((3,), (ROWS,))],
    "LocalResponseNorm": [((2,), (IMAGE,))],
    "MarginRankingLoss": [((0.5,), (x(5), x(5), signs(5)))],
    "MultiLabelMarginLoss": [((), (ROWS, np.array([[1, 4, -1, 0, 2, 3]] * 5)))],
    "MultiLabelSoftMarginLoss": [((), (ROWS, i(5, 6, high=2).astype(np.float32)))],
    "MultiMarginLoss": [((), (ROWS, i(5))), ((2, 0.5, pos(6)), (ROWS, i(5)))],
    "MultiheadAttention": [((6, 2), (STEPS, STEPS, STEPS)), ((6, 3, 0.2, True, True, True), (STEPS, STEPS, STEPS))],
    "NLLLoss": [((), (ROWS, i(5))), ((pos(6), None, 2), (ROWS, i(5))), ((None, None, 2), (ROWS, i(5)))],
    "NLLLoss2d": [((), (IMAGE, i(2, 8, 6)))],
    "PReLU": [((), (IMAGE,)), ((4,), (IMAGE,))],
    "PairwiseDistance": [((), (ROWS, x(5, 6))), ((1.0,), (ROWS, x(5, 6)))],
    "PixelShuffle": [((2,), (IMAGE,))],
    "PixelUnshuffle": [((2,), (IMAGE,))],
    "PoissonNLLLoss": [((True, True), (ROWS, pos(5, 6) * 4))],
    "RNN": [((6, 4, 1, "relu"), (STEPS,)), ((6, 4), ("packed",))],
    "RNNCell": [((6, 4), (ROWS,))],
    "SoftMarginLoss": [((), (ROWS, signs(5, 6)))],
    "Softmax2d": [((), (IMAGE,))],
    "Threshold": [((0.1, 20.0), (IMAGE,))],
    "TransformerDecoderLayer": [((6, 2, 8), (STEPS, x(4, 3, 6)))],
    "TransformerEncoderLayer": [((6, 3, 8, 0.1, "gelu"), (STEPS,))],
    "Transformer": [((6, 2, 1, 1, 8), (STEPS, x(4, 3, 6)))],
    "TripletMarginLoss": [((1.0, 2.0, 1e-6, True), (ROWS, x(5, 6), x(5, 6)))],
    "TripletMarginWithDistanceLoss": [((), (ROWS, x(5, 6), x(5, 6)))],
    "Unflatten": [((1, (2, 3)), (ROWS,))],
    "Unfold": [((3, 1, 1, 2), (IMAGE,))],
    "Upsample": [
        ((None, 1.5, mode), (IMAGE,)) for mode in ("nearest", "bilinear", "bicubic")
    ] + [((5, None, "linear", True), (LINE,)), (((3, 7, 9), None, "trilinear"), (VOLUME,))],
    "UpsamplingBilinear2d": [((5,), (IMAGE,))],
    "UpsamplingNearest2d": [((None, 2), (IMAGE,))],
    "Identity": [((), (ROWS,))],
}  # fmt: skip
for _name in (
    *("CELU", "ELU", "GELU", "GLU", "Hardshrink", "Hardsigmoid", "Hardswish", "Hardtanh"),
    *("LeakyReLU", "LogSigmoid", "Mish", "RReLU", "ReLU", "ReLU6", "SELU", "SiLU", "Sigmoid"),
    *("Softplus", "Softshrink", "Softsign", "Tanh", "Tanhshrink"),
):
    MODULES[_name] = [((), (IMAGE,))]
for _name in ("LogSoftmax", "Softmax", "Softmin"):
    MODULES[_name] = [((1,), (IMAGE,))]
for _name in ("HuberLoss", "L1Loss", "MSELoss", "SmoothL1Loss"):
    MODULES[_name] = [((), (ROWS, x(5, 6)))]
for _name in ("AlphaDropout", "Dropout", "FeatureAlphaDropout"):
    MODULES[_name] = [((0.4,), (IMAGE,))]
for _d, _input in BY_RANK.items():
    for _name, _args in {
        "AdaptiveAvgPool": (3,), "AdaptiveMaxPool": (3, True), "AvgPool": (2, 2, 1, True, False),
        "BatchNorm": (4,), "InstanceNorm": (4, 1e-5, 0.1, True, True), "LazyBatchNorm": (),
        "LazyInstanceNorm": (), "Conv": (4, 6, 3, 2, 1, 1, 2), "ConvTranspose": (4, 6, 3, 2, 1, 1, 2),
        "LazyConv": (3, 2), "LazyConvTranspose": (3, 2), "Dropout": (0.4,), "LPPool": (2, 2),
        "MaxPool": (3, 2, 1, 1, True), "CircularPad": (2,), "ConstantPad": (2, 0.5),
        "ReflectionPad": (2,), "ReplicationPad": (2,), "ZeroPad": (1,),
    }.items():  # fmt: skip
        MODULES[f"{_name}{_d}d"] = [(_args, (_input,))]
    for _mode in ("circular", "reflect"):
        _options = (4, 3, 3, 1, 1, 1, 1, False, _mode)
        MODULES[f"Conv{_d}d"].append((_options, (_input,)))

#: Modules without a computation of their own, or whose computation the parts above make.
_BASES = {
    *("Module", "ModuleDict", "ModuleList", "ParameterDict", "ParameterList", "Sequential"),
    *("RNNBase", "RNNCellBase", "TransformerDecoder", "TransformerEncoder"),
    *("MaxUnpool1d", "MaxUnpool2d", "MaxUnpool3d"),  # below: they need positions
}


def test_every_module_is_in_the_table():
    found = {
        n for n, v in vars(nn).items() if isinstance(v, type) and issubclass(v, nn.Module)
    }
    assert found - _BASES == set(MODULES)


@pytest.mark.filterwarnings("ignore:`NLLLoss2d`", "ignore:Initializing zero-element", "ignore:.*batch_first was not")
@pytest.mark.parametrize("name", MODULES)
def test_module_stays_on_its_device(name):
    for made, called in MODULES[name]:
        for training in (True, False):

            def run(place, made=made, called=called, training=training):
                options = [dptrain.tensor(a) if isinstance(a, np.ndarray) else a for a in made]
                layer = getattr(nn, name)(*options)
                args = [packed(place) if isinstance(a, str) else moved(a, place) for a in called]
                return uses(layer.to(place), args, {}, training)

            same_everywhere(run)
