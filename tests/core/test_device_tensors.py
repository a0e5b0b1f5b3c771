"""Tensors of a virtual device as the host's first one has them: making, moving, indexing, memory, graphs."""

import copy
import pickle

import numpy as np
import pytest

import dptrain
from dptrain import autograd
from dptrain.core.gradcheck import GradcheckError
from dptrain.core.host_array import HostArray

HERE, THERE = "cpu:1", "cpu:3"


@pytest.fixture(autouse=True)
def four_devices(host_devices):
    host_devices(4)


def on(place, tensor):
    assert str(tensor.device) == place
    assert (type(tensor._array) is HostArray) == (place != "cpu:0")
    return tensor.detach().cpu().numpy()


def alike(make):
    """`make(place)` gives the bits of the first device on another one."""
    dptrain.manual_seed(7)
    first = make("cpu:0")
    dptrain.manual_seed(7)
    other = make(HERE)
    assert first.dtype is other.dtype
    assert first.stride() == other.stride()
    np.testing.assert_array_equal(on("cpu:0", first), on(HERE, other))


@pytest.mark.parametrize(
    "make",
    [
        lambda p: dptrain.zeros(2, 3, device=p),
        lambda p: dptrain.full((2,), 3, device=p),
        lambda p: dptrain.eye(3, 2, device=p),
        lambda p: dptrain.arange(1, 7, 2, device=p),
        lambda p: dptrain.linspace(0, 1, 5, device=p),
        lambda p: dptrain.logspace(0, 1, 5, device=p),
        lambda p: dptrain.tril_indices(3, 4, device=p),
        lambda p: dptrain.hann_window(5, device=p),
        lambda p: dptrain.scalar_tensor(2.0, device=p),
        lambda p: dptrain.rand(2, 3, device=p),
        lambda p: dptrain.randn(2, 3, device=p, dtype=dptrain.float64),
        lambda p: dptrain.randint(3, 9, (4,), device=p),
        lambda p: dptrain.randperm(6, device=p),
        lambda p: dptrain.normal(1.0, 2.0, (3,), device=p),
        lambda p: dptrain.normal(dptrain.ones(3, device=p), dptrain.ones(3, device=p)),
        lambda p: dptrain.rand_like(dptrain.ones(2, 3, device=p)),
        lambda p: dptrain.randn_like(dptrain.ones(2, 3, device=p).t()),
        lambda p: dptrain.randint_like(dptrain.ones(2, 3, device=p), 2, 8),
        lambda p: dptrain.empty_strided((2, 2), (4, 1), device=p).zero_(),
        lambda p: dptrain.empty_permuted((2, 3), (1, 0), device=p).fill_(2),
        lambda p: dptrain.zeros(3, device=p).new_full((2,), 4.0),
        lambda p: dptrain.zeros(3, device=p).new_tensor([[1, 2]]),
        lambda p: dptrain.zeros(3, device=p).new_ones(2, dtype=dptrain.int64),
        lambda p: dptrain.zeros(3, device=p).new_empty_strided((2,), (2,)).fill_(1),
        lambda p: dptrain.as_tensor(np.arange(3), device=p),
        lambda p: dptrain.asarray([1.0, 2.0], device=p),
        lambda p: dptrain.zeros(4, device=p).uniform_(-1, 1),
        lambda p: dptrain.zeros(4, device=p).normal_(),
        lambda p: dptrain.zeros(4, device=p).exponential_(),
        lambda p: dptrain.zeros(4, device=p).log_normal_(),
        lambda p: dptrain.zeros(4, device=p).cauchy_(),
        lambda p: dptrain.zeros(4, device=p).geometric_(0.3),
        lambda p: dptrain.zeros(4, device=p).random_(5),
        lambda p: dptrain.zeros(4, device=p).bernoulli_(0.3),
        lambda p: dptrain.zeros(2, 4, device=p).bernoulli_(dptrain.full((4,), 0.4, device=p)),
        lambda p: dptrain.multinomial(dptrain.ones(3, 5, device=p), 2),
        lambda p: dptrain.multinomial(dptrain.ones(5, device=p), 9, True),
        lambda p: dptrain.poisson(dptrain.full((5,), 3.0, device=p)),
        lambda p: dptrain.svd_lowrank(dptrain.arange(12.0, device=p).reshape(3, 4).sin(), 2)[1],
    ],
)
def test_made_on_a_device_it_has_the_values_of_the_host(make):
    alike(make)


