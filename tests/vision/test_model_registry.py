"""Models by name; weights from enumerations, names and files."""

import inspect
import warnings

import numpy as np
import pytest

import dptrain
from dptrain.vision import models
from dptrain.vision.models import weights as weights_module

small = {"num_classes": 3}


@pytest.fixture
def read_files(monkeypatch):
    """Stands in for the reader of files: what `path` gives is what was put there."""
    files = {}

    class Reader:
        load = staticmethod(lambda path: files[path.name])
        load_file = staticmethod(lambda path: files[path.name])

    real = weights_module.import_module
    monkeypatch.setattr(
        weights_module,
        "import_module",
        lambda name: Reader if name == "dptrain.serialization" else real(name),
    )
    return files


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = weights_module.weights_folder()
    folder.mkdir(parents=True)
    return folder


def test_names():
    names = models.list_models()
    assert names == sorted(names)
    assert {"resnet18", "vgg16_bn", "densenet121", "vit_b_16", "lenet", "resnet20"} <= set(names)
    assert models.list_models(include="resnext*") == [
        "resnext101_32x8d",
        "resnext101_64x4d",
        "resnext50_32x4d",
    ]
    assert models.list_models(include=["vgg*"], exclude="*_bn") == [
        "vgg11",
        "vgg13",
        "vgg16",
        "vgg19",
    ]
    assert models.list_models(module=models) == names
    assert models.list_models(module=models.squeezenet) == ["squeezenet1_0", "squeezenet1_1"]
    assert models.get_model_builder("ResNet18") is models.resnet18
    with pytest.raises(ValueError, match="Unknown model resnet19"):
        models.get_model("resnet19")
    with pytest.raises(ValueError, match="already registered under the name 'lenet'"):
        models.register_model()(models.lenet)


def test_builders_take_torchvisions_keywords():
    assert str(inspect.signature(models.resnet18)).startswith("(*, weights=None, progress=True")
    assert models.resnet18.__name__ == "resnet18"
    assert models.resnet20(num_classes=5).fc.out_features == 5
    with pytest.raises(TypeError, match="nun_classes"):
        models.lenet(nun_classes=5)


def test_enumerations_of_weights():
    enum = models.ResNet50_Weights
    assert list(enum.__members__) == ["IMAGENET1K_V1", "IMAGENET1K_V2", "DEFAULT"]
    assert enum.DEFAULT is enum.IMAGENET1K_V2
    assert enum.IMAGENET1K_V1.url == "https://download.pytorch.org/models/resnet50-0676ba61.pth"
    assert repr(enum.DEFAULT) == "ResNet50_Weights.IMAGENET1K_V2"
    assert models.get_weight("ResNet50_Weights.IMAGENET1K_V1") is enum.IMAGENET1K_V1
    assert models.get_model_weights("resnet50") is enum
    assert models.get_model_weights(models.resnet50) is enum
    assert enum.verify("ResNet50_Weights.DEFAULT") is enum.DEFAULT
    with pytest.raises(TypeError, match="expected ResNet50_Weights but received ResNet18_Weights"):
        enum.verify(models.ResNet18_Weights.DEFAULT)
    with pytest.raises(ValueError, match="Invalid weight name"):
        models.get_weight("ResNet50_Weights.V9")
    with pytest.raises(ValueError, match="no weights are published for lenet"):
        models.get_model_weights("lenet")


def test_weights_from_a_file(tmp_path, read_files):
    source = models.squeezenet1_1(**small)
    for name in ("mine.pth", "mine.safetensors"):
        (tmp_path / name).touch()
        read_files[name] = source.state_dict()
        model = models.squeezenet1_1(weights=tmp_path / name, **small)
        for key, value in source.state_dict().items():
            assert dptrain.equal(model.state_dict()[key], value)
    with pytest.raises(RuntimeError, match=r"size mismatch for classifier\.1\.weight"):
        models.squeezenet1_1(weights=str(tmp_path / "mine.pth"), num_classes=4)
    read_files["mine.pth"] = [1, 2]
    with pytest.raises(ValueError, match=r"mine\.pth: expected a state dict"):
        models.squeezenet1_1(weights=tmp_path / "mine.pth", **small)


