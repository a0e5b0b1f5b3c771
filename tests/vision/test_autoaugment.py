"""RandAugment and TrivialAugment: what is drawn, how strong, and what it does."""

import numpy as np
import pytest

import dptrain
from dptrain.vision import transforms as T
from dptrain.vision.transforms import autoaugment
from dptrain.vision.transforms import functional as F

Image = pytest.importorskip("PIL.Image", reason="vision extra not installed")
PIXELS = np.random.default_rng(0).integers(20, 200, (20, 30, 3), dtype=np.uint8)


@pytest.fixture
def recorded(monkeypatch):
    """What was applied: pairs of name and strength; images are handed on."""
    calls = []
    for table in (autoaugment._MOVES, autoaugment._CHANGES):
        for name in table:
            monkeypatch.setitem(
                table,
                name,
                lambda img, strength, _name=name, **how: (calls.append((_name, strength)), img)[1],
            )
    return calls


def test_rand_augment_has_one_strength(recorded):
    x = dptrain.tensor(PIXELS.transpose(2, 0, 1))
    transform = T.RandAugment(num_ops=3, magnitude=15, num_magnitude_bins=31)
    for _ in range(100):
        assert transform(x) is x
    assert len(recorded) == 300
    assert len({name for name, _ in recorded}) == 14
    strength = {
        "ShearX": 0.15,
        "TranslateX": 150 / 331 * 30 / 2,
        "TranslateY": 150 / 331 * 20 / 2,
        "Rotate": 15.0,
        "Color": 0.45,
        "Posterize": 6,
        "Solarize": 127.5,
        "Equalize": 0,
    }
    for name, expected in strength.items():
        found = {value for called, value in recorded if called == name}
        assert all(abs(value) == pytest.approx(expected) for value in found)
        if name in ("Rotate", "Color"):
            assert len(found) == 2  # both signs


@pytest.mark.parametrize("policy", list(T.AutoAugmentPolicy))
def test_auto_augment_follows_its_policy(recorded, policy):
    x = dptrain.tensor(PIXELS.transpose(2, 0, 1))
    transform = T.AutoAugment(policy)
    assert len(transform.policies) == 25
    pairs = {(first[0], second[0]) for first, second in transform.policies}
    for _ in range(150):
        recorded.clear()
        transform(x)
        names = tuple(name for name, _ in recorded)
        assert len(names) < 2 or names in pairs
    transform.policies = [(("Rotate", 1.0, 9), ("Posterize", 0.0, 9))]
    recorded.clear()
    for _ in range(20):
        transform(x)
    assert {name for name, _ in recorded} == {"Rotate"}
    assert sorted({value for _, value in recorded}) == pytest.approx([-30, 30])
    assert len(recorded) == 20


def test_auto_augment_on_images():
    image = Image.fromarray(PIXELS)
    for policy in T.AutoAugmentPolicy:
        for _ in range(20):
            assert T.AutoAugment(policy)(image).size == (30, 20)
    assert repr(T.AutoAugment()) == "AutoAugment(policy=AutoAugmentPolicy.IMAGENET, fill=None)"


def test_trivial_augment_draws_the_strength(recorded):
    x = dptrain.tensor(PIXELS.transpose(2, 0, 1))
    for _ in range(400):
        T.TrivialAugmentWide()(x)
    assert len(recorded) == 400
    angles = [value for name, value in recorded if name == "Rotate"]
    assert max(map(abs, angles)) <= 135
    assert len(set(angles)) > 5
    assert {value for name, value in recorded if name == "Posterize"} <= set(range(2, 9))


@pytest.mark.parametrize("name", [*autoaugment._MOVES, *autoaugment._CHANGES])
def test_tensors_and_pil_images_agree(name):
    image = Image.fromarray(PIXELS)
    tensor = F.pil_to_tensor(image)
    strength = {"Posterize": 3, "Solarize": 99.0, "Rotate": 20.0, "TranslateX": 7, "TranslateY": -4}
    value = strength.get(name, 0.3)
    if name in autoaugment._MOVES:
        how = {"interpolation": T.InterpolationMode.NEAREST, "fill": None}
        found = [autoaugment._MOVES[name](img, value, **how) for img in (image, tensor)]
    else:
        found = [autoaugment._CHANGES[name](img, value) for img in (image, tensor)]
    theirs, ours = F.pil_to_tensor(found[0]).numpy().astype(int), found[1].numpy()
    assert (np.abs(theirs - ours) > 2).mean() < 0.05
    if name != "Identity":
        assert not np.array_equal(ours, tensor.numpy())


def test_the_seed_decides():
    x = dptrain.tensor(PIXELS.transpose(2, 0, 1))
    results = []
    for seed in (5, 5, 6):
        dptrain.manual_seed(seed)
        results.append(np.stack([T.RandAugment(fill=3)(x).numpy() for _ in range(5)]))
    assert np.array_equal(results[0], results[1])
    assert not np.array_equal(results[0], results[2])


def test_refused_strengths():
    with pytest.raises(ValueError, match="magnitude should be in"):
        T.RandAugment(magnitude=31)
    with pytest.raises(ValueError, match="at least 2"):
        T.TrivialAugmentWide(1)