def test_the_default_device_is_where_tensors_are_made():
    with dptrain.device(HERE):
        made = dptrain.randn(3), dptrain.tensor([1.0]), dptrain.arange(3), dptrain.zeros(2)
        with dptrain.device(THERE):
            inner = dptrain.ones(1)
    assert {str(t.device) for t in made} == {HERE}
    assert str(inner.device) == THERE
    assert str(dptrain.ones(1).device) == "cpu:0"


@pytest.mark.parametrize(
    "move",
    [
        lambda t: t.to(THERE),
        lambda t: t.to(dptrain.device("cpu", 3)),
        lambda t: t.to(device=THERE),
        lambda t: t.to(THERE, dptrain.float32),
        lambda t: t.to(THERE, t.dtype, True),
        lambda t: t.to(dptrain.zeros(1, device=THERE)),
        lambda t: t.to(tensor=dptrain.zeros(1, device=THERE)),
        lambda t: t.to(THERE, copy=True, non_blocking=True),
        lambda t: t.to(THERE, memory_format=dptrain.contiguous_format),
        lambda t: t.type_as(dptrain.zeros(1, device=THERE)),
        lambda t: dptrain.zeros_like(t, device=THERE).copy_(t),
        lambda t: dptrain.tensor(t.detach(), device=THERE),
        lambda t: dptrain.as_tensor(t, device=THERE),
    ],
)
def test_every_way_to_move(move):
    t = dptrain.arange(6.0, device=HERE).reshape(2, 3)
    np.testing.assert_array_equal(on(THERE, move(t)), t.tolist())
    assert on(HERE, t).sum() == 15


def test_a_gradient_goes_back_through_copy_and_move():
    a = dptrain.ones(3, device=HERE, requires_grad=True)
    b = dptrain.zeros(3, device=THERE)
    b.copy_(a)
    b[1:2] = a[:1]
    (b * dptrain.tensor([1.0, 2.0, 3.0], device=THERE)).sum().backward()
    assert on(HERE, a.grad).tolist() == [3, 0, 3]


def test_strides_survive_a_move():
    image = dptrain.arange(24.0, device=HERE).reshape(1, 2, 3, 4)
    last = image.to(memory_format=dptrain.channels_last)
    moved = last.to(THERE)
    assert last.stride() == moved.stride() == (24, 1, 8, 2)
    assert moved.is_contiguous(memory_format=dptrain.channels_last)
    assert moved.contiguous().stride() == (24, 12, 4, 1)
    np.testing.assert_array_equal(on(THERE, moved), on(HERE, image))


INDICES = [
    (1, slice(None, 2)),
    (slice(None, None, 2), None, 0),
    (..., -1),
    ([0, 2],),
    ([2, 0], [1, 1]),
    ([],),
    ([True, False, True],),
    (np.int64(1),),
]


@pytest.mark.parametrize("index", INDICES, ids=str)
def test_indexing_as_on_the_host(index):
    def read(place):
        t = dptrain.arange(12.0, device=place).reshape(3, 4)
        t[index] = 50.0
        return dptrain.cat([t.reshape(-1), t[index].reshape(-1)])

    alike(read)


@pytest.mark.parametrize(
    "index",
    [
        lambda p: dptrain.tensor([2, 0], device=p),
        lambda p: (dptrain.tensor([[2], [0]], device=p), dptrain.tensor([1, 3], device=p)),
        lambda p: (slice(1), dptrain.tensor([True, False, False, True], device=p)),
        lambda p: dptrain.arange(12, device=p).reshape(3, 4) % 5 == 1,
    ],
)
def test_tensors_of_the_device_are_indices(index):
    def read(place):
        t = dptrain.arange(12.0, device=place).reshape(3, 4).requires_grad_()
        part = t[index(place)]
        (grad,) = autograd.grad((part * part).sum(), t)
        with dptrain.no_grad():
            t[index(place)] = part * 0 - 1
        return dptrain.cat([part.reshape(-1), grad.reshape(-1), t.reshape(-1)])

    alike(read)


