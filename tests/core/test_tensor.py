"""What a tensor is: memory, types, versions, indexing, errors of use."""

import copy
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import dptrain


def test_from_numpy_shares_memory_both_ways():
    array = np.zeros(3, np.float32)
    tensor = dptrain.from_numpy(array)
    array[0] = 5
    assert tensor[0].item() == 5
    tensor[1] = 7
    assert array[1] == 7
    assert tensor.numpy() is array


def test_tensor_copies_its_data():
    array = np.zeros(3, np.float32)
    tensor = dptrain.tensor(array)
    array[0] = 5
    assert tensor[0].item() == 0


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ([1, 2], "int64"),
        ([1.0, 2], "float32"),
        ([True, False], "bool"),
        (np.zeros(2), "float64"),
        (np.float64(1), "float64"),
        (3, "int64"),
        (2.5, "float32"),
        ([], "float32"),
        ([dptrain.tensor(1), dptrain.tensor(2)], "int64"),
        ([dptrain.tensor(1.0), 2.0], "float32"),
        ([np.float64(1), 2.0], "float64"),
        ([[1], [np.float64(2)]], "float64"),
        ([np.float32(1), 2.0], "float32"),
        ([np.int64(1), np.float32(2)], "float32"),
        ([np.zeros(2), np.zeros(2)], "float64"),
    ],
)
def test_dtype_of_new_tensors(data, expected):
    assert dptrain.tensor(data).dtype.name == expected


def test_default_dtype_rules_new_floats():
    dptrain.set_default_dtype(dptrain.float64)
    try:
        assert dptrain.tensor(1.5).dtype is dptrain.float64
        assert dptrain.ones(2).dtype is dptrain.float64
        assert (dptrain.tensor([1]) / 2).dtype is dptrain.float64
    finally:
        dptrain.set_default_dtype(dptrain.float32)


@pytest.mark.oracle
def test_a_filled_tensor_takes_the_default_dtype_for_scalars_of_numpy():
    torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
    for value in (np.float64(3), np.float32(3), np.int32(3)):
        found, expected = (m.full((2,), value).dtype for m in (dptrain, torch))
        assert str(found).split(".")[1] == str(expected).split(".")[1]


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore:__array_wrap__ must", "ignore:__array__ impl")
@pytest.mark.parametrize("name", ["sin", "exp", "abs", "round", "isnan", "transpose", "argmax"])
def test_functions_of_numpy_give_tensors(name):
    torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
    made = []
    for m in (dptrain, torch):
        out = getattr(np, name)(m.tensor([[0.5, -1.0], [2.0, 3.0]]))
        assert isinstance(out, m.Tensor)
        made.append((str(out.dtype).split(".")[1], out.tolist()))
    assert made[0] == made[1]


def test_view_shares_memory_and_version():
    x = dptrain.zeros(2, 3)
    v = x.view(3, 2)
    before = x._version_counter()[0]
    v.add_(1)
    assert x.numpy().sum() == 6
    assert x._version_counter()[0] == before + 1


def test_view_of_incompatible_strides_is_refused():
    with pytest.raises(RuntimeError, match=r"Use .reshape"):
        dptrain.zeros(2, 3).t().view(6)


def test_dlpack_round_trip_shares_memory():
    x = dptrain.zeros(3)
    y = dptrain.from_dlpack(np.from_dlpack(x))
    x[0] = 4
    assert y[0].item() == 4


def test_numpy_array_on_the_left_gives_a_tensor():
    out = np.ones(3, np.float32) + dptrain.ones(3)
    assert isinstance(out, dptrain.Tensor)
    assert out.tolist() == [2, 2, 2]


def test_pickle_and_deepcopy_keep_values_and_flags():
    x = dptrain.randn(3, requires_grad=True)
    for y in (pickle.loads(pickle.dumps(x)), copy.deepcopy(x)):
        assert y.requires_grad
        assert y.tolist() == x.tolist()
        assert y.data_ptr() != x.data_ptr()


