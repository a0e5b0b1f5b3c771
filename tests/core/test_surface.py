"""Small parts of the public surface: sizes, devices, backends, random state, checks of gradients."""

import pytest

import dptrain
from dptrain.autograd import Function, GradcheckError, gradcheck, gradgradcheck


@pytest.mark.oracle
def test_sizes_behave_as_pytorchs():
    torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
    for use in (
        lambda s: s[:2],
        lambda s: s[-1],
        lambda s: s.__add__((1,)),
        lambda s: s * 2,
        lambda s: s.numel(),
        lambda s: tuple(s) == s,
        lambda s: s.index(3),
        lambda s: s[1:].numel(),
        lambda s: f"{s} {s[:0]}",
    ):
        ours, theirs = use(dptrain.zeros(2, 3, 4).shape), use(torch.zeros(2, 3, 4).shape)
        assert ours == theirs or str(ours) == str(theirs).replace("torch", "dptrain")
        assert repr(ours) == repr(theirs).replace("torch", "dptrain")


@pytest.mark.oracle
@pytest.mark.parametrize(
    "use",
    [
        lambda m, x: x.to(m.float64),
        lambda m, x: x.to("cpu"),
        lambda m, x: x.to(m.device("cpu"), m.float16),
        lambda m, x: x.to("cpu", m.int64, False, True),
        lambda m, x: x.to(dtype=m.int32, copy=True),
        lambda m, x: x.to(m.zeros(1, dtype=m.float64)),
        lambda m, x: x.to(m.float32, non_blocking=True),
        lambda m, x: x.to(device="cpu", dtype=m.bool),
        lambda m, x: x.to(m.float32, copy=True),
        lambda m, x: x.cpu(),
    ],
)
def test_forms_of_to(use):
    torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
    results = []
    for m in (dptrain, torch):
        x = m.tensor([0.5, 2.0])
        y = use(m, x)
        results.append((str(y.dtype).split(".")[1], y.tolist(), y is x, str(y.device)))
    assert results[0] == results[1]


def test_there_is_no_gpu_and_scripts_can_ask():
    assert not dptrain.cuda.is_available()
    assert dptrain.cuda.device_count() == 0
    assert dptrain.cuda.memory_allocated() == dptrain.cuda.max_memory_allocated() == 0
    dptrain.cuda.manual_seed_all(3)
    dptrain.cuda.empty_cache()
    assert not dptrain.backends.mps.is_available()
    assert not dptrain.backends.cudnn.is_available()
    dptrain.backends.cudnn.benchmark = True
    dptrain.backends.cuda.matmul.allow_tf32 = True
    assert dptrain.backends.cudnn.benchmark
    dptrain.backends.cudnn.benchmark = False
    dptrain.backends.cuda.matmul.allow_tf32 = False
    for name in ("current_device", "synchronize", "get_device_name", "init"):
        with pytest.raises(RuntimeError, match=rf"cuda\.{name}: no CUDA device is available: \S"):
            getattr(dptrain.cuda, name)()
    with pytest.raises(RuntimeError, match="cpu"):
        dptrain.ones(1).cuda()


def test_forked_random_state_comes_back():
    dptrain.manual_seed(1)
    with dptrain.random.fork_rng():
        first = dptrain.rand(3).tolist()
    with pytest.raises(ZeroDivisionError), dptrain.random.fork_rng():
        _ = dptrain.rand(5).numel() / 0
    assert dptrain.rand(3).tolist() == first
    with dptrain.random.fork_rng(enabled=False):
        dptrain.manual_seed(2)
    assert dptrain.initial_seed() == 2
    assert dptrain.default_generator.initial_seed() == 2


def test_retains_grad_and_views_are_told():
    x = dptrain.ones(3, requires_grad=True)
    y = x * 2
    assert not y.retains_grad
    y.retain_grad()
    assert y.retains_grad
    assert y[0]._is_view()
    assert not y._is_view()
    assert not y.is_inference()


class Wrong(Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, grad):
        return grad * 3


def test_gradcheck_finds_wrong_and_unsteady_derivatives():
    x = dptrain.ones(3, dtype=dptrain.float64).requires_grad_()
    with pytest.raises(GradcheckError, match=r"input 0.*central differences"):
        gradcheck(Wrong.apply, (x,))
    assert not gradcheck(Wrong.apply, (x,), raise_exception=False)
    calls = []

    class Unsteady(Wrong):
        @staticmethod
        def backward(ctx, grad):
            calls.append(1)
            return grad * (2 + 1e-3 * len(calls))

    with pytest.raises(GradcheckError, match="not reentrant"):
        gradcheck(Unsteady.apply, (x,))
    assert gradcheck(Unsteady.apply, (x,), nondet_tol=1.0, rtol=0.1)
    assert gradgradcheck(lambda a: a**3, (x,), dptrain.ones(3, dtype=dptrain.float64))
    assert gradgradcheck(lambda a: a**3, (x,), gen_non_contig_grad_outputs=True)
    with pytest.raises(NotImplementedError, match="check_forward_ad"):
        gradcheck(Wrong.apply, (x,), check_forward_ad=True)
    with pytest.raises(NotImplementedError, match="check_fwd_over_rev"):
        gradgradcheck(Wrong.apply, (x,), check_fwd_over_rev=True)
    with pytest.raises(ValueError, match="float64"):
        gradcheck(Wrong.apply, dptrain.ones(2))