def test_an_index_of_another_device_is_refused():
    t = dptrain.arange(4, device=HERE)
    for other in ("cpu:0", THERE):
        index = dptrain.tensor([1], device=other)
        with pytest.raises(RuntimeError, match="on the same device"):
            t[index]
        with pytest.raises(RuntimeError, match="on the same device"):
            t[index] = 1
        with pytest.raises(RuntimeError, match="on the same device"):
            t[[1]] = index


def test_a_part_that_is_a_view_takes_values_from_anywhere():
    t = dptrain.zeros(4, device=HERE)
    t[1:3] = dptrain.tensor([1.0, 2.0])
    t[3] = dptrain.tensor(3.0, device=THERE)
    host = dptrain.zeros(2)
    host[:] = t[1:3]
    assert (t.tolist(), host.tolist()) == ([0, 1, 2, 3], [1, 2])


def test_single_elements_are_views():
    t = dptrain.zeros(2, 2, device=HERE)
    t[0, 1].fill_(4)
    t[1].add_(1)
    assert t.tolist() == [[0, 4], [1, 1]]


@pytest.mark.parametrize(
    "values",
    [
        lambda p: dptrain.arange(5, device=p),
        lambda p: dptrain.randn(3, 4, device=p),
        lambda p: dptrain.randn(40, 50, device=p),
        lambda p: dptrain.tensor([True, False], device=p),
        lambda p: dptrain.zeros(0, 3, device=p),
        lambda p: dptrain.tensor(1e9, device=p),
        lambda p: dptrain.ones(2, device=p, dtype=dptrain.bfloat16),
    ],
)
def test_it_prints_as_on_the_host_with_its_device(values):
    dptrain.manual_seed(0)
    host = repr(values("cpu:0"))
    dptrain.manual_seed(0)
    text = repr(values(HERE))
    assert ", device='cpu:1'" in text
    assert " ".join(text.replace(", device='cpu:1'", "").split()) == " ".join(host.split())


def test_python_reads_it():
    t = dptrain.tensor([[1.0, 2.0], [3.0, 4.0]], device=HERE)
    assert [row.tolist() for row in t] == [[1, 2], [3, 4]]
    assert len(t) == 2
    assert 3.0 in t
    assert f"{t[1, 1]:.1f}" == "4.0"
    assert (int(t[0, 1]), bool(t[0, 0] > 5), t.sum().item()) == (2, False, 10)
    assert t.get_device() == 1
    assert t.is_cpu


# ---- memory --------------------------------------------------------------------------------------


def test_storages_are_of_the_device():
    t = dptrain.arange(6.0, device=HERE)
    part = t[2:].view(2, 2).t()
    assert str(t.untyped_storage().device) == str(part.storage().device) == HERE
    assert part.untyped_storage() == t.untyped_storage()
    assert part.storage_offset() == 2
    assert part.storage().tolist() == [0, 1, 2, 3, 4, 5]
    assert t.untyped_storage().nbytes() == 24
    assert t.untyped_storage() != t.to(THERE).untyped_storage()
    again = dptrain.zeros(1, device=HERE).set_(t.untyped_storage(), 1, (2, 2), (2, 1))
    assert again.tolist() == [[1, 2], [3, 4]]
    again.zero_()
    assert t.tolist() == [0, 0, 0, 0, 0, 5]
    assert on(HERE, dptrain.ones(3, device=HERE).resize_(5)).shape == (5,)
    assert on(HERE, dptrain.ones(3, device=HERE).set_()).shape == (0,)


def test_shared_memory_stays_on_the_device():
    t = dptrain.arange(3, device=HERE)
    assert not t.is_shared()
    assert t.share_memory_().is_shared()
    assert on(HERE, t).tolist() == [0, 1, 2]


def test_views_by_strides_share_memory():
    t = dptrain.arange(6.0, device=HERE, requires_grad=True)
    view = t.as_strided((2, 2), (2, 1), 1)
    (view * view).sum().backward()
    assert on(HERE, t.grad).tolist() == [0, 2, 4, 6, 8, 0]
    with dptrain.no_grad():
        view.zero_()
    assert t.tolist() == [0, 0, 0, 0, 0, 5]
    base = dptrain.zeros(3, device=HERE)
    base[1:].add_(dptrain.ones(2, device=HERE, requires_grad=True))
    assert base.grad_fn is not None


