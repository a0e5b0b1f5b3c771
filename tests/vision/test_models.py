"""Models: published parameter counts, torchvision's state_dict keys, shapes, gradients, numerics."""

import numpy as np
import pytest

import dptrain
from dptrain import nn
from dptrain.vision import models
from dptrain.vision.models.initial import he_normal

#: From the papers and the documentation of the published weights.
PUBLISHED = {
    "alexnet": 61_100_840,
    "vgg11": 132_863_336,
    "vgg11_bn": 132_868_840,
    "vgg13": 133_047_848,
    "vgg13_bn": 133_053_736,
    "vgg16": 138_357_544,
    "vgg16_bn": 138_365_992,
    "vgg19": 143_667_240,
    "vgg19_bn": 143_678_248,
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "wide_resnet50_2": 68_883_240,
    "wide_resnet101_2": 126_886_696,
    "resnext50_32x4d": 25_028_904,
    "resnext101_32x8d": 88_791_336,
    "resnext101_64x4d": 83_455_272,
    "densenet121": 7_978_856,
    "densenet161": 28_681_000,
    "densenet169": 14_149_480,
    "densenet201": 20_013_928,
    "squeezenet1_0": 1_248_424,
    "squeezenet1_1": 1_235_496,
    "mobilenet_v2": 3_504_872,
    "vit_b_16": 86_567_656,
    "vit_b_32": 88_224_232,
    "vit_l_16": 304_326_632,
    "vit_l_32": 306_535_400,
}


@pytest.fixture
def no_draws(monkeypatch):
    """Parameters keep the untouched memory they got: their number is all that is asked."""
    for name in ("uniform_", "normal_", "trunc_normal_"):
        monkeypatch.setattr(nn.init, name, lambda tensor, *args, **kwargs: tensor)


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.usefixtures("no_draws")
@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_counts_are_the_published_ones(name):
    assert count(models.get_model(name)) == PUBLISHED[name]
    assert models.get_model_weights(name).DEFAULT.meta["num_params"] == PUBLISHED[name]


def test_cifar_models_have_the_papers_sizes():
    """He et al., table 6: 0.27 M, 0.85 M; LeNet-5 by hand."""
    assert round(count(models.resnet20()) / 1e6, 2) == 0.27
    assert round(count(models.resnet56()) / 1e6, 2) == 0.85
    convolutions = (25 * 1 + 1) * 6 + (25 * 6 + 1) * 16
    assert count(models.lenet()) == convolutions + 401 * 120 + 121 * 84 + 85 * 10


SMALL = [
    ("resnet18", 32),
    ("resnet50", 32),
    ("resnext50_32x4d", 32),
    ("densenet121", 32),
    ("squeezenet1_0", 32),
    ("squeezenet1_1", 32),
    ("mobilenet_v2", 32),
    ("resnet20", 32),
    ("lenet", 28),
]


def check_shapes_and_gradients(model, size, channels=3):
    out = model(dptrain.randn(2, channels, size, size))
    assert out.shape == (2, 7)
    # A loss of the sum alone would be blind to what comes before a batch normalisation.
    (out * dptrain.arange(14.0).reshape(2, 7)).sum().backward()
    missing = [key for key, p in model.named_parameters() if p.grad is None]
    assert missing == []
    first = next(model.parameters()).grad
    assert np.isfinite(first.numpy()).all()
    assert np.abs(first.numpy()).max() > 0


@pytest.mark.parametrize(("name", "size"), SMALL)
def test_shapes_and_gradients(name, size):
    model = models.get_model(name, num_classes=7)
    check_shapes_and_gradients(model, size, 1 if name == "lenet" else 3)


@pytest.mark.parametrize(
    ("name", "size", "features"), [("alexnet", 63, 9216), ("vgg11_bn", 32, 25088)]
)
def test_features_with_another_classifier(name, size, features, monkeypatch):
    """The usual change before fine tuning; it also spares the test a hundred million weights."""
    with monkeypatch.context() as patch:
        for draw in ("uniform_", "normal_"):
            patch.setattr(nn.init, draw, lambda tensor, *args, **kwargs: tensor)
        model = models.get_model(name)
    model.classifier = nn.Linear(features, 7)
    he_normal(model)
    check_shapes_and_gradients(model, size)


def tiny_vit():
    from dptrain.vision.models.vision_transformer import VisionTransformer

    return VisionTransformer(16, 8, 2, 2, 12, 24, num_classes=5, representation_size=6)


