"""Memory formats, strides and storages: where the elements lie, compared with PyTorch."""

import multiprocessing

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dptrain

FORMATS = ("contiguous_format", "channels_last", "channels_last_3d", "preserve_format")
USES = {
    "contiguous": lambda m, t, f: t.contiguous(memory_format=f),
    "to": lambda m, t, f: t.to(memory_format=f),
    "cast": lambda m, t, f: t.to(m.float64, memory_format=f),
    "double": lambda m, t, f: t.double(memory_format=f),
    "clone": lambda m, t, f: t.clone(memory_format=f),
    "empty_like": lambda m, t, f: m.empty_like(t, memory_format=f),
    "zeros_like": lambda m, t, f: m.zeros_like(t, memory_format=f),
    "full_like": lambda m, t, f: m.full_like(t, 2, memory_format=f),
    "randint_like": lambda m, t, f: m.randint_like(t, 9, memory_format=f),
    "empty": lambda m, t, f: m.empty(t.shape, memory_format=f),
}
CHANGES = {
    "none": lambda t: t,
    "sliced": lambda t: t[..., ::2],
    "expanded": lambda t: t[..., :1].expand(t.shape),
    "expanded first": lambda t: t[:1].expand(t.shape),
}


def strides(tensor):
    """Those that are no accident: where there is more than one element."""
    return [s for s, n in zip(tensor.stride(), tensor.shape, strict=True) if n > 1]


def outcome(run):
    try:
        return run()
    except RuntimeError:
        return "RuntimeError"


@pytest.mark.oracle
@settings(deadline=None)
@given(
    shape=st.lists(st.integers(2, 4), min_size=1, max_size=5),
    order=st.randoms(use_true_random=False),
    change=st.sampled_from(sorted(CHANGES)),
    format_name=st.sampled_from(FORMATS),
    use=st.sampled_from(sorted(USES)),
)
def test_memory_formats_give_pytorchs_strides(shape, order, change, format_name, use):
    torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
    dims = list(range(len(shape)))
    order.shuffle(dims)
    results = []
    for m in (dptrain, torch):
        t = CHANGES[change](m.arange(float(np.prod(shape))).reshape(shape).permute(dims))

        def run(m=m, t=t):
            made = USES[use](m, t, getattr(m, format_name))
            same = use in ("contiguous", "to", "clone", "cast", "double") and made.tolist()
            return strides(made), str(made.dtype).split(".")[1], same, made is t

        results.append(
            (outcome(run), [t.is_contiguous(memory_format=getattr(m, f)) for f in FORMATS[:3]])
        )
    assert results[0] == results[1]


@pytest.mark.parametrize("name", ["channels_last", "channels_last_3d"])
def test_gradients_pass_through_formats(name):
    rank = 4 if name == "channels_last" else 5
    x = dptrain.rand(*range(2, 2 + rank)).requires_grad_()
    weight = dptrain.rand_like(x)
    y = x.contiguous(memory_format=getattr(dptrain, name)).to(dptrain.float64)
    (y * weight).sum().backward()
    assert (x.grad == weight).all()
    assert repr(getattr(dptrain, name)) == f"dptrain.{name}"


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda x: x.contiguous(memory_format=3), TypeError, "memory_format"),
        (
            lambda x: x.view(3, 4).t().contiguous(memory_format=dptrain.preserve_format),
            RuntimeError,
            "preserve",
        ),
        (lambda x: dptrain.zeros(2, layout="strided"), TypeError, "layout"),
        (lambda x: dptrain.zeros(2, pin_memory=True), RuntimeError, "pin_memory"),
        (lambda x: x.pin_memory(), RuntimeError, "pin_memory"),
        (lambda x: dptrain.zeros(2, out=3), TypeError, "out"),
        (lambda x: dptrain.zeros(2, dtype=dptrain.int64, out=x), RuntimeError, "dtype"),
        (lambda x: dptrain.empty_permuted((2, 3), (0, 0)), RuntimeError, "permutation"),
        (lambda x: x.set_(3), TypeError, "set_"),
        (lambda x: x.set_(dptrain.zeros(2, dtype=dptrain.int64)), RuntimeError, "int64"),
        (lambda x: x.set_(x.untyped_storage(), 4, (9,), (1,)), RuntimeError, "out of bounds"),
        (lambda x: x.resize(7), RuntimeError, "resize"),
        (lambda x: dptrain.frombuffer(bytearray(3), dtype=dptrain.int32), ValueError, "multiple"),
        (lambda x: dptrain.frombuffer(3, dtype=dptrain.int32), ValueError, "buffer"),
        (lambda x: dptrain.asarray([1, 2], copy=False), ValueError, "alias"),
        (lambda x: x.view(3, 4)[:, ::2].view(dptrain.int16), RuntimeError, "stride"),
    ],
)
def test_bad_use_of_memory(call, error, words):
    with pytest.raises(error, match=words):
        call(dptrain.zeros(12))