def test_a_real_file_of_weights(tmp_path):
    serialization = pytest.importorskip("dptrain.serialization", reason="no reader of files yet")
    source = models.lenet()
    serialization.save(source.state_dict(), tmp_path / "lenet.pth")
    model = models.lenet(weights=tmp_path / "lenet.pth")
    assert dptrain.equal(model.classifier[0].weight, source.classifier[0].weight)


@pytest.mark.parametrize(
    "weights", ["DEFAULT", "IMAGENET1K_V1", "SqueezeNet1_1_Weights.DEFAULT", "member"]
)
def test_published_weights_lie_in_pytorchs_folder(home, read_files, weights):
    source = models.squeezenet1_1()
    (home / "squeezenet1_1-b8a52dc0.pth").touch()
    read_files["squeezenet1_1-b8a52dc0.pth"] = source.state_dict()
    if weights == "member":
        weights = models.SqueezeNet1_1_Weights.IMAGENET1K_V1
    model = models.squeezenet1_1(weights=weights)
    assert dptrain.equal(model.features[0].weight, source.features[0].weight)
    with pytest.raises(ValueError, match="'num_classes' expected value 1000 but got 3"):
        models.squeezenet1_1(weights=weights, num_classes=3)


def test_pretrained_is_the_old_spelling(home, read_files):
    source = models.squeezenet1_0()
    (home / "squeezenet1_0-b66bff10.pth").touch()
    read_files["squeezenet1_0-b66bff10.pth"] = source.state_dict()
    with pytest.warns(UserWarning, match="'pretrained' is deprecated"):
        model = models.squeezenet1_0(pretrained=True)
    assert dptrain.equal(model.features[0].weight, source.features[0].weight)
    with pytest.warns(UserWarning, match="weights=None"):
        models.lenet(pretrained=False)
    with warnings.catch_warnings(), pytest.raises(ValueError, match="got both"):
        models.lenet(pretrained=True, weights="DEFAULT")


def test_weights_that_are_not_there():
    with pytest.raises(ValueError, match=r"resnet18: weights='V7' is neither a file .*'DEFAULT'"):
        models.resnet18(weights="V7")
    with pytest.raises(ValueError, match="none are published"):
        models.lenet(weights="DEFAULT")
    with pytest.raises(TypeError, match=r"expected ResNet18_Weights .* received ResNet50_Weights"):
        models.resnet18(weights=models.ResNet50_Weights.DEFAULT)
    with pytest.raises(ValueError, match="neither a file"):
        models.resnet18(weights="ResNet50_Weights.DEFAULT")


def test_without_a_network_the_error_names_the_file_to_bring(home, monkeypatch):
    def refused(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", refused)
    with pytest.raises(RuntimeError, match=r"could not download resnet18-f37072fd\.pth") as error:
        models.resnet18(weights="DEFAULT")
    for part in ("no route to host", "SHA256 f37072fd", str(home / "resnet18-f37072fd.pth")):
        assert part in str(error.value)
    assert list(home.iterdir()) == []


def test_densenet_reads_the_names_of_the_published_files(tmp_path, read_files, monkeypatch):
    source = models.densenet121(**small).state_dict()
    old = {
        key.replace("norm1.", "norm.1.").replace("conv2.", "conv.2.")
        if "denselayer" in key
        else key: value
        for key, value in source.items()
    }
    assert list(old) != list(source)
    (tmp_path / "old.pth").touch()
    read_files["old.pth"] = old
    model = models.densenet121(weights=tmp_path / "old.pth", **small)
    key = "features.denseblock1.denselayer1.conv2.weight"
    np.testing.assert_array_equal(model.state_dict()[key].numpy(), source[key].numpy())