def test_vit_shapes_keys_and_errors():
    model = tiny_vit()
    with dptrain.no_grad():
        model.heads.head.weight.normal_()
    model(dptrain.randn(2, 3, 16, 16)).sum().backward()
    assert model.conv_proj.weight.grad.abs().max() > 0
    keys = list(model.state_dict())
    block = [
        f"encoder.layers.encoder_layer_0.{key}"
        for key in (
            "ln_1.weight",
            "ln_1.bias",
            "self_attention.in_proj_weight",
            "self_attention.in_proj_bias",
            "self_attention.out_proj.weight",
            "self_attention.out_proj.bias",
            "ln_2.weight",
            "ln_2.bias",
            "mlp.0.weight",
            "mlp.0.bias",
            "mlp.3.weight",
            "mlp.3.bias",
        )
    ]
    assert keys[:4] == [
        "class_token",
        "conv_proj.weight",
        "conv_proj.bias",
        "encoder.pos_embedding",
    ]
    assert keys[4:16] == block
    assert keys[-6:] == [
        "encoder.ln.weight",
        "encoder.ln.bias",
        "heads.pre_logits.weight",
        "heads.pre_logits.bias",
        "heads.head.weight",
        "heads.head.bias",
    ]
    with pytest.raises(RuntimeError, match="Wrong image height! Expected 16 but got 24!"):
        model(dptrain.randn(1, 3, 24, 24))


def norm(prefix):
    return [
        f"{prefix}.{key}"
        for key in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    ]


@pytest.mark.usefixtures("no_draws")
def test_state_dict_keys_of_resnets():
    keys = list(models.resnet18().state_dict())
    assert keys[:12] == [
        "conv1.weight",
        *norm("bn1"),
        "layer1.0.conv1.weight",
        *norm("layer1.0.bn1"),
    ]
    start = keys.index("layer2.0.conv1.weight")
    assert keys[start : start + 18] == [
        "layer2.0.conv1.weight",
        *norm("layer2.0.bn1"),
        "layer2.0.conv2.weight",
        *norm("layer2.0.bn2"),
        "layer2.0.downsample.0.weight",
        *norm("layer2.0.downsample.1"),
    ]
    assert keys[-2:] == ["fc.weight", "fc.bias"]
    assert len(keys) == 122
    bottleneck = list(models.resnet50().state_dict())
    assert [k for k in bottleneck if k.startswith("layer1.0")] == [
        "layer1.0.conv1.weight",
        *norm("layer1.0.bn1"),
        "layer1.0.conv2.weight",
        *norm("layer1.0.bn2"),
        "layer1.0.conv3.weight",
        *norm("layer1.0.bn3"),
        "layer1.0.downsample.0.weight",
        *norm("layer1.0.downsample.1"),
    ]
    assert len(bottleneck) == 320


@pytest.mark.usefixtures("no_draws")
def test_state_dict_keys_of_the_others():
    def names(model):
        return list(dict.fromkeys(key.rpartition(".")[0] for key in model.state_dict()))

    assert names(models.alexnet()) == [
        *(f"features.{i}" for i in (0, 3, 6, 8, 10)),
        *(f"classifier.{i}" for i in (1, 4, 6)),
    ]
    assert names(models.vgg11_bn())[:5] == [f"features.{i}" for i in (0, 1, 4, 5, 8)]
    assert names(models.vgg16())[-3:] == [f"classifier.{i}" for i in (0, 3, 6)]
    dense = names(models.densenet121())
    layer = "features.denseblock1.denselayer1"
    assert dense[:6] == [
        "features.conv0",
        "features.norm0",
        *(f"{layer}.{part}" for part in ("norm1", "conv1", "norm2", "conv2")),
    ]
    assert "features.transition1.norm" in dense
    assert dense[-2:] == ["features.norm5", "classifier"]
    squeeze = names(models.squeezenet1_0())
    assert squeeze[:4] == [
        "features.0",
        "features.3.squeeze",
        "features.3.expand1x1",
        "features.3.expand3x3",
    ]
    assert squeeze[-4:] == [
        *(f"features.12.{part}" for part in ("squeeze", "expand1x1", "expand3x3")),
        "classifier.1",
    ]
    assert names(models.squeezenet1_1())[-2].startswith("features.12.")
    mobile = names(models.mobilenet_v2())
    assert mobile[:10] == [
        "features.0.0",
        "features.0.1",
        "features.1.conv.0.0",
        "features.1.conv.0.1",
        "features.1.conv.1",
        "features.1.conv.2",
        "features.2.conv.0.0",
        "features.2.conv.0.1",
        "features.2.conv.1.0",
        "features.2.conv.1.1",
    ]
    assert mobile[-3:] == ["features.18.0", "features.18.1", "classifier.1"]


