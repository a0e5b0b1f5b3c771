"""Calls that record no graph (evaluation, targets, sampling) are replayed by themselves, too."""

import numpy as np
import pytest
from replayed import AHEAD, IMAGES, Net, sequential
from training import F, batches, classes, nn, normal, state

import dptrain
from dptrain.compiler import automatic, explain
from dptrain.nn import replays

GENERATOR = np.random.default_rng(1)
OFF = [dptrain.no_grad, dptrain.inference_mode]


def images(count):
    return [dptrain.from_numpy(normal(5, 1, 8, 8)(GENERATOR)) for _ in range(count)]


def both(run):
    """What `run` returns without and with replays, from the same random numbers."""
    found = []
    for enabled in (False, True):
        replays.state.enabled = enabled
        dptrain.manual_seed(0)
        found.append(run())
    return found


@pytest.mark.parametrize("off", OFF)
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("make", [Net, sequential])
def test_results_buffers_and_random_numbers_are_those_of_the_plain_calls(make, training, off):
    data = images(10)

    def run():
        model = make().train(training)
        with off():
            outs = [model(x) for x in data]  # all of them kept
        assert not any(o.requires_grad for o in outs)
        rest = state(model), dptrain.rand(3).numpy().tobytes()
        return [o.numpy().tobytes() for o in outs], rest, model

    plain, replayed = both(run)
    assert replayed[:2] == plain[:2]
    assert explain(replayed[2]).replays == len(data) - AHEAD


def test_what_was_returned_belongs_to_the_caller():
    model, (x,) = sequential().eval(), images(1)
    with dptrain.no_grad():
        first = [model(x) for _ in range(AHEAD + 2)]
        before = first[-1].clone()
        for out in first[:-1]:
            out.mul_(0)
        assert dptrain.equal(first[-1], before)
        assert dptrain.equal(model(x), before)
    assert explain(model).replays == 3
    weight = dptrain.ones(3, requires_grad=True)
    (first[-1] * weight).sum().backward()  # as a constant
    assert dptrain.allclose(weight.grad, before.sum(0))


def test_evaluations_of_many_shapes_leave_the_training_replayed():
    data = batches(40, IMAGES, classes(3, 5))

    def run():
        model = Net()
        optimizer = dptrain.optim.SGD(model.parameters(), lr=0.05)
        seen = []
        for i, (x, y) in enumerate(data):
            model.train()
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            model.eval()
            with dptrain.no_grad():
                seen += [model(x[: 1 + i % 2]), model(dptrain.zeros(6 + i, 1, 8, 8))]
        return [o.numpy().tobytes() for o in seen], state(model), model

    plain, replayed = both(run)
    assert replayed[:2] == plain[:2]
    model = replayed[2]
    assert (
        type(model._replays_without_graph) is replays.AsItIs
    )  # as shapes are never twice the same
    assert model._replays.report.replays == len(data) - AHEAD


def test_weights_that_change_between_evaluations_are_read_anew():
    model, other, (x,) = Net().eval(), Net().eval(), images(1)
    with dptrain.no_grad():
        for _ in range(AHEAD + 1):
            model(x)
        model.head.weight.mul_(2)
        model.norm.running_mean.add_(1)
        other.load_state_dict(model.state_dict())
        assert dptrain.equal(model(x), other(x))
        model.load_state_dict(Net().state_dict())
        other.load_state_dict(model.state_dict())
        assert dptrain.equal(model(x), other(x))
    assert explain(model).replays == 3


def test_a_network_without_gradients_is_replayed_where_graphs_are_recorded():
    teacher, (x,) = sequential().eval().requires_grad_(False), images(1)
    weight = dptrain.full((3,), 2.0, requires_grad=True)
    for _ in range(AHEAD + 2):
        weight.grad = None
        out = teacher(x)
        (out * weight).sum().backward()
        assert dptrain.allclose(weight.grad, out.sum(0))
    assert explain(teacher).replays == 2
    x.requires_grad_()  # of another kind
    teacher(x).sum().backward()
    assert x.grad is not None


def test_gradients_that_begin_to_be_needed_are_computed():
    model, (x,) = sequential().eval().requires_grad_(False), images(1)
    for _ in range(AHEAD + 2):
        model(x)
    model.requires_grad_()
    model(x).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_a_recording_that_would_keep_too_much_memory_is_not_kept(monkeypatch):
    monkeypatch.setattr(automatic, "_MOST_RESULTS", 1000)
    model, (x,) = Net().eval(), images(1)
    with dptrain.no_grad():
        outs = [model(x) for _ in range(AHEAD + 2)]
    assert all(dptrain.equal(o, outs[0]) for o in outs)
    assert explain(model).replays == 0
    assert "its recording would take" in str(explain(model))


def test_recordings_count_what_they_keep():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 1000), nn.ReLU(), nn.Linear(1000, 2)).eval()
    before, (x,) = automatic._held(), images(1)
    with dptrain.no_grad():
        for _ in range(AHEAD + 1):
            model(x)
    assert explain(model).replays == 1
    assert 5 * 1000 * 4 <= automatic._held() - before <= 10 * 5 * 1000 * 4


def test_views_of_arguments_stay_views():
    model, (x,) = nn.Sequential(nn.Flatten(), nn.Dropout(0.5)).eval(), images(1)
    with dptrain.no_grad():
        for _ in range(AHEAD + 2):
            out = model(x)
            out[0, 0] = 7
            assert x[0, 0, 0, 0] == 7
            x.zero_()
