"""default_collate and default_convert."""

from collections import OrderedDict, UserList, namedtuple
from types import MappingProxyType

import numpy as np
import pytest

import dptrain.utils.data
from dptrain.core.creation import tensor
from dptrain.core.lent_memory import from_numpy
from dptrain.core.tensor import Tensor
from dptrain.data import default_collate, default_convert

Point = namedtuple("Point", ["x", "y"])

#: Batches of NumPy arrays and Python values; `ours` and `theirs` turn the arrays into tensors.
BATCHES = {
    "floats": [1.0, 2.5],
    "ints": [1, 2, 3],
    "bools": [True, False],
    "mixed numbers": [1, 2.5],
    "strings": ["a", "bc"],
    "bytes": [b"a"],
    "tuples": [(1, 2.0, "a"), (3, 4.0, "b")],
    "lists": [[1, 2], [3, 4]],
    "nested": [(np.ones((2, 3), np.float32), {"k": [1, 2.0]})] * 3,
    "named tuples": [Point(1, 2.0), Point(3, 4.0)],
    "dicts": [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}],
    "ordered dicts": [OrderedDict(b=1, a=2.0), OrderedDict(b=3, a=4.0)],
    "read-only mappings": [MappingProxyType({"a": 1}), MappingProxyType({"a": 2})],
    "user lists": [UserList([1, 2]), UserList([3, 4])],
    "ranges": [range(2), range(1, 3)],
    "float32 arrays": [np.arange(6, dtype=np.float32).reshape(2, 3)] * 2,
    "strided arrays": [np.arange(12.0).reshape(3, 4).T, np.arange(12.0).reshape(4, 3)],
    "uint8 arrays": [np.array([255, 0], np.uint8)],
    "0-d arrays": [np.array(1.5), np.array(2.5)],
    "empty arrays": [np.zeros((0, 2))] * 2,
    "float32 scalars": [np.float32(0.1), np.float32(0.2)],
    "float64 scalars": [np.float64(0.1)],
    "int32 scalars": [np.int32(1), np.int32(2)],
    "bool scalars": [np.bool_(True)],
}
FAILURES = {
    "a number beside an array": [np.ones(2), 3],
    "empty batch": [],
    "objects": [object()],
    "None": [(1, None)],
    "string arrays": [np.array(["a"])],
    "object arrays": [np.array([None])],
    "unequal lists": [[1, 2], [3]],
    "unequal tuples": [(1,), (2, 3)],
    "unequal arrays": [np.zeros(2), np.zeros(3)],
    "missing keys": [{"a": 1}, {"b": 1}],
}


def plain(value):
    """The value with tensors as (type name, shape, nested list), to compare libraries."""
    if hasattr(value, "tolist"):
        dtype = str(value.dtype).partition(".")[2]
        return ("tensor", dtype, tuple(value.shape), value.tolist())
    if isinstance(value, (dict, MappingProxyType)):
        return type(value), [(key, plain(item)) for key, item in value.items()]
    if isinstance(value, (list, tuple, UserList)):
        return type(value), [plain(item) for item in value]
    return value


def with_tensors(value, from_numpy):
    """The value with its arrays turned into tensors."""
    if isinstance(value, np.ndarray):
        return from_numpy(np.ascontiguousarray(value))
    if isinstance(value, dict):
        return {key: with_tensors(item, from_numpy) for key, item in value.items()}
    if isinstance(value, (tuple, list)) and not isinstance(value, Point):
        return type(value)(with_tensors(item, from_numpy) for item in value)
    return value


@pytest.mark.oracle
@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)
def test_collate_is_that_of_pytorch(batch):
    torch_data = pytest.importorskip("torch.utils.data", reason="oracle extra not installed")
    assert plain(default_collate(batch)) == plain(torch_data.default_collate(batch))


@pytest.mark.oracle
@pytest.mark.parametrize(
    "name", ["nested", "float32 arrays", "uint8 arrays", "empty arrays", "0-d arrays"]
)
def test_collate_of_tensors_is_that_of_pytorch(name):
    torch = pytest.importorskip("torch", reason="oracle extra not installed")
    ours = default_collate(with_tensors(BATCHES[name], from_numpy))
    theirs = torch.utils.data.default_collate(with_tensors(BATCHES[name], torch.from_numpy))
    assert plain(ours) == plain(theirs)