@pytest.mark.oracle
@pytest.mark.parametrize(
    "use",
    [
        lambda m, x: x[1:].storage_offset(),
        lambda m, x: x[1:, 2:].t().storage_offset(),
        lambda m, x: x[1:].untyped_storage().nbytes(),
        lambda m, x: x[1:].untyped_storage().size(),
        lambda m, x: x[1:].untyped_storage().data_ptr() == x.data_ptr(),
        lambda m, x: len(x.untyped_storage()),
        lambda m, x: x.detach()[2].storage_offset(),
        lambda m, x: m.is_storage(x.untyped_storage()),
        lambda m, x: m.is_storage(x),
        lambda m, x: x.untyped_storage().tolist()[:8],
        lambda m, x: x.new_empty(0).set_(x.untyped_storage(), 2, (2, 2), (3, 1)).tolist(),
        lambda m, x: x.new_empty(0).set_(x[1]).tolist(),
        lambda m, x: list(x.clone().set_().shape),
        lambda m, x: x.permute(1, 0).dim_order(),
        lambda m, x: m.empty_permuted((2, 3, 4), (2, 0, 1)).stride(),
        lambda m, x: [
            v.stride() for v in (x[None], x[:, None], x[..., None], x.t()[None], x[1, 1][None])
        ],
        lambda m, x: [v.stride() for v in (x[:1].expand(5, -1, -1), x[:0], x[:1, None], x[:, :1])],
        lambda m, x: x.new_empty_strided((2, 3), (1, 2)).stride(),
        lambda m, x: x.new_empty_strided((2, 3), (1, 2), dtype=m.int16).element_size(),
        lambda m, x: (x.is_shared(), x.is_pinned(), x.is_set_to(x[:]), x.is_set_to(x[1:])),
        lambda m, x: str(x.layout).split(".")[1],
        lambda m, x: x.view(m.int32).tolist(),
        lambda m, x: x.view(m.float64).tolist() if x.shape[1] % 2 == 0 else None,
        lambda m, x: x.view(m.uint8).shape[1],
        lambda m, x: m.zeros(size=(2, 3)).tolist(),
        lambda m, x: m.zeros(2, 2, out=x.clone()).tolist(),
        lambda m, x: m.arange(3, out=m.empty(0, dtype=m.float64)).dtype.itemsize,
        lambda m, x: m.frombuffer(bytearray(range(16)), dtype=m.int16, offset=2, count=3).tolist(),
        lambda m, x: m.asarray(x) is x,
        lambda m, x: m.asarray(x, dtype=m.int32).tolist(),
        lambda m, x: m.asarray([1, 2.5]).tolist(),
        lambda m, x: m.asarray(np.arange(3)).tolist(),
        lambda m, x: m.asarray(x, copy=True) is x,
        lambda m, x: x.new(2, 3).shape,
        lambda m, x: x.new([1, 2]).tolist(),
        lambda m, x: x.new().shape,
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_storages_and_buffers(use):
    torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
    found, expected = (use(m, m.arange(12.0).view(3, 4)) for m in (dptrain, torch))
    assert found == expected


def test_buffers_and_arrays_are_shared_with_tensors():
    memory, array = bytearray(8), np.zeros(2, np.float32)
    for tensor in (dptrain.frombuffer(memory, dtype=dptrain.int32), dptrain.asarray(array)):
        tensor.fill_(7)
    assert memory == b"\7\0\0\0" * 2
    assert (array == 7).all()
    assert dptrain.asarray([1.0], requires_grad=True).requires_grad


def test_a_parameter_in_flat_storage_has_a_storage_of_its_own():
    model = dptrain.nn.Linear(3, 2)
    dptrain.optim.SGD(model.parameters(), lr=1.0).step()
    for p in model.parameters():
        assert p.storage_offset() == 0
        assert p.untyped_storage().nbytes() == p.nbytes
        assert p.untyped_storage().data_ptr() == p.data_ptr()


def _write(tensor):
    tensor[1] = 5


def test_shared_memory_is_seen_by_forked_processes():
    x = dptrain.zeros(3).share_memory_()
    assert x.is_shared()
    assert x.untyped_storage().is_shared()
    child = multiprocessing.get_context("fork").Process(target=_write, args=(x,))
    child.start()
    child.join(30)
    assert x.tolist() == [0, 5, 0]