def test_item_len_iter_bool_follow_python():
    x = dptrain.tensor([1.5, 2.5])
    assert [v.item() for v in x] == [1.5, 2.5]
    assert len(x) == 2
    assert bool(dptrain.tensor(0)) is False
    assert f"{dptrain.tensor(1.25):.1f}" == "1.2"
    assert float(x[0]) == 1.5
    assert [10, 20][dptrain.tensor(1)] == 20


@given(
    hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=1, max_dims=4, max_side=5),
        elements=st.floats(-5, 5, width=32),
    ),
    st.data(),
)
def test_basic_indexing_equals_numpy(array, data):
    index = data.draw(
        hnp.basic_indices(array.shape, allow_ellipsis=True, allow_newaxis=True).filter(
            lambda i: all(
                not (isinstance(p, slice) and (p.step or 1) < 0)
                for p in (i if isinstance(i, tuple) else (i,))
            )
        )
    )
    found = dptrain.from_numpy(array)[index]
    np.testing.assert_array_equal(found.numpy(), array[index])


@given(hnp.array_shapes(min_dims=1, max_dims=3, max_side=5), st.data())
def test_integer_indexing_and_its_gradient_equal_numpy(shape, data):
    rows = data.draw(
        hnp.arrays(
            np.int64,
            hnp.array_shapes(max_dims=2, max_side=4),
            elements=st.integers(-shape[0], shape[0] - 1),
        )
    )
    array = np.arange(np.prod(shape), dtype=np.float64).reshape(shape)
    x = dptrain.tensor(array, requires_grad=True)
    x[dptrain.tensor(rows)].sum().backward()
    counts = np.bincount(rows.ravel() % shape[0], minlength=shape[0])
    np.testing.assert_array_equal(
        x.grad.numpy(), np.broadcast_to(counts.reshape(-1, *[1] * (len(shape) - 1)), shape)
    )
    np.testing.assert_array_equal(x.detach()[dptrain.tensor(rows)].numpy(), array[rows])


def test_boolean_indexing_and_assignment():
    x = dptrain.arange(6).reshape(2, 3)
    x[x > 2] = 0
    assert x.tolist() == [[0, 1, 2], [0, 0, 0]]
    assert x[x > 0].tolist() == [1, 2]


def test_assignment_passes_gradients_to_both_sides():
    base = dptrain.ones(3, requires_grad=True)
    value = dptrain.tensor(5.0, requires_grad=True)
    y = base * 2
    y[1] = value
    (y * dptrain.tensor([1.0, 10.0, 100.0])).sum().backward()
    assert base.grad.tolist() == [2, 0, 200]
    assert value.grad.item() == 10


@pytest.mark.oracle
@pytest.mark.parametrize(
    "make",
    [
        lambda m: m.tensor([[1.0, 1.0], [1.0, 1.0]], requires_grad=True),
        lambda m: m.tensor(1.5),
        lambda m: m.tensor([1.5, -20.25, float("nan"), float("inf")]),
        lambda m: m.tensor([1e-6, 1.0]),
        lambda m: m.tensor([1e10, 2.5]),
        lambda m: m.arange(12).reshape(2, 2, 3),
        lambda m: m.zeros(2, 3, dtype=m.float64),
        lambda m: m.zeros(0),
        lambda m: m.zeros(0, 3),
        lambda m: m.tensor([True, False]),
        lambda m: m.tensor([1, 200], dtype=m.uint8),
        lambda m: m.tensor([0.5, 1.25], dtype=m.bfloat16),
        lambda m: m.tensor([1.0, 2.0], requires_grad=True) * 2,
        lambda m: m.arange(2000.0),
        lambda m: m.arange(60 * 70).reshape(60, 70),
        lambda m: m.arange(40.0) / 3,
    ],
)
def test_text_equals_pytorch(make):
    torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
    assert repr(make(dptrain)) == repr(make(torch)).replace("torch.", "dptrain.")