@pytest.mark.oracle
@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)
def test_convert_is_that_of_pytorch(batch):
    torch_data = pytest.importorskip("torch.utils.data", reason="oracle extra not installed")
    assert plain(default_convert(batch)) == plain(torch_data.default_convert(batch))


@pytest.mark.oracle
@pytest.mark.parametrize("batch", FAILURES.values(), ids=FAILURES)
def test_failures_are_those_of_pytorch(batch):
    torch_data = pytest.importorskip("torch.utils.data", reason="oracle extra not installed")
    with pytest.raises(Exception) as theirs:  # noqa: PT011
        torch_data.default_collate(batch)
    with pytest.raises(theirs.type):
        default_collate(batch)


@pytest.mark.parametrize(
    ("batch", "error", "named"),
    [
        ([object()], TypeError, "found <class 'object'>"),
        ([(1, None)], TypeError, "found <class 'NoneType'>"),
        ([np.array(["a"])], TypeError, "found <U1"),
        ([np.complex64(1)], TypeError, "found complex64"),
        ([[1, 2], [3, 4], [5]], RuntimeError, "entry 0 has 2 fields and entry 2 has 1"),
        ([np.zeros(2), np.zeros(3)], RuntimeError, r"\[2\] at entry 0 and \[3\] at entry 1"),
        (
            [tensor([1.0, 2.0]), 3],
            TypeError,
            "expected Tensor as element 1 in argument 0, but got int",
        ),
        ([], IndexError, "the batch is empty"),
    ],
)
def test_failures_name_what_was_found(batch, error, named):
    with pytest.raises(error, match=named):
        default_collate(batch)


@pytest.mark.oracle
def test_a_table_of_functions_collates_users_types_as_in_pytorch():
    torch_data = pytest.importorskip("torch.utils.data", reason="oracle extra not installed")

    class Box:
        def __init__(self, number):
            self.number = number

    class Wide(Box):
        pass

    def boxes(batch, *, collate_fn_map=None):
        return sum(box.number for box in batch)

    def run(collate, table):
        table = {
            **table,
            Box: boxes,
            (set, frozenset): lambda batch, *, collate_fn_map=None: len(batch),
        }
        batch = [{"a": (Box(i), Wide(i)), "b": [{i}, "x"], "c": i} for i in (1, 2)]
        found = collate(batch, collate_fn_map=table)
        with pytest.raises(TypeError):
            collate([object()], collate_fn_map=table)
        with pytest.raises(TypeError):
            collate([1, 2])
        return {**found, "c": found["c"].tolist()}

    theirs = torch_data._utils.collate
    ours = dptrain.utils.data._utils.collate
    assert run(ours.collate, ours.default_collate_fn_map) == run(
        theirs.collate, theirs.default_collate_fn_map
    )
    assert ours.default_collate is default_collate


def test_a_type_added_to_the_table_is_collated_by_default(monkeypatch):
    table = dptrain.utils.data._utils.collate.default_collate_fn_map
    monkeypatch.setitem(table, complex, lambda batch, *, collate_fn_map=None: ("complex", batch))
    assert default_collate([(1j, 2), (3j, 4)])[0] == ("complex", (1j, 3j))


def test_a_collated_tensor_carries_gradients_to_its_samples():
    samples = [tensor([1.0, 2.0], requires_grad=True) for _ in range(3)]
    (default_collate(samples) * tensor([[1.0], [2.0], [3.0]])).sum().backward()
    assert [sample.grad.tolist() for sample in samples] == [[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]]


def test_a_collated_batch_does_not_share_memory_with_its_samples():
    sample = np.zeros(2, dtype=np.float32)
    batch = default_collate([sample])
    sample[0] = 9
    assert isinstance(batch, Tensor)
    assert batch.tolist() == [[0.0, 0.0]]


def test_further_attributes_of_a_container_stay():
    class Tagged(dict):
        tag = None

    sample = Tagged(a=1)
    sample.tag = "left"
    result = default_collate([sample, Tagged(a=2)])
    assert result.tag == "left"
    assert result["a"].tolist() == [1, 2]
    assert sample["a"] == 1
