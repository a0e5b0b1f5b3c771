"""Regions of autocast: their state, the cache of weights, and what meets them (the lists: test_autocast_policy.py)."""

import contextvars
import pickle
import threading
import warnings

import numpy as np
import pytest

import dptrain
from dptrain import amp, nn
from dptrain.autograd import Function
from dptrain.nn import functional as F
from dptrain.utils.checkpoint import checkpoint

BF16, FP16, FP32, FP64 = dptrain.bfloat16, dptrain.float16, dptrain.float32, dptrain.float64


def product():
    """The type in which a matrix product computes here."""
    a = dptrain.ones(2, 2)
    return (a @ a).dtype


def weight():
    return dptrain.ones(2, 2, requires_grad=True)


def casts(tensor):
    """How many different cast nodes the graph of a tensor has."""
    seen, queue = {}, [tensor.grad_fn]
    while queue:
        node = queue.pop()
        if node is None or id(node) in seen or isinstance(node, dptrain.Tensor):
            continue
        seen[id(node)] = node
        queue += [edge[0] for edge in node.edges if edge is not None]
    return sum(node.name == "to" for node in seen.values())


# ---- state -----------------------------------------------------------------------------------------


def test_regions_nest_and_end_with_what_was_before():
    assert product() is FP32
    with dptrain.autocast("cpu"):
        assert (product(), dptrain.is_autocast_enabled("cpu")) == (BF16, True)
        with dptrain.autocast("cpu", enabled=False):
            assert (product(), dptrain.is_autocast_enabled("cpu")) == (FP32, False)
            with dptrain.autocast("cpu", dtype=FP16):
                assert (product(), dptrain.get_autocast_dtype("cpu")) == (FP16, FP16)
            assert product() is FP32
        assert (product(), dptrain.get_autocast_dtype("cpu")) == (BF16, BF16)
        with pytest.raises(KeyError), dptrain.autocast("cpu", dtype=FP16):
            raise KeyError
        assert product() is BF16
    assert product() is FP32
    assert not dptrain.is_autocast_enabled("cpu")


def test_a_region_of_another_device_type_leaves_this_one_alone():
    dptrain.set_autocast_enabled("cuda", True)
    try:
        assert product() is FP32
        with dptrain.autocast("cpu"):
            assert product() is BF16
        assert dptrain.is_autocast_enabled()
        assert not dptrain.is_autocast_enabled("cpu")
    finally:
        dptrain.set_autocast_enabled(False)
    assert not dptrain.is_autocast_enabled("cuda")


def test_one_object_may_be_entered_inside_itself_and_decorates_recursive_functions():
    region = dptrain.autocast("cpu")

    @region
    def down(n):
        return [product()] + (down(n - 1) if n else [])

    with region, region:
        assert product() is BF16
    assert product() is FP32
    assert down(2) == [BF16] * 3
    assert product() is FP32
    with pytest.raises(TypeError, match="requires a callable"):
        region(3)


def test_regions_leave_nothing_in_the_context():
    def enter():
        with dptrain.autocast("cpu"):
            product()

    enter()
    size = len(contextvars.copy_context())
    for _ in range(3):
        enter()
    assert len(contextvars.copy_context()) == size


def test_setters_stand_for_a_region():
    assert dptrain.get_autocast_dtype("cpu") is BF16
    assert dptrain.get_autocast_dtype("cuda") is FP16
    dptrain.set_autocast_dtype("cpu", FP16)
    dptrain.set_autocast_enabled("cpu", True)
    try:
        assert product() is FP16
        with dptrain.autocast("cpu"):  # the type that is set is the default of regions
            assert product() is FP16
    finally:
        dptrain.set_autocast_enabled("cpu", False)
        dptrain.set_autocast_dtype("cpu", BF16)
    assert product() is FP32


def test_threads_have_a_state_of_their_own():
    found = []
    with dptrain.autocast("cpu"):
        thread = threading.Thread(target=lambda: found.append(product()))
        thread.start()
        thread.join()
        assert product() is BF16
    assert found == [FP32]