# ---- numerics: the same architecture in torch.nn, with the same values --------------------------------


def torch_basic_block(torch, inputs, outputs, stride):
    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            conv, norm = torch.nn.Conv2d, torch.nn.BatchNorm2d
            self.conv1, self.bn1 = conv(inputs, outputs, 3, stride, 1, bias=False), norm(outputs)
            self.conv2, self.bn2 = conv(outputs, outputs, 3, 1, 1, bias=False), norm(outputs)
            self.downsample = None
            if stride != 1:
                self.downsample = torch.nn.Sequential(
                    conv(inputs, outputs, 1, stride, bias=False), norm(outputs)
                )

        def forward(self, x):
            inside = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
            return (inside + (x if self.downsample is None else self.downsample(x))).relu()

    return Block()


def torch_resnet18(torch, num_classes):
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1 = torch.nn.Conv2d(3, 64, 7, 2, 3, bias=False)
            self.bn1 = torch.nn.BatchNorm2d(64)
            widths = [64, 64, 128, 256, 512]
            for i in range(1, 5):
                stage = torch.nn.Sequential(
                    torch_basic_block(torch, widths[i - 1], widths[i], 1 if i == 1 else 2),
                    torch_basic_block(torch, widths[i], widths[i], 1),
                )
                self.add_module(f"layer{i}", stage)
            self.fc = torch.nn.Linear(512, num_classes)

        def forward(self, x):
            x = torch.nn.functional.max_pool2d(self.bn1(self.conv1(x)).relu(), 3, 2, 1)
            x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
            return self.fc(x.mean((2, 3)))

    return Net()


@pytest.mark.oracle
def test_resnet18_computes_what_the_same_layers_compute_in_torch():
    torch = pytest.importorskip("torch", reason="extra oracle not installed")
    dptrain.manual_seed(3)
    ours, theirs = models.resnet18(num_classes=4).double(), torch_resnet18(torch, 4).double()
    state = {key: torch.tensor(value.numpy()) for key, value in ours.state_dict().items()}
    assert list(state) == list(theirs.state_dict())
    theirs.load_state_dict(state)
    x = np.random.default_rng(0).standard_normal((2, 3, 64, 64))
    out, expected = ours(dptrain.tensor(x)), theirs(torch.tensor(x))
    np.testing.assert_allclose(out.detach().numpy(), expected.detach().numpy(), rtol=1e-9)
    out[:, 1].sum().backward()
    expected[:, 1].sum().backward()
    found, wanted = ours.conv1.weight.grad.numpy(), theirs.conv1.weight.grad.numpy()
    np.testing.assert_allclose(found, wanted, atol=1e-9 * np.abs(wanted).max())
    ours.eval(), theirs.eval()
    with dptrain.no_grad(), torch.no_grad():
        found, wanted = ours(dptrain.tensor(x)).numpy(), theirs(torch.tensor(x)).numpy()
    np.testing.assert_allclose(found, wanted, atol=1e-9 * np.abs(wanted).max())


@pytest.mark.oracle
def test_vit_computes_what_torchs_encoder_computes():
    torch = pytest.importorskip("torch", reason="extra oracle not installed")
    ours = tiny_vit().eval()
    with dptrain.no_grad():
        for parameter in ours.parameters():
            parameter.copy_(dptrain.randn(parameter.shape) * 0.3)
    p = {key: torch.tensor(value.numpy()) for key, value in ours.state_dict().items()}
    x = torch.randn(2, 3, 16, 16)
    functional = torch.nn.functional
    patches = functional.conv2d(x, p["conv_proj.weight"], p["conv_proj.bias"], stride=8)
    tokens = torch.cat([p["class_token"].expand(2, 1, 12), patches.flatten(2).mT], 1)
    tokens = tokens + p["encoder.pos_embedding"]
    for i in range(2):
        layer = torch.nn.TransformerEncoderLayer(
            12, 2, 24, 0.0, "gelu", 1e-6, batch_first=True, norm_first=True
        )
        pre = f"encoder.layers.encoder_layer_{i}."
        names = {"ln_1": "norm1", "ln_2": "norm2", "self_attention": "self_attn"}
        names |= {"mlp.0": "linear1", "mlp.3": "linear2"}
        state = {}
        for key, value in p.items():
            if key.startswith(pre):
                rest = key.removeprefix(pre)
                old = next(name for name in names if rest.startswith(name))
                state[names[old] + rest.removeprefix(old)] = value
        layer.load_state_dict(state)
        tokens = layer(tokens)
    token = functional.layer_norm(
        tokens[:, 0], (12,), p["encoder.ln.weight"], p["encoder.ln.bias"], 1e-6
    )
    hidden = functional.linear(token, p["heads.pre_logits.weight"], p["heads.pre_logits.bias"])
    expected = functional.linear(hidden.tanh(), p["heads.head.weight"], p["heads.head.bias"])
    out = ours(dptrain.tensor(x.numpy()))
    np.testing.assert_allclose(out.detach().numpy(), expected.detach().numpy(), atol=1e-4)


