"""Recordings hold no more memory than they are run in: of those that lead to them nothing stays."""

import gc
import weakref

import numpy as np
import pytest
from replayed import AHEAD, Net, ready

import dptrain
from dptrain.compiler import automatic
from dptrain.core.parts import root_of


@pytest.fixture
def drafts(monkeypatch):
    """Weak references to the recordings that are made, in order."""
    seen, record = [], automatic.record

    def watched(*args):
        result, draft = record(*args)
        seen.append(weakref.ref(draft))
        return result, draft

    monkeypatch.setattr(automatic, "record", watched)
    return seen


def test_a_first_recording_is_gone_before_the_second_is_made(drafts):
    gc.disable()  # it does not take the collector
    try:
        model, x = ready(count=AHEAD - 2)
        kept = model(x).sum()  # as users keep a loss
        (first,) = drafts
        memory = weakref.ref(first().inputs[0])
        assert memory() is not None
        kept.backward()
        assert first() is None
        assert memory() is None
        model(x).sum().backward()
        assert drafts[1]() is not None  # it is replayed from here on
    finally:
        gc.enable()
        gc.collect()


def test_a_first_recording_stays_until_its_graph_has_been_walked(drafts):
    model, x = ready(count=AHEAD - 2)
    out = model(x)
    out.sum().backward(retain_graph=True)
    assert drafts[0]() is not None
    before = [p.grad.numpy().copy() for p in model.parameters()]
    out.sum().backward()
    for p, once in zip(model.parameters(), before, strict=True):
        np.testing.assert_allclose(p.grad.numpy(), 2 * once, rtol=1e-5)


def test_ways_to_walk_back_share_the_memory_of_their_gradients(drafts):
    model = ready()[0]
    assert model
    backwards = drafts[-1]().backwards
    assert len(backwards) == 2  # gradients in rows, and one number for all
    first, second = (
        {id(root_of(g)) for g in back.grads if g is not None and g.nbytes > 4096}
        for back in backwards
    )
    assert first
    assert first == second


@pytest.mark.parametrize("make", [Net])
def test_gradients_in_shared_memory_outlive_the_other_way(make):
    """What a pass has left in `.grad` is not what a later one, in another way, writes to."""
    model, x = ready(make)
    dptrain.manual_seed(1)
    out = model(x)
    out.sum().backward()  # one number for all
    held = [p.grad for p in model.parameters()]
    values = [g.numpy().copy() for g in held]
    for p in model.parameters():
        p.grad = None
    (model(x) * dptrain.arange(3.0)).sum().backward()
    for g, v in zip(held, values, strict=True):
        np.testing.assert_array_equal(g.numpy(), v)
