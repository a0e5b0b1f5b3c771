"""Metrics are the figures of all ranks' samples together: exact, however they are split."""

import math
from fractions import Fraction

import numpy as np
import pytest

import dptrain
from dptrain import metrics
from dptrain.comm import run_ranks, set_default


def draws(samples=60, classes=7, seed=0):
    stream = np.random.default_rng(seed)
    scores = stream.standard_normal((samples, classes)).astype(np.float32)
    return scores, stream.integers(0, classes, samples)


def tensors(*arrays):
    return [dptrain.from_numpy(np.ascontiguousarray(a)) for a in arrays]


#: Where rank r of so many begins and ends: uneven, and some ranks are empty.
SPLITS = {
    1: [(0, 60)],
    2: [(0, 7), (7, 60)],
    3: [(0, 59), (59, 59), (59, 60)],
    4: [(0, 0), (0, 30), (30, 31), (31, 60)],
}


def on_ranks(count, function):
    """The results of `function(rank)` on ranks that are threads."""

    def rank(communicator):
        set_default(communicator)
        return function(communicator.rank)

    return run_ranks(count, rank)


def over_ranks(count, make, *arrays, batch=5):
    """`compute()` of each rank after its share of the arrays, in batches."""

    def run(rank):
        metric = make()
        start, stop = SPLITS[count][rank]
        for i in range(start, stop, batch):
            metric.update(*tensors(*(a[i : min(i + batch, stop)] for a in arrays)))
        return metric.compute()

    return on_ranks(count, run)


@pytest.mark.parametrize("ranks", SPLITS)
@pytest.mark.parametrize("k", [1, 3, 7])
def test_accuracy_is_the_share_over_all_ranks(ranks, k):
    scores, classes = draws()
    best = np.argsort(-scores, 1)[:, :k]
    expected = np.mean([c in row for c, row in zip(classes, best, strict=True)])
    for found in over_ranks(ranks, lambda: metrics.Accuracy(top_k=k), scores, classes):
        assert found.item() == expected
        assert found.dtype is dptrain.float64


@pytest.mark.parametrize("ranks", SPLITS)
def test_accuracy_of_predicted_classes_and_of_pixels(ranks):
    stream = np.random.default_rng(1)
    predicted, classes = stream.integers(0, 3, (2, 60, 4))
    for found in over_ranks(ranks, metrics.Accuracy, predicted, classes):
        assert found.item() == (predicted == classes).mean()
    scores = stream.standard_normal((60, 3, 4))
    for found in over_ranks(ranks, metrics.Accuracy, scores, classes):
        assert found.item() == (scores.argmax(1) == classes).mean()


def test_equal_scores_are_ordered_by_class_and_nan_is_never_right():
    scores = dptrain.tensor([[1.0, 1.0, 1.0]] * 3)
    classes = dptrain.tensor([0, 1, 2])
    for k, right in ((1, 1), (2, 2), (3, 3)):
        assert metrics.Accuracy(top_k=k).update(scores, classes).compute().item() == right / 3
    nan = dptrain.tensor([[math.nan, math.nan], [math.nan, 1.0], [1.0, math.nan]])
    assert metrics.Accuracy().update(nan, dptrain.tensor([0, 1, 0])).compute().item() == 0


def test_ignored_samples_do_not_count():
    scores, classes = draws()
    kept = classes != 2
    expected = (scores.argmax(1) == classes)[kept].mean()
    classes = np.where(kept, classes, -100)
    accuracy = metrics.Accuracy(ignore_index=-100).update(*tensors(scores, classes))
    assert accuracy.compute().item() == expected
    matrix = metrics.ConfusionMatrix(7, ignore_index=-100).update(*tensors(scores, classes))
    assert matrix.compute().sum().item() == kept.sum()


@pytest.mark.parametrize("ranks", SPLITS)
def test_the_mean_is_the_nearest_number_to_the_true_one(ranks):
    stream = np.random.default_rng(2)
    values = stream.standard_normal(60) * 10.0 ** stream.integers(-300, 300, 60)
    values[:3] = 5e-324, -1.7e308, 1.7e308
    weights = stream.integers(0, 1000, 60)
    exact = sum(Fraction(v) * int(w) for v, w in zip(values, weights, strict=True))
    for found in over_ranks(ranks, metrics.Mean, values, weights, batch=1):
        assert found.item() == float(exact / int(weights.sum()))
    for found in over_ranks(ranks, metrics.Mean, values[::-1], weights[::-1]):
        assert found.item() == float(exact / int(weights.sum()))


