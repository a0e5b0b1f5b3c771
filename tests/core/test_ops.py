"""Every operation of the registry, on every line of its samples: values, dtypes, derivatives."""

from operator import attrgetter

import numpy as np
import pytest
from op_samples import SAMPLES, Arg

import dptrain
from dptrain.autograd import gradcheck, gradgradcheck
from dptrain.core.export import REGISTRY
from dptrain.core.random import numpy_stream

CASES = [
    pytest.param(name, n, id=f"{name}-{n}")
    for name, calls in SAMPLES.items()
    for n in range(len(calls))
]


#: Where PyTorch's float64 values are themselves less exact (its trigamma has nine digits).
LESS_EXACT = {
    "digamma": 1e-8,
    "polygamma": 1e-8,
    "Tensor.polygamma": 1e-8,
    "igamma": 1e-8,
    "igammac": 1e-8,
}


def draw(arg, position, dtype):
    """The array for a sample argument: the same values for the same position and dtype."""
    stream = numpy_stream(1, position, len(arg.shape))
    if arg.kind == "i":
        return stream.integers(int(arg.low), int(arg.high), arg.shape)
    if arg.kind == "b":
        return np.asarray(stream.random(arg.shape) < 0.5)
    shape = arg.shape
    values = np.asarray(stream.uniform(arg.low, arg.high, shape)).astype(dtype)
    if arg.transform in ("regular", "definite"):  # well-conditioned square matrices
        square = values if arg.transform == "regular" else values @ values.swapaxes(-1, -2)
        return (square + 4 * np.eye(shape[-1])).astype(dtype)
    if arg.transform == "transposed":
        return np.asarray(stream.uniform(arg.low, arg.high, shape[::-1])).astype(dtype).T
    if arg.transform == "expanded":
        return np.broadcast_to(values[:1], shape)
    return values


def build(call, dtype, make):
    """Arguments of a call with every `Arg` replaced by `make(array, arg)`."""
    counter = iter(range(100))

    def one(value):
        if isinstance(value, Arg):
            return make(draw(value, next(counter), dtype), value)
        return [one(v) for v in value] if isinstance(value, list) else value

    return [one(v) for v in call.args], dict(call.kwargs)


def ours(array, arg, grad=False):
    tensor = dptrain.from_numpy(np.array(array) if arg.transform == "" else array)
    return tensor.requires_grad_() if grad and arg.kind == "x" else tensor


def resolve(name, root, functional):
    if name.startswith("Tensor."):
        return getattr(root.Tensor, name[7:])
    if "." in name:
        return attrgetter(name)(root)
    return getattr(root, name, None) or getattr(functional, name)


def as_list(result):
    return list(result) if isinstance(result, (tuple, list)) else [result]


def test_every_operation_has_samples():
    composed = {
        name for name in SAMPLES.keys() - REGISTRY.keys() if "." in name
    }  # no op of their own
    assert set(REGISTRY) == set(SAMPLES) - composed


@pytest.mark.filterwarnings(
    "ignore:torch.(chain_matmul|cholesky|lu|lu_solve|qr|svd|triangular_solve) is deprecated"
)
@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.filterwarnings("ignore:index_reduce")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("name", "n"), CASES)
def test_values_dtypes_and_gradients_equal_pytorch(name, n, dtype):
    torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
    args, kwargs = build(SAMPLES[name][n], dtype, lambda a, s: ours(a, s, grad=True))

    def theirs(array, arg):
        tensor = torch.from_numpy(np.ascontiguousarray(array).reshape(array.shape).copy())
        return tensor.requires_grad_() if arg.kind == "x" else tensor

    torch_args, _ = build(SAMPLES[name][n], dtype, theirs)
    mine = as_list(resolve(name, dptrain, None)(*args, **kwargs))
    reference = as_list(resolve(name, torch, torch.nn.functional)(*torch_args, **kwargs))
    tolerance = {np.float32: 3e-5, np.float64: LESS_EXACT.get(name, 1e-10)}[dtype]
    assert len(mine) == len(reference)
    for a, r in zip(mine, reference, strict=True):
        if not isinstance(r, torch.Tensor):
            assert a == r
            continue
        assert tuple(a.shape) == tuple(r.shape)
        assert a.dtype.name == str(r.dtype).removeprefix("torch.")
        assert a.requires_grad == r.requires_grad
        # Integers that become floating point are float32 in both runs.
        near = max(tolerance, 3e-5) if a.dtype is dptrain.float32 else tolerance
        np.testing.assert_allclose(
            a.detach().to(dptrain.float64).numpy(),
            r.detach().double().numpy(),
            rtol=near,
            atol=near,
        )
    compare_gradients(mine, reference, flat(args), flat(torch_args), tolerance, torch)