@pytest.mark.oracle
@pytest.mark.parametrize(
    "call",
    [
        "autocast('cpu', dtype=L.float32)",
        "autocast('cpu', dtype=L.float64)",
        "autocast('cpu', dtype=L.int8)",
        "autocast('cuda')",
        "autocast('cuda', enabled=False)",
        "autocast('cpu', dtype=L.float32, enabled=False)",
        "autocast('nowhere')",
        "autocast('meta')",
        "autocast(3)",
        "autocast(L.device('cpu'))",
        "autocast()",
        "amp.autocast('cpu')",
        "cpu.amp.autocast()",
        "cpu.amp.autocast(True, L.float16)",
        "cuda.amp.autocast()",
        "cuda.amp.autocast(enabled=False)",
        "amp.is_autocast_available('cpu')",
        "amp.is_autocast_available('cuda')",
        "amp.is_autocast_available('mps')",
        "amp.is_autocast_available('meta')",
        "amp.is_autocast_available('nowhere')",
        "is_autocast_enabled()",
        "is_autocast_enabled('nowhere')",
        "is_autocast_cpu_enabled()",
        "set_autocast_cpu_enabled(False)",
        "is_autocast_cache_enabled()",
        "amp.custom_fwd(device_type=3)",
        "amp.custom_bwd(device_type=3)",
        "cuda.amp.custom_fwd(len)",
        "amp.GradScaler()",
        "amp.GradScaler('cpu')",
        "amp.GradScaler('cpu', growth_factor=1.0)",
        "amp.GradScaler('cpu', backoff_factor=1.0)",
        "amp.GradScaler('cpu', backoff_factor=1.0, enabled=False)",
        "cuda.amp.GradScaler()",
        "cuda.amp.GradScaler(enabled=False)",
        "cpu.amp.GradScaler(8.0)",
    ],
)
def test_arguments_are_answered_refused_and_warned_about_as_in_pytorch(call):
    torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
    outcomes = []
    for library in (torch, dptrain):
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            try:
                value = eval(f"L.{call}", {"L": library})
                outcome = value if isinstance(value, bool) else getattr(value, "_enabled", None)
            except Exception as error:
                outcome = type(error)
        outcomes.append((outcome, [w.category for w in seen]))
    assert outcomes[0] == outcomes[1]


# ---- casting ---------------------------------------------------------------------------------------


def test_what_stores_in_a_given_tensor_is_not_cast():
    a, out = dptrain.ones(2, 2), dptrain.zeros(2, 2)
    with dptrain.autocast("cpu"):
        assert dptrain.mm(a, a, out=out).dtype is FP32
        assert a.clone().addmm_(a, a).dtype is FP32
        assert dptrain.mm(input=a, mat2=a).dtype is BF16


def test_a_loss_computes_in_float32_and_what_is_inside_of_it_too():
    x = dptrain.ones(3, 4, dtype=BF16)
    with dptrain.autocast("cpu"):
        assert F.cross_entropy(x, dptrain.tensor([0, 1, 2])).dtype is FP32
        assert F.mse_loss(x, x).dtype is FP32
        assert F.mse_loss(x.double(), x.double()).dtype is FP64
        assert F.cosine_embedding_loss(x, x, dptrain.ones(3)).dtype is FP32


def test_gradients_reach_the_leaves_in_their_types():
    w, b = weight(), dptrain.zeros(2, requires_grad=True)
    x = dptrain.ones(3, 2, dtype=BF16, requires_grad=True)
    with dptrain.autocast("cpu"):
        out = F.linear(x, w, b)
    assert out.dtype is BF16
    out.sum().backward()
    assert [t.grad.dtype for t in (w, b, x)] == [FP32, FP32, BF16]
    assert w.grad.tolist() == [[3.0, 3.0], [3.0, 3.0]]


# ---- the cache of weights --------------------------------------------------------------------------


def test_a_weight_is_cast_once_in_the_outermost_region():
    w, x = weight(), dptrain.ones(2, 2)
    with dptrain.autocast("cpu"):
        first = x @ w
        with dptrain.autocast("cpu"):
            second = x @ w
        third = x @ w
    assert casts(first + second + third) == 1
    with dptrain.autocast("cpu"):
        assert casts(x @ w + first) == 2
    (first + second + third).sum().backward()
    assert w.grad.tolist() == [[6.0, 6.0], [6.0, 6.0]]


def test_the_cache_can_be_left_out():
    w, x = weight(), dptrain.ones(2, 2)
    with dptrain.autocast("cpu", cache_enabled=False):
        assert not dptrain.is_autocast_cache_enabled()
        assert casts(x @ w + x @ w) == 2
    assert dptrain.is_autocast_cache_enabled()


def test_a_cast_weight_serves_backward_passes_one_after_the_other():
    w, x = weight(), dptrain.ones(2, 2)
    with dptrain.autocast("cpu"):
        for _ in range(2):
            (x @ w).sum().backward()
    assert w.grad.tolist() == [[4.0, 4.0], [4.0, 4.0]]


@pytest.mark.parametrize("quiet", [dptrain.no_grad, dptrain.inference_mode])
def test_a_cast_without_a_gradient_does_not_stand_for_one_with(quiet):
    w, x = weight(), dptrain.ones(2, 2)
    with dptrain.autocast("cpu"):
        with quiet():
            assert not (x @ w).requires_grad
        (x @ w).sum().backward()
        with quiet():
            assert not (x @ w).requires_grad
    assert w.grad.tolist() == [[2.0, 2.0], [2.0, 2.0]]