def test_the_mean_loss_weighs_batches_by_their_samples():
    losses = dptrain.tensor([1.0, 2.0, 6.0, 8.0], requires_grad=True)
    whole = metrics.Mean().update(losses).compute()
    parts = metrics.Mean().update(losses[:3].mean(), 3).update(losses[3:].mean(), 1)
    assert whole.item() == parts.compute().item() == 4.25
    assert not whole.requires_grad
    assert f"{whole:.1f}" == "4.2"
    assert metrics.Mean().update(losses.to(dptrain.bfloat16)).compute().item() == 4.25
    assert metrics.Mean().update(3, np.int64(2)).update(np.float32(6), 1.0).compute().item() == 4


def test_values_that_are_not_finite_show():
    inf, nan = math.inf, math.nan
    for values, expected in (
        ([inf, 1.0], inf),
        ([-inf, 1.0], -inf),
        ([inf, -inf], nan),
        ([nan, inf], nan),
    ):
        np.testing.assert_equal(
            metrics.Mean().update(dptrain.tensor(values)).compute().item(), expected
        )
    # The mean over an empty batch is NaN, and weighs nothing.
    assert metrics.Mean().update(nan, 0).update(2.0).compute().item() == 2


@pytest.mark.parametrize("ranks", SPLITS)
def test_confusion_matrix(ranks):
    scores, classes = draws()
    expected = np.zeros((7, 7), np.int64)
    for true, predicted in zip(classes, scores.argmax(1), strict=True):
        expected[true, predicted] += 1
    for found in over_ranks(ranks, lambda: metrics.ConfusionMatrix(7), scores, classes):
        assert found.dtype is dptrain.int64
        np.testing.assert_array_equal(found, expected)
    classes = np.where(classes == 3, 2, classes)  # a class without samples
    counts = metrics.ConfusionMatrix(7).update(*tensors(scores, classes)).compute().numpy()
    for kind, axis in (("true", 1), ("pred", 0), ("all", None)):
        of = counts.sum(axis, keepdims=True)
        for found in over_ranks(
            ranks, lambda kind=kind: metrics.ConfusionMatrix(7, normalize=kind), scores, classes
        ):
            np.testing.assert_array_equal(found, np.where(of == 0, 0, counts / np.maximum(of, 1)))


MAKERS = [metrics.Mean, metrics.Accuracy, lambda: metrics.ConfusionMatrix(7)]


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize(("before", "after"), [(1, 3), (4, 2), (2, 2)])
def test_a_resumed_run_has_the_same_bits_on_any_number_of_ranks(make, before, after, tmp_path):
    scores, classes = draws()
    losses = np.random.default_rng(3).standard_normal(60)
    arrays = (losses,) if make is metrics.Mean else (scores, classes)
    path = tmp_path / "metric.pth"

    def first(rank):
        metric = make()
        start, stop = SPLITS[before][rank]
        metric.update(*tensors(*(a[start:stop] for a in arrays)))
        state = metric.state_dict()
        if rank == 0:
            dptrain.save(state, path)

    def second(rank):
        metric = make()
        metric.update(*tensors(*(a[:5] for a in arrays)))  # forgotten: the state replaces it
        metric.load_state_dict(dptrain.load(path))
        start, stop = SPLITS[after][rank]
        metric.update(*tensors(*(a[start:stop] for a in arrays)))
        return metric.compute()

    on_ranks(before, first)
    resumed = on_ranks(after, second)
    straight = make().update(*tensors(*arrays)).update(*tensors(*arrays)).compute()
    for found in resumed:
        assert found.numpy().tobytes() == straight.numpy().tobytes()


@pytest.mark.parametrize("make", MAKERS)
def test_reset_forgets_and_nothing_counted_is_an_error_on_every_rank(make):
    def run(rank):
        metric = make()
        arrays = (np.ones(2),) if make is metrics.Mean else draws(2)
        metric.update(*tensors(*arrays))
        metric.reset()
        metric.update(*tensors(*(a[:0] for a in arrays)))
        with pytest.raises(RuntimeError, match=r"before update\(\): no rank has counted"):
            metric.compute()

    on_ranks(2, run)


def scores_of(*shape):
    return dptrain.zeros(shape)


