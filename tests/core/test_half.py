"""float16 and bfloat16 are computed in float32 and rounded once."""

import numpy as np
import pytest

import dptrain
from dptrain.core.op import Op
from dptrain.core.random import numpy_stream

KINDS = ("float16", "bfloat16")

CASES = {
    "sum": lambda m, x, y: x.sum(0),
    "sum of all": lambda m, x, y: m.sum(x),
    "mean": lambda m, x, y: x.mean(1),
    "var": lambda m, x, y: x.var(0),
    "std": lambda m, x, y: m.std(x),
    "norm": lambda m, x, y: m.linalg.vector_norm(x, 3, 1),
    "cumsum": lambda m, x, y: x.cumsum(0),
    "cumprod": lambda m, x, y: (x[:8] + 1).cumprod(0),
    "logsumexp": lambda m, x, y: m.logsumexp(x, 1),
    "softmax": lambda m, x, y: x.softmax(1),
    "log_softmax": lambda m, x, y: x.log_softmax(1),
    "matmul": lambda m, x, y: x @ y,
    "addmm": lambda m, x, y: m.addmm(x[:, :64], x, y, beta=0.3, alpha=0.7),
    "addcmul": lambda m, x, y: m.addcmul(x, x, x, value=0.3),
    "addcdiv": lambda m, x, y: m.addcdiv(x, x, x + 2, value=0.3),
    "add alpha": lambda m, x, y: m.add(x, x, alpha=0.3),
    "sigmoid": lambda m, x, y: x.sigmoid(),
    "lerp": lambda m, x, y: m.lerp(x, x * x, 0.3),
}

#: Their gradients are exp(input - out): the rounding of a logarithm to 16 bits is most of their value.
BY_LOGARITHM = ("logsumexp", "log_softmax")


def steps(found, expected, kind, size):
    """The largest distance, in steps of the type at numbers of this size."""
    bits = 10 if kind == "float16" else 7
    exponent = np.floor(np.log2(np.maximum(np.abs(size), 1e-4)))
    return float(np.max(np.abs(found - expected) / 2.0 ** (exponent - bits)))


@pytest.mark.oracle
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_within_two_steps_of_pytorch(case, kind):
    torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
    values = [numpy_stream(3, k).uniform(0, 1, s) for k, s in enumerate([(96, 96), (96, 64)])]
    results = []
    for library in (dptrain, torch):
        x, y = (library.tensor(v).to(getattr(library, kind)) for v in values)
        x.requires_grad_(), y.requires_grad_()
        out = CASES[case](library, x, y)
        out.sum().backward()
        assert str(out.dtype).endswith(kind)
        grads = [t.grad for t in (x, y) if t.grad is not None]
        results.append([t.detach().to(library.float64).numpy() for t in (out, *grads)])
    for n, (found, expected) in enumerate(zip(*results, strict=True)):
        # PyTorch rounds some gradients more than once: those are held against their largest entry.
        if n and case in BY_LOGARITHM:
            continue
        size = np.max(np.abs(expected)) if n else expected
        assert steps(found, expected, kind, size) <= 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_long_sum_does_not_stop_growing(kind):
    ones = dptrain.ones(4096, dtype=getattr(dptrain, kind))
    assert ones.sum().item() == 4096
    assert ones.cumsum(0)[-1].item() == 4096
    assert dptrain.ones(4096).sum(dtype=getattr(dptrain, kind)).item() == 4096


def test_forward_sees_float32_and_backward_too():
    seen = []

    class Twice(Op):
        in_float32 = True

        def forward(self, input):
            seen.append(input.dtype)
            return input * 2

        def backward(self, grad, input):
            seen.extend([grad.dtype, input.dtype])
            return grad * 2

    x = dptrain.ones(3, dtype=dptrain.bfloat16, requires_grad=True)
    out = Twice.apply(x)
    out.sum().backward()
    assert out.dtype is dptrain.bfloat16
    assert x.grad.dtype is dptrain.bfloat16
    assert set(seen) == {np.dtype(np.float32)}
