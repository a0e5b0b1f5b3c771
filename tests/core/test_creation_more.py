"""Ranges on a log scale, triangles of indices, tensors like others, typed tensors, limits of types."""

import numpy as np
import pytest

import dptrain

TYPED = {
    "FloatTensor": "float32",
    "DoubleTensor": "float64",
    "HalfTensor": "float16",
    "BFloat16Tensor": "bfloat16",
    "ByteTensor": "uint8",
    "CharTensor": "int8",
    "ShortTensor": "int16",
    "IntTensor": "int32",
    "LongTensor": "int64",
    "BoolTensor": "bool",
}

#: Calls whose results have values that are the same everywhere.
CALLS = {
    "logspace": lambda m: m.logspace(0, 3, 4),
    "logspace base": lambda m: m.logspace(-1, 2, 5, base=2.0, dtype=m.float64),
    "logspace none": lambda m: m.logspace(0, 3, 0),
    "tril_indices": lambda m: m.tril_indices(3, 4, 1),
    "tril_indices below": lambda m: m.tril_indices(4, 2, -1, dtype=m.int32),
    "triu_indices": lambda m: m.triu_indices(3, 4, -1),
    "triu_indices none": lambda m: m.triu_indices(0, 4),
    "scalar_tensor": lambda m: m.scalar_tensor(3),
    "arange": lambda m: m.stack([m.arange(5), m.arange(2, 11, 2), m.arange(3, -2, -1)]),
    "arange float32": lambda m: m.arange(3, dtype=m.float32),
    "arange of floats": lambda m: m.arange(0.5, 2.0, 0.25),
    "arange down": lambda m: m.signbit(m.arange(0, -2, -0.5)),
    "full of floats": lambda m: m.full((2, 3), 1.5),
    "full of ints": lambda m: m.full([2], 3),
    "full of bools": lambda m: m.full((2,), True),
    "full float64": lambda m: m.full((2,), 0.1, dtype=m.float64),
    "new_zeros": lambda m: m.ones(2, dtype=m.int32).new_zeros(2, 3),
    "new_zeros tuple": lambda m: m.ones(2).new_zeros((2, 3), dtype=m.int64),
    "new_ones": lambda m: m.ones(2, dtype=m.float64).new_ones((3,)),
    "new_full": lambda m: m.ones(2, dtype=m.float64).new_full((3,), 7),
    "new_full int": lambda m: m.ones(2, dtype=m.int64).new_full((2,), 2.5),
    "new_tensor": lambda m: m.ones(2, dtype=m.int64).new_tensor([1.5, 2.5]),
    "new_tensor of tensor": lambda m: m.ones(2).new_tensor([[1, 2]]),
    "result of int": lambda m: m.ones(2).type(m.int32),
    "type name": lambda m: m.ones(2).type(f"{m.__name__}.LongTensor"),
    "type class": lambda m: m.ones(2).type(m.DoubleTensor),
    "is_floating_point": lambda m: m.tensor(
        [m.is_floating_point(m.ones(1)), m.is_complex(m.ones(1))]
    ),
    "numel": lambda m: m.tensor(m.numel(m.ones(2, 3))),
    "is_nonzero": lambda m: m.tensor([m.is_nonzero(m.ones(1)), m.zeros(1, 1).is_nonzero()]),
    "where alone": lambda m: m.stack(m.where(m.tensor([[0, 1], [2, 0]]) > 0)),
    "reversed": lambda m: m.tensor(list(reversed(m.tensor([1, 2, 3])))),
    "H": lambda m: m.tensor([[1, 2], [3, 4]]).H,
    "mH": lambda m: m.tensor([[[1, 2], [3, 4]]]).mH,
    "real": lambda m: m.tensor([1.5]).real.conj(),
    "facts": lambda m: m.tensor([m.ones(2).is_signed(), m.ones(2).is_same_size(m.ones(3))]),
    "__rdiv__": lambda m: m.ones(2).mul(2).__rdiv__(3.0),
}


@pytest.mark.oracle
@pytest.mark.parametrize("name", CALLS)
def test_creation_equals_pytorch(name):
    torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
    mine, reference = CALLS[name](dptrain), CALLS[name](torch)
    assert mine.dtype.name == str(reference.dtype).removeprefix("torch.")
    assert tuple(mine.shape) == tuple(reference.shape)
    np.testing.assert_allclose(mine.numpy(), reference.numpy(), rtol=1e-6)


@pytest.mark.parametrize(("name", "kind"), TYPED.items())
def test_typed_tensors_have_their_type(name, kind):
    cls = getattr(dptrain, name)
    made = cls([1, 0, 1])
    assert isinstance(made, dptrain.Tensor)
    assert isinstance(made, cls)
    assert made.dtype.name == kind
    assert made.to(dptrain.float32).tolist() == [1, 0, 1]
    assert cls(2, 3).shape == (2, 3)
    assert cls().shape == (0,)
    assert made.type() == f"dptrain.{name}"
    other = dptrain.IntTensor if kind == "float32" else dptrain.FloatTensor
    assert not isinstance(made, other)


@pytest.mark.oracle
def test_limits_and_promotion_equal_pytorch():
    torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
    kinds = list(TYPED.values())
    for kind in kinds:
        for limits in ("finfo", "iinfo"):
            try:
                expected = getattr(torch, limits)(getattr(torch, kind))
            except TypeError:
                with pytest.raises(TypeError):
                    getattr(dptrain, limits)(getattr(dptrain, kind))
                continue
            found = getattr(dptrain, limits)(getattr(dptrain, kind))
            assert (found.min, found.max, found.bits, found.dtype) == (
                expected.min,
                expected.max,
                expected.bits,
                expected.dtype,
            )
            if limits == "finfo":
                assert (found.eps, found.tiny) == (expected.eps, expected.tiny)
                assert found.resolution == pytest.approx(expected.resolution)
        for other in kinds:
            a, b = (m.ones(1, dtype=getattr(m, kind)) for m in (dptrain, torch))
            c, d = (m.ones((), dtype=getattr(m, other)) for m in (dptrain, torch))
            assert dptrain.result_type(a, c).name == str(torch.result_type(b, d))[6:]
            assert dptrain.can_cast(a.dtype, c.dtype) == torch.can_cast(b.dtype, d.dtype)
        assert dptrain.result_type(a, 2.5).name == str(torch.result_type(b, 2.5))[6:]


def test_empty_strided_has_its_strides():
    made = dptrain.empty_strided((2, 3), (1, 2))
    assert made.shape == (2, 3)
    assert made.stride() == (1, 2)


def test_randint_like_draws_in_range_with_the_type_of_its_model():
    drawn = dptrain.randint_like(dptrain.zeros(200), 3, 6)
    assert drawn.dtype is dptrain.float32
    assert set(drawn.tolist()) == {3.0, 4.0, 5.0}
    assert dptrain.randint_like(drawn, 2, dtype=dptrain.int8).dtype is dptrain.int8