def test_other_libraries_are_not_lent_its_memory():
    t = dptrain.ones(2, device=HERE)
    for borrow in (dptrain.from_dlpack, np.from_dlpack, lambda v: v.__dlpack__()):
        with pytest.raises(BufferError, match="can't lend the memory of a tensor on cpu:1"):
            borrow(t)
    assert dptrain.from_dlpack(dptrain.ones(2)).tolist() == [1, 1]


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda v: pickle.loads(pickle.dumps(v))])
def test_copies_keep_device_and_gradient(duplicate):
    leaf = dptrain.randn(2, 3, device=HERE).t().requires_grad_()
    (leaf * leaf).sum().backward()
    other = duplicate([leaf, {"view": leaf.detach()[1:]}])
    assert other[0].requires_grad
    np.testing.assert_array_equal(on(HERE, other[0]), on(HERE, leaf))
    np.testing.assert_array_equal(on(HERE, other[1]["view"]), on(HERE, leaf)[1:])
    if duplicate is copy.deepcopy:
        np.testing.assert_array_equal(on(HERE, other[0].grad), on(HERE, leaf.grad))


def test_results_are_stored_in_an_output_of_the_device():
    a, out = dptrain.arange(3.0, device=HERE), dptrain.zeros(3, device=HERE)
    dptrain.add(a, a, out=out)
    assert on(HERE, out).tolist() == [0, 2, 4]


def test_elements_are_mapped_where_they_are():
    t = dptrain.arange(3.0, device=HERE)
    t.apply_(lambda v: v + 1).map_(dptrain.ones(3, device=HERE), lambda a, b: a * 2 + b)
    assert on(HERE, t).tolist() == [3, 5, 7]


# ---- graphs --------------------------------------------------------------------------------------


class Two(autograd.Function):
    """Twice and thrice the input; one of them stays unused."""

    @staticmethod
    def forward(ctx, a):
        ctx.save_for_backward(a)
        return a * 2, a * 3

    @staticmethod
    def backward(ctx, first, second):
        (a,) = ctx.saved_tensors
        assert {str(t.device) for t in (a, first, second)} == {HERE}
        return first * 2 + second * 3


def test_a_function_of_ones_own_gets_gradients_of_the_device():
    a = dptrain.ones(3, device=HERE, requires_grad=True)
    Two.apply(a)[0].sum().backward()
    assert on(HERE, a.grad).tolist() == [2, 2, 2]


def test_hooks_see_gradients_of_the_device():
    seen = []
    a = dptrain.arange(3.0, device=HERE, requires_grad=True)
    b = a * a
    b.retain_grad()
    b.register_hook(seen.append)
    a.register_hook(lambda g: seen.append(g) or g * 2)
    a.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad))
    b.sum().backward()
    assert len(seen) == 3
    assert {str(g.device) for g in [*seen, a.grad, b.grad] if g is not None} == {HERE}
    assert a.grad.tolist() == [0, 4, 8]


def test_gradients_accumulate_on_the_device():
    a = dptrain.ones(2, device=HERE, requires_grad=True)
    for _ in range(2):
        (a * 3).sum().backward()
    a.sum().backward(dptrain.tensor(2.0, device=HERE))
    assert on(HERE, a.grad).tolist() == [8, 8]
    jacobian = autograd.functional.jacobian(lambda v: v * v, a.detach())
    assert on(HERE, jacobian).tolist() == [[2, 0], [0, 2]]


def test_derivatives_are_checked_on_the_device():
    a = dptrain.randn(3, 2, device=HERE, dtype=dptrain.float64, requires_grad=True)

    def wrong(v):
        class Wrong(autograd.Function):
            @staticmethod
            def forward(ctx, v):
                return v.sin()

            @staticmethod
            def backward(ctx, grad):
                return grad * 2

        return Wrong.apply(v)

    assert autograd.gradcheck(lambda v: v.sin() @ v.t(), a)
    assert autograd.gradgradcheck(lambda v: (v * v * v).sum(), a)
    with pytest.raises(GradcheckError):
        autograd.gradcheck(wrong, a)
