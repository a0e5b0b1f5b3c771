"""Page-locked memory over the stand-in for CuPy: who has it, who copies from it, and how long it is kept."""

import fake_cupy
import numpy as np
import pytest

import dptrain

LOG = fake_cupy.LOG


@pytest.fixture
def library(monkeypatch):
    with fake_cupy.installed(monkeypatch) as found:
        yield found


def memory_of(tensor):
    """Address of the page-locked block that a tensor looks into, or None."""
    start = tensor.data_ptr()
    blocks = [a for a, size in fake_cupy.PINNED.items() if a <= start < a + size]
    return blocks[0] if blocks else None


@pytest.mark.oracle
@pytest.mark.parametrize(
    "make",
    [
        lambda m: m.arange(24.0).reshape(2, 3, 4),
        lambda m: m.arange(24.0).reshape(2, 3, 4).transpose(0, 2),
        lambda m: m.arange(24.0).reshape(2, 3, 4)[:, :, ::2],
        lambda m: m.zeros(2, 3, 4, 5).to(memory_format=m.channels_last),
        lambda m: m.tensor(3),
        lambda m: m.zeros(0, 3),
        lambda m: m.ones(2, 3, dtype=m.bfloat16),
        lambda m: m.zeros(4, 1, 5)[:, :, 1:],
    ],
)
def test_a_pinned_copy_has_the_values_and_the_strides(library, make):
    torch = pytest.importorskip("torch", reason="oracle extra not installed")
    x = make(dptrain)
    pinned = x.pin_memory()
    assert pinned is not x
    assert dptrain.equal(pinned, x)
    assert pinned.stride() == make(torch).stride()
    assert (pinned.dtype, pinned.device) == (x.dtype, x.device)
    assert memory_of(pinned) is not None
    assert not x.is_pinned()
    assert pinned.is_pinned() == (x.numel() > 0)


def test_what_is_pinned_is_not_copied_and_its_views_are_pinned(library):
    x = dptrain.arange(12.0).reshape(3, 4).pin_memory()
    assert x.pin_memory() is x
    for view in (x[1], x.t(), x.view(-1)[3:5], x.detach(), dptrain.from_numpy(x.numpy()[1:])):
        assert view.is_pinned()
        assert view.pin_memory() is view
        assert view.untyped_storage().is_pinned()
    for copy in (x.clone(), x + 1, x.reshape(-1)[[1, 2]]):
        assert not copy.is_pinned()


def test_gradients_pass_through_a_pinned_copy(library):
    x = dptrain.ones(3, requires_grad=True)
    (x.pin_memory() * 2).sum().backward()
    assert x.grad.tolist() == [2.0, 2.0, 2.0]


@pytest.mark.parametrize(
    "make",
    [
        lambda **k: dptrain.zeros(2, 3, **k),
        lambda **k: dptrain.ones(3, dtype=dptrain.int64, **k),
        lambda **k: dptrain.empty(3, **k),
        lambda **k: dptrain.full((2,), 7.0, **k),
        lambda **k: dptrain.tensor([1.0, 2.0], **k),
        lambda **k: dptrain.arange(5, **k),
        lambda **k: dptrain.eye(3, **k),
        lambda **k: dptrain.linspace(0, 1, 5, **k),
        lambda **k: dptrain.rand(3, **k),
        lambda **k: dptrain.randn(3, **k),
        lambda **k: dptrain.randperm(5, **k),
        lambda **k: dptrain.normal(0.0, 1.0, (3,), **k),
        lambda **k: dptrain.empty_like(dptrain.zeros(3), **k),
        lambda **k: dptrain.zeros_like(dptrain.zeros(3), **k),
        lambda **k: dptrain.randn_like(dptrain.zeros(3), **k),
        lambda **k: dptrain.empty_strided((2, 3), (1, 2), **k),
        lambda **k: dptrain.zeros(1).new_zeros(3, **k),
    ],
)
def test_factories_pin(library, make):
    dptrain.manual_seed(0)
    plain = make()
    dptrain.manual_seed(0)
    pinned = make(pin_memory=True)
    assert pinned.is_pinned()
    assert not plain.is_pinned()
    assert (pinned.shape, pinned.stride(), pinned.dtype) == (
        plain.shape,
        plain.stride(),
        plain.dtype,
    )


def test_a_pinned_factory_makes_leaves(library):
    x = dptrain.ones(3, pin_memory=True, requires_grad=True)
    assert x.is_leaf
    assert x.requires_grad
    (x.cuda(non_blocking=True) * 3).sum().backward()
    assert x.grad.tolist() == [3.0, 3.0, 3.0]
    assert x.grad.device.type == "cpu"