def test_a_weight_that_changed_is_cast_again():
    w, x = weight(), dptrain.ones(2, 2)
    with dptrain.autocast("cpu"):
        x @ w
        with dptrain.no_grad():
            w.mul_(2)
        assert (x @ w).tolist() == [[4.0, 4.0], [4.0, 4.0]]
        w.data = dptrain.zeros(2, 2)
        assert (x @ w).tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_nothing_stays_after_the_region():
    import gc
    import weakref

    w, x = weight(), dptrain.ones(2, 2)
    with dptrain.autocast("cpu"):
        cast = weakref.ref((x @ w).grad_fn.edges[1][0])
        gc.collect()
        assert cast() is not None
    gc.collect()
    assert cast() is None


# ---- recomputation and functions with their own derivative ---------------------------------------


@pytest.mark.parametrize("inside", [True, False], ids=["backward inside", "backward outside"])
def test_a_recomputed_segment_computes_in_the_types_of_its_first_run(inside):
    dptrain.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4), nn.Dropout(0.5))
    x = dptrain.randn(5, 4)
    results = []
    for recompute in (False, True):
        net.zero_grad()
        dptrain.manual_seed(1)
        with dptrain.autocast("cpu", enabled=not inside), dptrain.autocast("cpu"):
            h = net(x)  # the weights are in the cache before the segment starts
            h = checkpoint(net, h, use_reentrant=False) if recompute else net(h)
            if inside:
                h.sum().backward()
        if not inside:
            h.sum().backward()
        results.append([h.detach().float().numpy(), *(p.grad.numpy() for p in net.parameters())])
    for plain, recomputed in zip(*results, strict=True):
        # The cache adds both gradients of a weight up in bfloat16, the segment's own cast after it.
        np.testing.assert_allclose(recomputed, plain, rtol=2e-2, atol=2e-2)


def make_function(L, seen, **options):
    class Twice(L.autograd.Function):
        @staticmethod
        @L.amp.custom_fwd(device_type="cpu", **options)
        def forward(ctx, x, more):
            out = x @ x
            seen.append((x.dtype, more["y"].dtype, out.dtype, L.is_autocast_enabled("cpu")))
            ctx.save_for_backward(x)
            return out

        @staticmethod
        @L.amp.custom_bwd(device_type="cpu")
        def backward(ctx, grad):
            (x,) = ctx.saved_tensors
            seen.append((grad.dtype, (x @ x).dtype, L.is_autocast_enabled("cpu")))
            return x.float() @ x.float(), None

    return Twice


@pytest.mark.oracle
@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("cast", [None, "float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["float32", "bfloat16", "float64"])
def test_custom_functions_run_in_pytorchs_types(cast, kind, enabled):
    torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
    outcomes = []
    for L in (torch, dptrain):
        seen = []
        options = {} if cast is None else {"cast_inputs": getattr(L, cast)}
        x = L.ones(2, 2, dtype=getattr(L, kind)).requires_grad_()
        with L.autocast("cpu", enabled=enabled):
            out = make_function(L, seen, **options).apply(x, {"y": L.ones(1)})
        out.float().sum().backward()
        seen.append((out.dtype, x.grad.dtype))
        outcomes.append(str(seen).replace("torch.", "dptrain."))
    assert outcomes[0] == outcomes[1]


def test_a_function_without_the_decorators_follows_the_region():
    class Plain(Function):
        @staticmethod
        def forward(ctx, x):
            return x @ x

        @staticmethod
        def backward(ctx, grad):
            return grad

    x = weight()
    with dptrain.autocast("cpu"):
        out = Plain.apply(x)
    assert out.dtype is BF16
    out.sum().backward()
    assert x.grad.dtype is FP32


@pytest.mark.parametrize("name", ["linear", "mse_loss", "gelu", "conv2d", "relu", "softmax"])
def test_functions_that_autocast_knows_can_be_pickled(name):
    function = getattr(F, name)
    assert pickle.loads(pickle.dumps(function)) is function


def test_public_places_hold_the_same_objects():
    assert amp.autocast is dptrain.autocast
    assert issubclass(dptrain.cpu.amp.autocast, dptrain.autocast)
    assert issubclass(dptrain.cuda.amp.GradScaler, amp.GradScaler)
    for place in (amp, dptrain.cpu.amp, dptrain.cuda.amp):
        with pytest.raises(AttributeError):
            place.nothing  # noqa: B018
        assert all(callable(getattr(place, name)) for name in dir(place))
