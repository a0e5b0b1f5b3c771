"""Every layer against PyTorch's of the same name: text, state, outputs and gradients."""

import numpy as np
import pytest
from layer_oracle import agree, same_text_and_state, spread_agrees

import dptrain

torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
pytestmark = [
    pytest.mark.oracle,
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel"),
    pytest.mark.filterwarnings("ignore:.*batch_first was not True"),
]
RNG = np.random.default_rng(11)


def x(*shape):
    return RNG.standard_normal(shape)


def pos(*shape):
    return RNG.uniform(0.5, 2.0, shape)


def i(*shape, high=5):
    return RNG.integers(0, high, shape)


LINE, IMAGE, VOLUME = x(2, 4, 7), x(2, 4, 6, 5), x(2, 4, 4, 3, 5)

#: The layer (built by either library), and the arguments of its call.
LAYERS = {
    "Conv1d": (lambda n: n.Conv1d(4, 6, 3, padding=1, groups=2), [LINE]),
    "Conv1d same": (lambda n: n.Conv1d(4, 3, 4, padding="same", padding_mode="circular"), [LINE]),
    "Conv2d reflect": (
        lambda n: n.Conv2d(4, 3, 3, padding=(1, 2), padding_mode="reflect"),
        [IMAGE],
    ),
    "Conv2d valid": (
        lambda n: n.Conv2d(4, 3, 3, padding="valid", padding_mode="replicate"),
        [IMAGE],
    ),
    "Conv3d": (lambda n: n.Conv3d(4, 2, (2, 3, 1), 2, (1, 0, 1), bias=False), [VOLUME]),
    "ConvTranspose1d": (lambda n: n.ConvTranspose1d(4, 6, 3, 2, 1, 1, groups=2), [LINE]),
    "ConvTranspose2d": (lambda n: n.ConvTranspose2d(4, 3, (2, 3), 2, dilation=2), [IMAGE]),
    "ConvTranspose2d sized": (
        lambda n: n.ConvTranspose2d(4, 3, 3, stride=2, padding=1, bias=False),
        [IMAGE, [12, 9]],
    ),
    "ConvTranspose3d": (lambda n: n.ConvTranspose3d(4, 2, 2, 1, 1), [VOLUME]),
    "MaxPool1d": (lambda n: n.MaxPool1d(3, stride=2, padding=1), [LINE]),
    "MaxPool2d indices": (lambda n: n.MaxPool2d(2, return_indices=True), [IMAGE]),
    "MaxPool3d": (lambda n: n.MaxPool3d(2, ceil_mode=True), [VOLUME]),
    "AvgPool1d": (lambda n: n.AvgPool1d(3, 2, 1, count_include_pad=False), [LINE]),
    "AvgPool3d": (lambda n: n.AvgPool3d((2, 1, 3)), [VOLUME]),
    "LPPool1d": (lambda n: n.LPPool1d(2, 3), [pos(2, 3, 7)]),
    "LPPool2d": (lambda n: n.LPPool2d(3, 2, stride=1), [pos(2, 3, 5, 6)]),
    "LPPool3d": (lambda n: n.LPPool3d(2, 2, ceil_mode=True), [pos(1, 2, 4, 5, 4)]),
    "AdaptiveAvgPool1d": (lambda n: n.AdaptiveAvgPool1d(3), [LINE]),
    "AdaptiveAvgPool2d": (lambda n: n.AdaptiveAvgPool2d((None, 2)), [IMAGE]),
    "AdaptiveAvgPool3d": (lambda n: n.AdaptiveAvgPool3d(1), [VOLUME]),
    "AdaptiveMaxPool1d": (lambda n: n.AdaptiveMaxPool1d(3), [LINE]),
    "AdaptiveMaxPool2d": (lambda n: n.AdaptiveMaxPool2d((4, 2), return_indices=True), [IMAGE]),
    "AdaptiveMaxPool3d": (lambda n: n.AdaptiveMaxPool3d(2), [VOLUME]),
    "FractionalMaxPool2d": (lambda n: n.FractionalMaxPool2d(2, output_size=1), [x(2, 3, 2, 2)]),
    "FractionalMaxPool3d": (lambda n: n.FractionalMaxPool3d(2, 1), [x(2, 3, 3, 3, 3)]),
    "MaxUnpool1d": (lambda n: n.MaxUnpool1d(2), [x(1, 3), np.array([[1, 2, 5]])]),
    "MaxUnpool2d": (lambda n: n.MaxUnpool2d(2, 2), [x(1, 1, 2), np.array([[[1, 6]]])]),
    "MaxUnpool3d": (lambda n: n.MaxUnpool3d((1, 2, 1)), [x(1, 1, 1, 2), np.array([[[[1, 2]]]])]),
    "Unfold": (lambda n: n.Unfold((2, 3), padding=1), [IMAGE]),
    "Fold": (lambda n: n.Fold((4, 3), 2), [x(2, 8, 6)]),
    "BatchNorm1d": (lambda n: n.BatchNorm1d(4), [LINE]),
    "BatchNorm1d flat": (lambda n: n.BatchNorm1d(4, affine=False), [x(6, 4)]),
    "BatchNorm2d": (lambda n: n.BatchNorm2d(4, eps=0.1, momentum=None), [IMAGE]),
    "BatchNorm2d untracked": (lambda n: n.BatchNorm2d(4, track_running_stats=False), [IMAGE]),
    "BatchNorm3d": (lambda n: n.BatchNorm3d(4, bias=False), [VOLUME]),
    "InstanceNorm1d": (lambda n: n.InstanceNorm1d(4), [LINE]),
    "InstanceNorm2d": (
        lambda n: n.InstanceNorm2d(4, affine=True, track_running_stats=True),
        [IMAGE],
    ),
    "InstanceNorm3d": (lambda n: n.InstanceNorm3d(4, affine=True), [VOLUME[0]]),
    "LayerNorm": (lambda n: n.LayerNorm((6, 5)), [IMAGE]),
    "LayerNorm no bias": (lambda n: n.LayerNorm(7, bias=False, eps=0.01), [LINE]),
    "LayerNorm plain": (lambda n: n.LayerNorm(7, elementwise_affine=False), [LINE]),
    "RMSNorm": (lambda n: n.RMSNorm(7), [LINE]),
    "RMSNorm plain": (lambda n: n.RMSNorm([6, 5], 0.1, elementwise_affine=False), [IMAGE]),
    "GroupNorm": (lambda n: n.GroupNorm(2, 4), [IMAGE]),
    "GroupNorm plain": (lambda n: n.GroupNorm(4, 4, affine=False), [LINE]),
    "LocalResponseNorm": (lambda n: n.LocalResponseNorm(3, alpha=0.1), [IMAGE]),
    "Dropout1d": (lambda n: n.Dropout1d(0.0), [LINE]),
    "Dropout2d": (lambda n: n.Dropout2d(0.0), [IMAGE]),
    "Dropout3d": (lambda n: n.Dropout3d(1.0), [VOLUME]),
    "AlphaDropout": (lambda n: n.AlphaDropout(0.0), [LINE]),
    "FeatureAlphaDropout": (lambda n: n.FeatureAlphaDropout(0.0), [LINE]),
    "Embedding": (lambda n: n.Embedding(5, 3, padding_idx=-2), [i(2, 4)]),
    "Embedding norm": (lambda n: n.Embedding(5, 3, max_norm=0.5, norm_type=1.0), [i(7)]),
    "Embedding scaled": (lambda n: n.Embedding(5, 3, scale_grad_by_freq=True), [i(9)]),
    "EmbeddingBag": (lambda n: n.EmbeddingBag(5, 3, mode="sum"), [i(2, 4)]),
    "EmbeddingBag max": (
        lambda n: n.EmbeddingBag(5, 3, mode="max", padding_idx=1),
        [i(6), np.array([0, 3])],
    ),
    "Bilinear": (lambda n: n.Bilinear(3, 2, 4), [x(5, 3), x(5, 2)]),
    "PixelShuffle": (lambda n: n.PixelShuffle(2), [IMAGE]),
    "PixelUnshuffle": (lambda n: n.PixelUnshuffle(2), [x(1, 4, 6)]),
    "ChannelShuffle": (lambda n: n.ChannelShuffle(2), [IMAGE]),
    "Upsample": (lambda n: n.Upsample(scale_factor=2, mode="bilinear"), [IMAGE]),
    "Upsample size": (lambda n: n.Upsample((3, 4)), [IMAGE]),
    "Upsample factors": (lambda n: n.Upsample(scale_factor=(2, 1.5), mode="bicubic"), [IMAGE]),
    "UpsamplingNearest2d": (lambda n: n.UpsamplingNearest2d(scale_factor=2), [IMAGE]),
    "UpsamplingBilinear2d": (lambda n: n.UpsamplingBilinear2d((3, 8)), [IMAGE]),
    "Unflatten": (lambda n: n.Unflatten(1, (2, -1)), [IMAGE]),
    "ConstantPad2d": (lambda n: n.ConstantPad2d((1, 0, 2, 1), 3.5), [IMAGE]),
    **{
        f"{kind}{rank}d": (lambda n, kind=kind, rank=rank: getattr(n, f"{kind}{rank}d")(2), [value])
        for kind in ("ZeroPad", "ReflectionPad", "ReplicationPad", "CircularPad")
        for rank, value in ((1, LINE), (2, IMAGE), (3, VOLUME))
    },
    "ConstantPad1d": (lambda n: n.ConstantPad1d(1, 0.5), [LINE]),
    "ConstantPad3d": (lambda n: n.ConstantPad3d(1, 0.5), [VOLUME]),
}