def test_only_tensors_of_the_host_are_pinned(library):
    x = dptrain.zeros(2, device="cuda")
    assert not x.is_pinned()
    words = r"cannot pin 'dptrain\.cuda\.FloatTensor' only dense CPU tensors can be pinned"
    with pytest.raises(RuntimeError, match=words):
        x.pin_memory()
    with pytest.raises(RuntimeError, match=words):
        dptrain.zeros(2, device="cuda", pin_memory=True)
    with pytest.raises(RuntimeError, match="single memory location"):
        dptrain.zeros(2, 1).expand(2, 3).pin_memory()


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("use", "error"),
    [
        (lambda m, x: x.pin_memory(), RuntimeError),
        (lambda m, x: m.zeros(2, pin_memory=True), RuntimeError),
        (lambda m, x: m.tensor([1], pin_memory=True), RuntimeError),
        (lambda m, x: m.empty_like(x, pin_memory=True), RuntimeError),
        (lambda m, x: x.new_zeros(2, pin_memory=True), RuntimeError),
    ],
)
def test_without_a_gpu_nothing_is_pinned(use, error):
    torch = pytest.importorskip("torch", reason="oracle extra not installed")
    if torch.cuda.is_available() or dptrain.cuda.is_available():
        pytest.skip("there is a GPU")
    for module in (dptrain, torch):
        with pytest.raises(error, match=r"pin_memory|none is available"):
            use(module, module.zeros(3))
        assert module.zeros(3).is_pinned() is False
        assert module.zeros(3).untyped_storage().is_pinned() is False


def test_the_argument_device_is_deprecated(library):
    for ask in (dptrain.Tensor.pin_memory, dptrain.Tensor.is_pinned):
        with pytest.warns(DeprecationWarning, match="argument 'device' of Tensor"):
            ask(dptrain.zeros(2), "cuda")


# ---- copies -----------------------------------------------------------------------------------------


def copies():
    return [entry for entry in LOG if entry[0] in ("memcpy", "pinned", "synchronize")]


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize(
    "make",
    [
        lambda: dptrain.arange(24.0).reshape(2, 3, 4),
        lambda: dptrain.arange(24.0).reshape(2, 3, 4).transpose(0, 2),
        lambda: dptrain.arange(120.0).view(2, 3, 4, 5).to(memory_format=dptrain.channels_last),
        lambda: dptrain.tensor(3.0),
    ],
)
def test_pinned_memory_is_copied_from_where_it_lies(library, make, index):
    pinned = make().pin_memory()
    LOG.clear()
    there = pinned.to(f"cuda:{index}", non_blocking=True)
    assert copies() == [("memcpy", 1, pinned.nbytes, 0)]  # nothing staged, nobody waits
    assert there.stride() == pinned.stride()
    assert dptrain.equal(there.cpu(), pinned)
    LOG.clear()
    again = pinned.to(f"cuda:{index}")
    assert copies() == [("memcpy", 1, pinned.nbytes, 0), ("synchronize", index)]
    assert dptrain.equal(again.cpu(), pinned)


def test_memory_that_is_not_pinned_or_has_gaps_is_staged_as_ever(library):
    for x in (dptrain.ones(3), dptrain.ones(3, 4).pin_memory()[:, ::2], dptrain.zeros(0)):
        LOG.clear()
        assert dptrain.equal(x.cuda(non_blocking=True).cpu(), x)
        assert copies() == []


@pytest.mark.parametrize("order", ["channels_last", "contiguous_format"])
def test_the_order_of_the_channels_survives_the_way_there_and_back(library, order):
    order = getattr(dptrain, order)
    x = dptrain.arange(120.0).view(2, 3, 4, 5).to(memory_format=order)
    there = x.cuda()
    assert there.stride() == x.stride()
    for back in (there.cpu(), there.to("cpu", non_blocking=True)):
        assert back.stride() == x.stride()
        assert dptrain.equal(back, x)


def test_memory_is_kept_until_the_copy_is_over(library, monkeypatch):
    monkeypatch.setattr(fake_cupy.Event, "done", False)
    x = dptrain.ones(3).pin_memory()
    block, there = memory_of(x), x.cuda(non_blocking=True)
    del x
    assert block in fake_cupy.PINNED
    dptrain.ones(5).pin_memory()  # here a block that is free would be handed out again
    assert block in fake_cupy.PINNED
    fake_cupy.Event.done = True
    dptrain.ones(5).pin_memory()
    assert block not in fake_cupy.PINNED
    assert there.tolist() == [1.0, 1.0, 1.0]


def test_what_a_gpu_writes_into_is_kept_until_it_is_written(library, monkeypatch):
    monkeypatch.setattr(fake_cupy.Event, "done", False)
    there = dptrain.ones(3).cuda()
    back = there.to("cpu", non_blocking=True)
    assert back.is_pinned()
    block = memory_of(back)
    del back
    assert block in fake_cupy.PINNED
    fake_cupy.Event.done = True
    dptrain.ones(1).pin_memory()
    assert block not in fake_cupy.PINNED


def test_a_copy_into_pinned_memory_is_not_waited_for(library):
    there = dptrain.arange(12.0).reshape(3, 4).cuda()
    for out, moved in (
        (dptrain.empty(3, 4, pin_memory=True), there),
        (dptrain.empty(4, 3, pin_memory=True).t(), there),
        (dptrain.empty(3, 4, pin_memory=True, dtype=dptrain.int64), there),
        (dptrain.empty(4, 3, pin_memory=True), there.t()),
    ):
        LOG.clear()
        before = out._version
        assert out.copy_(moved, non_blocking=True) is out
        assert copies() == [("memcpy", 2, out.nbytes, 0)]
        assert out._version == before + 1
        assert out.tolist() == moved.tolist()