def flat(args):
    return [leaf for a in args for leaf in (a if isinstance(a, list) else [a])]


def compare_gradients(mine, reference, args, torch_args, tolerance, torch):
    differentiable = [
        (a, r)
        for a, r in zip(mine, reference, strict=True)
        if isinstance(r, torch.Tensor) and r.requires_grad
    ]
    if not differentiable:
        return
    weights = [
        numpy_stream(2, k).standard_normal(tuple(r.shape))
        for k, (_, r) in enumerate(differentiable)
    ]
    dptrain.autograd.backward(
        [a for a, _ in differentiable],
        [
            dptrain.tensor(w, dtype=a.dtype)
            for w, (a, _) in zip(weights, differentiable, strict=True)
        ],
    )
    torch.autograd.backward(
        [r for _, r in differentiable],
        [torch.tensor(w, dtype=r.dtype) for w, (_, r) in zip(weights, differentiable, strict=True)],
    )
    for a, r in zip(args, torch_args, strict=True):
        if isinstance(r, torch.Tensor) and r.requires_grad:
            expected = torch.zeros_like(r) if r.grad is None else r.grad
            found = dptrain.zeros_like(a) if a.grad is None else a.grad
            np.testing.assert_allclose(
                found.numpy(), expected.numpy(force=True), rtol=tolerance, atol=tolerance
            )


def differentiable_call(name, n):
    """The function of the float inputs, and these, or None where there is nothing to derive."""
    args, kwargs = build(SAMPLES[name][n], np.float64, lambda a, s: ours(a, s, grad=True))
    leaves = [a for a in flat(args) if isinstance(a, dptrain.Tensor) and a.requires_grad]
    if (
        not leaves
        or not getattr(REGISTRY.get(name), "differentiable", True)
        or name in ("equal", "allclose", "sign")
    ):
        return None

    def function(*moved):
        rest = iter(moved)

        def put(value):
            if isinstance(value, list):
                return [put(v) for v in value]
            return (
                next(rest) if isinstance(value, dptrain.Tensor) and value.requires_grad else value
            )

        return resolve(name, dptrain, None)(*[put(a) for a in args], **kwargs)

    return function, leaves


@pytest.mark.parametrize(("name", "n"), CASES)
def test_derivatives_equal_finite_differences(name, n):
    found = differentiable_call(name, n)
    if found is not None:
        assert gradcheck(*found)


@pytest.mark.parametrize(("name", "n"), CASES)
def test_second_derivatives_equal_finite_differences(name, n):
    found = differentiable_call(name, n)
    if found is not None:
        assert gradgradcheck(*found)


@pytest.mark.parametrize("kind", ["int32", "int64", "uint8", "bool", "float16", "bfloat16"])
@pytest.mark.parametrize(
    "other", ["int16", "float32", "bool", "scalar int", "scalar float", "0-d float64"]
)
@pytest.mark.parametrize("name", ["add", "mul", "div", "maximum", "eq"])
@pytest.mark.oracle
def test_promotion_follows_pytorch(name, kind, other):
    torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
    results = []
    for module in (dptrain, torch):
        first = module.tensor([1, 0, 3], dtype=getattr(module, kind))
        second = {
            "scalar int": 2,
            "scalar float": 2.5,
            "0-d float64": module.tensor(2.0, dtype=module.float64),
        }.get(other)
        if second is None:
            second = module.tensor([1, 1, 2], dtype=getattr(module, other))
        if name == "maximum" and "scalar" in other:
            second = module.tensor([second] * 3)
        out = getattr(module, name)(first, second)
        results.append((str(out.dtype).split(".")[1], out.to(module.float32).tolist()))
    assert results[0][0] == results[1][0]
    np.testing.assert_allclose(results[0][1], results[1][1], rtol=1e-2)


@pytest.mark.parametrize("kind", ["int8", "bool", "float16", "float32"])
@pytest.mark.parametrize("scalar", [np.float64(2), np.float32(2), np.int64(2), np.int8(2)])
@pytest.mark.oracle
def test_scalars_of_numpy_are_numbers(kind, scalar):
    torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
    results = []
    for module in (dptrain, torch):
        x = module.tensor(1, dtype=getattr(module, kind))  # no dimensions: a tensor could raise it
        outs = (x * scalar, scalar + x, x.add(scalar), x // scalar)
        results.append([(str(out.dtype).split(".")[1], out.item()) for out in outs])
    assert results[0] == results[1]