@pytest.mark.parametrize("name", LAYERS)
def test_text_keys_and_shapes_are_those_of_pytorch(name):
    same_text_and_state(LAYERS[name][0])


@pytest.mark.parametrize("name", LAYERS)
def test_outputs_gradients_and_state_are_those_of_pytorch(name):
    agree(*LAYERS[name])


DRAWN = {
    "Conv1d": lambda n: n.Conv1d(8, 50, 5),
    "Conv3d": lambda n: n.Conv3d(4, 20, 3, groups=2),
    "ConvTranspose2d": lambda n: n.ConvTranspose2d(8, 50, 3),
    "Embedding": lambda n: n.Embedding(50, 40),
    "Bilinear": lambda n: n.Bilinear(10, 12, 20),
}


@pytest.mark.parametrize("name", DRAWN)
def test_initial_values_have_the_spread_of_pytorch(name):
    torch.manual_seed(0)
    dptrain.manual_seed(0)
    spread_agrees(DRAWN[name])


def test_containers_print_and_hold_as_pytorch():
    made = []
    for lib in (dptrain, torch):
        n = lib.nn
        by_name = n.ModuleDict({"a": n.Linear(2, 3), "b": n.ReLU()})
        by_name.update([("c", n.Linear(1, 1))])
        values = n.ParameterList([n.Parameter(lib.zeros(2)), lib.zeros(3, 1)])
        values.append(n.Parameter(lib.zeros(1)))
        named = n.ParameterDict({"x": n.Parameter(lib.zeros(2, 3)), "y": lib.zeros(1)})
        whole = n.ModuleDict({"d": by_name, "l": values, "p": named})
        made.append(whole)
        assert by_name.pop("b") is not None
        assert "b" not in by_name
        assert len(by_name) == 2
        assert len(values[1:]) == 2
        assert values[-1] is values[2]
        assert named.get("z") is None
        assert (named | n.ParameterDict({"q": n.Parameter(lib.zeros(1))})).keys() == {
            "x": 0,
            "y": 0,
            "q": 0,
        }.keys()
    ours, theirs = made
    assert repr(ours) == repr(theirs).replace("torch.", "dptrain.")
    assert list(ours.state_dict()) == list(theirs.state_dict())


@pytest.mark.parametrize("name", ["Dropout1d", "Dropout2d", "Dropout3d", "FeatureAlphaDropout"])
def test_channels_are_dropped_whole(name):
    dptrain.manual_seed(0)
    rank = int(name[-2]) if name[-1] == "d" else 2
    value = dptrain.ones(40, 50, *(3,) * rank)
    out = getattr(dptrain.nn, name)(0.3)(value).numpy().reshape(2000, -1)
    assert (out == out[:, :1]).all()
    dropped = (out[:, 0] != out.max()).mean()
    assert abs(dropped - 0.3) < 0.05


def test_alpha_dropout_keeps_mean_and_variance():
    dptrain.manual_seed(0)
    value = dptrain.randn(200_000, dtype=dptrain.float64)
    out = dptrain.nn.AlphaDropout(0.25)(value).numpy()
    assert abs(out.mean()) < 0.02
    assert abs(out.std() - 1) < 0.02
    assert len(np.unique(out)) < 0.8 * len(out)