def test_other_copies_to_the_host_are_waited_for(library):
    there = dptrain.arange(3.0).cuda()
    for out in (dptrain.empty(3), dptrain.empty(2, 3, pin_memory=True)):
        LOG.clear()
        out.copy_(there, non_blocking=True)
        assert ("memcpy", 2, out.nbytes, 0) not in LOG
        assert dptrain.equal(out, dptrain.arange(3.0).expand_as(out))


def test_a_copy_into_a_gpu_reads_pinned_memory(library):
    out, source = dptrain.zeros(3).cuda(), dptrain.arange(3.0).pin_memory()
    LOG.clear()
    place = out.data_ptr()
    out.copy_(source, non_blocking=True)
    assert copies() == [("memcpy", 1, source.nbytes, 0)]
    assert out.tolist() == [0.0, 1.0, 2.0]
    assert out.data_ptr() == place
    doubles = dptrain.zeros(3, dtype=dptrain.float64).cuda()
    assert doubles.copy_(source, non_blocking=True).tolist() == [0.0, 1.0, 2.0]
    columns = dptrain.zeros(2, 3).cuda().t()
    rows = dptrain.arange(6.0).reshape(3, 2).pin_memory()
    assert columns.copy_(rows, non_blocking=True).tolist() == rows.tolist()


def test_gradients_pass_a_copy_into_pinned_memory(library):
    there = dptrain.ones(3).cuda().requires_grad_()
    out = dptrain.empty(3, pin_memory=True)
    out.copy_(there * 2, non_blocking=True)
    out.sum().backward()
    assert there.grad.tolist() == [2.0, 2.0, 2.0]


def test_saved_tensors_are_kept_in_page_locked_memory(library):
    x = dptrain.arange(3.0).cuda().requires_grad_()
    LOG.clear()
    with dptrain.autograd.graph.save_on_cpu(pin_memory=True):
        y = (x * x).sum()
    y.backward()
    assert {entry[1] for entry in LOG if entry[0] == "memcpy"} == {1, 2}
    assert not [entry for entry in LOG if entry[0] == "synchronize"]
    assert x.grad.tolist() == [0.0, 2.0, 4.0]


def test_packed_sequences_are_pinned_with_all_their_parts(library):
    rnn = dptrain.nn.utils.rnn
    packed = rnn.pack_sequence([dptrain.ones(2), dptrain.ones(3)], enforce_sorted=False)
    pinned = packed.pin_memory()
    assert type(pinned) is rnn.PackedSequence
    assert pinned.is_pinned()
    assert not packed.is_pinned()
    for part, whole in zip(pinned, packed, strict=True):
        assert part.is_pinned()
        assert dptrain.equal(part, whole)


# ---- beside the computation -------------------------------------------------------------------------


@pytest.mark.parametrize("index", [0, 1])
def test_a_parcel_is_written_after_the_work_so_far_and_used_after_it_came(library, index):
    courier = library.courier(index)
    hosts = [np.arange(3.0), dptrain.arange(6).reshape(2, 3).t().pin_memory().numpy()]
    parcel = courier.parcel()
    LOG.clear()
    arrays = [parcel.add(host) for host in hosts]
    parcel.seal()
    behind = [
        ("record", index),
        ("wait", index, index),
    ]  # behind the work of the current stream so far
    assert [
        ("pinned", 24),  # the array that was not page-locked
        *behind,
        ("memcpy", 1, 24, 64),
        *behind,
        ("memcpy", 1, 48, 64),
        ("record", index),
    ] == LOG
    LOG.clear()
    parcel.claim()
    del parcel
    assert [("wait", index, index)] == LOG
    for host, array in zip(hosts, arrays, strict=True):
        assert array.device.id == index
        np.testing.assert_array_equal(array.host, host)
        assert array.strides == host.strides


@pytest.mark.parametrize("sealed", [True, False])
def test_memory_of_a_parcel_that_nobody_claims_is_used_anew_after_it_came(library, sealed):
    parcel = library.courier(0).parcel()
    parcel.add(np.arange(3.0))
    if sealed:
        parcel.seal()
    LOG.clear()
    del parcel
    assert ([] if sealed else [("record", 0)]) + [("wait", 0, 0)] == LOG


def test_cupy_has_what_page_locked_memory_asks_of_it():
    cuda = pytest.importorskip("cupy", reason="CuPy is not installed").cuda
    for name in ("memcpyAsync", "memcpyHostToDevice", "memcpyDeviceToHost", "memoryTypeHost"):
        assert hasattr(cuda.runtime, name)
    assert hasattr(cuda.runtime, "pointerGetAttributes")
    assert hasattr(cuda.runtime.PointerAttributes, "type")
    assert hasattr(cuda.Event, "done")
    assert callable(cuda.alloc_pinned_memory)
