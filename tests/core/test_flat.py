"""Flat storage: layout, gradient slots, settling after rebinding, taking over."""

import copy

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import dptrain
from dptrain.core.flat import FlatStorage, adopt, aligned_empty, place_of


def leaf(*shape, dtype=None, seed=0):
    values = np.random.default_rng(seed).standard_normal(shape)
    return dptrain.tensor(values, dtype=dtype or dptrain.float32, requires_grad=True)


def value(p):
    return p.detach().numpy().copy()


def inside(array, buffer):
    return array.size == 0 or np.may_share_memory(array, buffer)


shapes = st.lists(st.lists(st.integers(0, 5), max_size=3).map(tuple), min_size=1, max_size=5)


@given(shapes, st.sampled_from([dptrain.float32, dptrain.float64, dptrain.bfloat16]))
def test_layout_keeps_values_and_aligns_every_parameter(sizes, dtype):
    params = [leaf(*s, dtype=dtype, seed=i) for i, s in enumerate(sizes)]
    before = [value(p) for p in params]
    storage = FlatStorage(params)
    end = 0
    for p, old, place in zip(params, before, storage.places, strict=True):
        np.testing.assert_array_equal(value(p), old)
        assert p.shape == old.shape
        assert p.dtype is dtype
        assert place.start >= end
        assert place.start * p.itemsize % 64 == 0
        assert place.stop - place.start == p.numel()
        end = place.stop
        if p.numel():
            assert p.data_ptr() % 64 == 0
            assert p.data_ptr() == storage.data[place.start :].__array_interface__["data"][0]
    assert end <= storage.size


def test_gaps_between_parameters_are_zero():
    storage = FlatStorage([leaf(3), leaf(5)])
    taken = np.zeros(storage.size, bool)
    for place in storage.places:
        taken[place.start : place.stop] = True
    assert (~taken).sum() == storage.size - 8
    assert not storage.data[~taken].any()
    assert not storage.grad.any()


def test_first_gradient_is_written_into_the_slot_and_later_ones_add_up():
    p, q = leaf(3), leaf(2)
    storage = FlatStorage([p, q])
    assert p.grad is None
    (p * 2).sum().backward()
    assert p.grad is storage.slot(0)
    (p * 3).sum().backward()
    assert p.grad is storage.slot(0)
    np.testing.assert_array_equal(storage.grad[:3], [5, 5, 5])
    assert q.grad is None


def test_gradient_of_none_is_overwritten_and_not_added_to():
    p = leaf(3)
    FlatStorage([p])
    (p * 2).sum().backward()
    p.grad = None
    (p * 3).sum().backward()
    assert p.grad.tolist() == [3, 3, 3]


def test_gradients_that_exist_move_into_the_storage():
    p = leaf(3)
    (p * 2).sum().backward()
    storage = FlatStorage([p])
    assert p.grad is storage.slot(0)
    np.testing.assert_array_equal(storage.grad[:3], [2, 2, 2])


def test_gradient_memory_comes_from_the_allocator_with_room_for_the_owner():
    p, q = leaf(3), leaf(4)
    storage = FlatStorage([p, q])
    (p * 2).sum().backward()
    asked = []

    def allocate(nbytes):
        asked.append(aligned_empty(nbytes))
        return asked[-1]

    storage.use_grad_memory(allocate, extra=5)
    assert len(asked) == 1
    assert asked[0].nbytes == (storage.size + 5) * 4
    assert storage.extra.size == 5
    assert inside(storage.grad, asked[0])
    assert p.grad.tolist() == [2, 2, 2]
    assert inside(p.grad.numpy(), asked[0])
    assert q.grad is None
    (p + q.sum()).sum().backward()
    assert inside(q.grad.numpy(), asked[0])
    assert p.grad.tolist() == [3, 3, 3]


def test_rebound_values_are_copied_back_by_settle():
    p = leaf(3)
    storage = FlatStorage([p])
    p.data = dptrain.tensor([7.0, 8.0, 9.0])
    assert not inside(p.detach().numpy(), storage.data)
    assert storage.settle(0)
    assert inside(p.detach().numpy(), storage.data)
    np.testing.assert_array_equal(storage.data[:3], [7, 8, 9])


def test_foreign_gradient_is_copied_into_the_slot_by_settle():
    p = leaf(3)
    storage = FlatStorage([p])
    p.grad = dptrain.tensor([1.0, 2.0, 3.0])
    assert storage.settle(0)
    assert p.grad is storage.slot(0)
    np.testing.assert_array_equal(storage.grad[:3], [1, 2, 3])


@pytest.mark.parametrize(
    "other",
    [lambda p: p.data.double(), lambda p: dptrain.ones(4), lambda p: dptrain.ones(1, 3)],
    ids=["dtype", "size", "shape"],
)
def test_parameter_of_another_kind_leaves_the_storage(other):
    p = leaf(3)
    storage = FlatStorage([p])
    p.data = other(p)
    kept = value(p)
    assert not storage.settle(0)
    assert place_of(p) is None
    np.testing.assert_array_equal(value(p), kept)


def test_gradient_after_a_change_of_dtype_has_the_new_one_in_full_precision():
    p = leaf(1)
    FlatStorage([p])
    p.data = p.data.double()
    (p * (1 + 2**-40)).sum().backward()
    assert p.grad.dtype is dptrain.float64
    assert p.grad.item() == 1 + 2**-40


def test_adopt_groups_by_dtype_in_reverse_order_of_registration():
    a, b, c = leaf(2), leaf(2, dtype=dptrain.float64), leaf(2)
    storages = adopt([a, b, c])
    by_dtype = {s.data.dtype: s.params for s in storages}
    assert len(storages) == 2
    single = by_dtype[np.dtype(np.float32)]
    assert single[0] is c
    assert single[1] is a
    assert by_dtype[np.dtype(np.float64)] == [b]


def test_adopt_counts_a_tied_parameter_once():
    a = leaf(2)
    (storage,) = adopt([a, a])
    assert len(storage.params) == 1


def test_a_second_owner_shares_the_storage_of_the_first():
    a, b, c = leaf(2), leaf(3), leaf(4)
    (first,) = adopt([a, b])
    again = adopt([b, a])
    assert len(again) == 1
    assert again[0] is first
    more = adopt([a, b, c])
    assert len(more) == 2
    assert more[0] is first
    assert more[1].params == [c]


def test_parameter_that_moved_to_another_storage_is_not_settled_by_the_old_one():
    a, b = leaf(2), leaf(3)
    old = FlatStorage([a, b])
    new = FlatStorage([a])
    assert not old.settle(0)
    assert old.settle(1)
    assert place_of(a).storage is new


def test_copies_live_on_their_own():
    p = leaf(3)
    storage = FlatStorage([p])
    (p * 2).sum().backward()
    q = copy.deepcopy(p)
    assert place_of(q) is None
    assert not inside(q.detach().numpy(), storage.data)
    assert not inside(q.grad.numpy(), storage.grad)
    q.grad = None
    (q * 5).sum().backward()
    assert p.grad.tolist() == [2, 2, 2]


def test_in_place_changes_of_a_parameter_are_seen_in_the_buffer():
    p = leaf(3)
    storage = FlatStorage([p])
    with dptrain.no_grad():
        p.fill_(4)
    np.testing.assert_array_equal(storage.data[:3], [4, 4, 4])
    with dptrain.no_grad():
        p.copy_(dptrain.tensor([1.0, 2.0, 3.0]))
    np.testing.assert_array_equal(storage.data[:3], [1, 2, 3])