# ---- constructor arguments ------------------------------------------------------------------------------


def test_memory_efficient_densenet_has_the_same_gradients():
    from dptrain.vision.models.densenet import DenseNet

    x = dptrain.randn(2, 3, 32, 32)
    grads = []
    for efficient in (False, True):
        dptrain.manual_seed(0)
        model = DenseNet(4, (2, 2), 8, num_classes=3, memory_efficient=efficient)
        (model(x) ** 2).sum().backward()
        grads.append([p.grad.numpy() for p in model.parameters()])
    for plain, again in zip(*grads, strict=True):
        np.testing.assert_allclose(plain, again, rtol=1e-5, atol=1e-6)


def test_dilation_keeps_the_size_and_the_parameters():
    from dptrain.vision.models.resnet import Bottleneck, ResNet

    layers = [1, 1, 2, 1]
    plain = ResNet(Bottleneck, layers)
    dilated = ResNet(Bottleneck, layers, replace_stride_with_dilation=(False, True, True))
    assert count(plain) == count(dilated)
    dilations = [m.dilation[0] for m in dilated.layer3.modules() if isinstance(m, nn.Conv2d)]
    assert max(dilations) == 2
    assert dilated.layer3[0].conv2.dilation == (1, 1)
    assert dilated.layer4[0].conv2.dilation == (2, 2)
    assert dilated.layer4[0].conv2.stride == (1, 1)
    with pytest.raises(ValueError, match="3-element"):
        ResNet(Bottleneck, layers, replace_stride_with_dilation=(True,))


def test_zero_init_residual_starts_as_the_shortcut():
    from dptrain.vision.models.resnet import BasicBlock, ResNet

    model = ResNet(BasicBlock, [1, 1, 1, 1], zero_init_residual=True)
    x = dptrain.randn(1, 64, 4, 4).abs()
    assert dptrain.equal(model.layer1[0](x), x)


def test_refused_arguments():
    from dptrain.vision.models.cifar_resnet import CifarResNet
    from dptrain.vision.models.mobilenetv2 import InvertedResidual, MobileNetV2
    from dptrain.vision.models.resnet import BasicBlock

    with pytest.raises(ValueError, match="groups=1 and base_width=64"):
        BasicBlock(4, 4, groups=2)
    with pytest.raises(NotImplementedError, match="Dilation > 1"):
        BasicBlock(4, 4, dilation=2)
    with pytest.raises(ValueError, match="1_0 or 1_1"):
        models.SqueezeNet("2_0")
    with pytest.raises(ValueError, match="4-element"):
        MobileNetV2(inverted_residual_setting=[[1, 2]])
    with pytest.raises(ValueError, match="stride should be 1 or 2"):
        InvertedResidual(3, 3, 3, 1)
    with pytest.raises(ValueError, match="6 n"):
        CifarResNet(21)


def test_initial_values_follow_the_rules():
    dptrain.manual_seed(0)
    model = models.resnet18(num_classes=3)
    weight = model.layer4[1].conv2.weight.detach().numpy()
    assert weight.std() == pytest.approx(np.sqrt(2 / (512 * 9)), rel=0.01)  # He, fan out
    squeeze = models.squeezenet1_1()
    assert squeeze.classifier[1].weight.detach().numpy().std() == pytest.approx(0.01, rel=0.01)
    assert squeeze.features[0].bias.abs().max() == 0
    mobile = models.mobilenet_v2()
    assert mobile.classifier[1].weight.detach().numpy().std() == pytest.approx(0.01, rel=0.01)
    vit = tiny_vit()
    assert vit.heads.head.weight.abs().max() == 0
    assert vit.class_token.abs().max() == 0