ERRORS = [
    (
        lambda: dptrain.ones(2, 3) + dptrain.ones(2, 4),
        RuntimeError,
        r"size of tensor a \(3\).*tensor b \(4\).*dimension 1",
    ),
    (lambda: dptrain.ones(2, 3) @ dptrain.ones(4, 5), RuntimeError, r"matmul.*2x3 and 4x5"),
    (
        lambda: dptrain.ones(2) @ dptrain.ones(2).long(),
        RuntimeError,
        r"matmul.*same dtype.*float32.*int64",
    ),
    (
        lambda: dptrain.tensor([1, 2], requires_grad=True),
        RuntimeError,
        "only Tensors of floating point dtype",
    ),
    (lambda: dptrain.tensor(1j), TypeError, "complex"),
    (lambda: dptrain.tensor([[1], [1, 2]]), ValueError, "unequal"),
    (lambda: dptrain.tensor("a"), TypeError, "str"),
    (lambda: dptrain.zeros(-1), RuntimeError, "negative dimension"),
    (lambda: dptrain.zeros(2).sum(5), IndexError, r"Dimension out of range.*\[-1, 0\].*5"),
    (lambda: dptrain.zeros(2, 2).sum((0, 0)), RuntimeError, "multiple times"),
    (lambda: dptrain.zeros(2).backward(), RuntimeError, "does not require grad"),
    (
        lambda: dptrain.zeros(2, requires_grad=True).exp().backward(),
        RuntimeError,
        "implicitly created only for scalar",
    ),
    (lambda: bool(dptrain.zeros(2)), RuntimeError, "more than one value is ambiguous"),
    (lambda: dptrain.zeros(2).item(), RuntimeError, "cannot be converted to Scalar"),
    (lambda: float(dptrain.zeros(2)), ValueError, "only one element"),
    (lambda: int(dptrain.zeros(0)), ValueError, "only one element"),
    (lambda: dptrain.tensor(None), RuntimeError, "NoneType"),
    (lambda: dptrain.tensor([1, None]), RuntimeError, "list"),
    (lambda: dptrain.tensor(None, dtype=dptrain.int64), TypeError, "NoneType"),
    (lambda: dptrain.randperm(-1), RuntimeError, "non-negative"),
    (lambda: dptrain.zeros(2, requires_grad=True).numpy(), RuntimeError, r"detach\(\)"),
    (lambda: dptrain.zeros(6).reshape(4, 2), RuntimeError, r"\[4, 2\].*size 6"),
    (lambda: dptrain.zeros(6).reshape(-1, -1), RuntimeError, "only one dimension"),
    (lambda: dptrain.zeros(2, 3)[5], IndexError, r"5.*\[2, 3\]"),
    (lambda: dptrain.zeros(3)[dptrain.tensor([0.5])], IndexError, "long, int, byte or bool"),
    (lambda: dptrain.zeros(3)["a"], TypeError, "valid indices"),
    (lambda: dptrain.zeros(3)[::-1], ValueError, "greater than zero"),
    (
        lambda: dptrain.zeros(3).__setitem__(slice(0, 2), dptrain.ones(3)),
        RuntimeError,
        "shape mismatch",
    ),
    (lambda: dptrain.exp(np.ones(3)), TypeError, "exp.*must be Tensor, not ndarray"),
    (lambda: dptrain.exp(), TypeError, "missing"),
    (lambda: dptrain.zeros(2, 3).permute(0, 0), RuntimeError, "no permutation"),
    (lambda: dptrain.zeros(2, 3).expand(3, 3), RuntimeError, "must match the existing size"),
    (lambda: dptrain.cat([]), ValueError, "non-empty"),
    (
        lambda: dptrain.cat([dptrain.zeros(2, 3), dptrain.zeros(2, 4)]),
        RuntimeError,
        r"\[2, 3\].*\[2, 4\]",
    ),
    (lambda: dptrain.stack([dptrain.zeros(2), dptrain.zeros(3)]), RuntimeError, "equal size"),
    (lambda: dptrain.zeros(5).split([1, 2]), RuntimeError, "sum exactly to 5"),
    (lambda: dptrain.ones(2, dtype=dptrain.int64).mean(), RuntimeError, "floating point"),
    (lambda: dptrain.zeros(0).max(), RuntimeError, r"numel\(\) == 0"),
    (lambda: dptrain.zeros(0, 2).argmax(0), IndexError, r"\[0, 2\]"),
    (lambda: dptrain.tensor([1]) // 0, RuntimeError, "ZeroDivisionError"),
    (lambda: dptrain.tensor([2]) ** -1, RuntimeError, "negative integer powers"),
    (
        lambda: dptrain.tensor([True]) - dptrain.tensor([True]),
        RuntimeError,
        "not supported for bool",
    ),
    (lambda: dptrain.ones(2) & 1, RuntimeError, "bitwise_and"),
    (
        lambda: dptrain.conv2d(dptrain.zeros(1, 3, 4, 4), dptrain.zeros(2, 4, 3, 3)),
        RuntimeError,
        "to have 4 channels, but got 3",
    ),
    (
        lambda: dptrain.conv2d(dptrain.zeros(1, 3, 2, 2), dptrain.zeros(2, 3, 3, 3)),
        RuntimeError,
        r"\(2 x 2\).*\(3 x 3\)",
    ),
    (
        lambda: dptrain.conv2d(dptrain.zeros(3, 3), dptrain.zeros(2, 3, 3, 3)),
        RuntimeError,
        "3D .*or 4D",
    ),
    (
        lambda: dptrain.conv2d(dptrain.zeros(1, 3, 4, 4), dptrain.zeros(2, 3, 3, 3), stride=0),
        RuntimeError,
        "stride",
    ),
    (
        lambda: dptrain.conv2d(
            dptrain.zeros(1, 3, 4, 4), dptrain.zeros(2, 3, 3, 3), dptrain.zeros(3)
        ),
        RuntimeError,
        "bias",
    ),
    (lambda: dptrain.max_pool2d(dptrain.zeros(1, 1, 2, 2), 3), RuntimeError, "too small"),
    (
        lambda: dptrain.max_pool2d(dptrain.zeros(1, 1, 4, 4), 2, padding=2),
        RuntimeError,
        "half of kernel size",
    ),
    (lambda: dptrain.zeros(2).to("cuda"), RuntimeError, "cuda.*cpu"),
    (lambda: dptrain.device("gpu"), RuntimeError, "Invalid device string"),
    (lambda: dptrain.zeros(2).add_(dptrain.zeros(3, 2)), RuntimeError, "broadcast shape"),
    (lambda: dptrain.zeros(2).long().add_(0.5), RuntimeError, "can't be cast"),
    (lambda: dptrain.zeros(2, requires_grad=True).add_(1), RuntimeError, "leaf Variable"),
    (lambda: dptrain.from_numpy([1]), TypeError, "expected np.ndarray"),
    (lambda: dptrain.from_numpy(np.array(["a"])), TypeError, "supported types"),
    (lambda: dptrain.softmax(dptrain.ones(2)), TypeError, "dim"),
    (lambda: dptrain.where(dptrain.ones(2), dptrain.ones(2), 0), RuntimeError, "boolean"),
    (lambda: dptrain.randint(5, 5, (2,)), RuntimeError, "from=5 >= to=5"),
    (lambda: dptrain.arange(0, 5, -1), RuntimeError, "inconsistent"),
]


@pytest.mark.parametrize(("use", "kind", "words"), ERRORS)
def test_bad_use_is_named(use, kind, words):
    with pytest.raises(kind, match=words):
        use()