def classes_of(*values):
    return dptrain.tensor(values)


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda m: m.Accuracy(0), ValueError, "top_k=0"),
        (lambda m: m.Accuracy(3, num_classes=2), ValueError, "num_classes=2"),
        (lambda m: m.Accuracy(4).update(scores_of(2, 3), classes_of(0, 1)), ValueError, "top_k=4 is more than the 3"),
        (lambda m: m.Accuracy(2).update(classes_of(0), classes_of(0)), ValueError, "needs scores"),
        (lambda m: m.Accuracy().update(scores_of(2, 3), classes_of(0, 3)), ValueError, "class 3 .* from 0 to 2"),
        (lambda m: m.Accuracy().update(scores_of(2, 3), classes_of(-1, 0)), ValueError, "class -1"),
        (lambda m: m.Accuracy().update(scores_of(2, 3), classes_of(0, 1, 2)), ValueError, r"\[2, 3\] for \[3\]"),
        (lambda m: m.Accuracy().update(scores_of(3, 2, 4), classes_of(0, 1, 2)), ValueError, r"\[3, 2, 4\]"),
        (lambda m: m.Accuracy().update(scores_of(2, 3), scores_of(2)), TypeError, "integers"),
        (lambda m: m.Accuracy().update(scores_of(2), classes_of(0, 1)), TypeError, "predicted class"),
        (lambda m: m.Accuracy().update([0, 1], classes_of(0, 1)), TypeError, "output must be a Tensor, got list"),
        (lambda m: m.Accuracy().update(classes_of(0, 1), np.zeros(2)), TypeError, "got ndarray"),
        (lambda m: m.Accuracy(num_classes=4).update(scores_of(2, 3), classes_of(0, 1)), ValueError, "4 classes"),
        (lambda m: m.Mean().update(1.0, -1), ValueError, "whole number of samples, got -1"),
        (lambda m: m.Mean().update(1.0, 0.5), ValueError, "got 0.5"),
        (lambda m: m.Mean().update(1.0, math.inf), ValueError, "got inf"),
        (lambda m: m.Mean().update(1.0, math.nan), ValueError, "got nan"),
        (lambda m: m.Mean().update(scores_of(3), classes_of(1, 2)), ValueError, "does not fit"),
        (lambda m: m.ConfusionMatrix(0), ValueError, "positive"),
        (lambda m: m.ConfusionMatrix(3, normalize="rows"), ValueError, "'rows'"),
        (lambda m: m.ConfusionMatrix(2).update(classes_of(0, 2), classes_of(0, 1)), ValueError, "class 2"),
        (lambda m: m.ConfusionMatrix(2).update(classes_of(0, 1), classes_of(0, -3)), ValueError, "class -3"),
        (lambda m: m.ConfusionMatrix(2).update(scores_of(2, 3), classes_of(0, 1)), ValueError, "2 classes"),
        (lambda m: m.Mean().load_state_dict(m.Accuracy().state_dict()), ValueError, r"shape \[2\]"),
        (lambda m: m.Mean().load_state_dict({}), KeyError, "counts"),
    ],
)  # fmt: skip
def test_bad_use(call, kind, message):
    with pytest.raises(kind, match=message):
        call(metrics)


def test_bad_use_counts_nothing():
    accuracy = metrics.Accuracy().update(scores_of(1, 3), classes_of(0))
    with pytest.raises(ValueError, match="out of range"):
        accuracy.update(scores_of(2, 3), classes_of(0, 5))
    assert accuracy.compute().item() == 1
    assert accuracy.state_dict()["counts"].tolist() == [1, 1]
    mean = metrics.Mean().update(3.0)
    with pytest.raises(ValueError, match=r"got -1\b"):
        mean.update(np.ones(3), np.array([1, -1, 2]))
    assert mean.compute().item() == 3


def test_ranks_that_are_not_connected_are_an_error(monkeypatch):
    for name, value in {
        "RANK": "1",
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "2",
    }.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RuntimeError, match="call init_process_group first"):
        metrics.Mean().update(1.0).compute()


def test_on_another_device(host_devices):
    host_devices(2)
    scores, classes = draws()
    there = [t.to("cpu:1") for t in tensors(scores, classes)]
    expected = (scores.argmax(1) == classes).mean()
    assert metrics.Accuracy().update(*there).compute().item() == expected
    assert metrics.ConfusionMatrix(7).update(*there).compute().sum().item() == 60
    assert metrics.Mean().update(there[0].mean()).compute().item() == there[0].mean().item()
