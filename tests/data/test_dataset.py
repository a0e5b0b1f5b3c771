"""Datasets of tensors and parts of datasets."""

import numpy as np
import pytest

from dptrain.core.creation import tensor
from dptrain.core.lent_memory import from_numpy
from dptrain.data import DataLoader, Dataset, Subset, TensorDataset
from dptrain.data.reuse import ReusedArrays


def test_tensor_dataset_slices_every_tensor():
    dataset = TensorDataset(tensor([[1.0, 2.0], [3.0, 4.0]]), tensor([7, 8]))
    row, number = dataset[1]
    assert row.tolist() == [3.0, 4.0]
    assert number.item() == 8
    assert len(dataset) == 2
    assert dataset[-1][1].item() == 8


def test_tensor_dataset_shares_the_memory_of_its_tensors():
    array = np.zeros((3, 2), dtype=np.float32)
    dataset = TensorDataset(from_numpy(array))
    array[1] = 5
    assert dataset[1][0].tolist() == [5.0, 5.0]


def test_tensor_dataset_names_sizes_that_differ():
    with pytest.raises(AssertionError, match=r"Size mismatch between tensors.*\[2, 3\]"):
        TensorDataset(tensor([1, 2]), tensor([1, 2, 3]))


@pytest.mark.parametrize("tensors", [(), (tensor(1.0),)])
def test_tensor_dataset_refuses_what_has_no_samples(tensors):
    with pytest.raises(ValueError, match=r"shape \(samples, ...\)"):
        TensorDataset(*tensors)


def test_a_batch_of_a_tensor_that_requires_grad_carries_the_gradient():
    rows = tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], requires_grad=True)
    (batch,) = TensorDataset(rows).get_batch([2, 0, 2])
    batch.sum().backward()
    assert rows.grad.tolist() == [[1.0, 1.0], [0.0, 0.0], [2.0, 2.0]]


def test_subset_renumbers_and_nests():
    letters = Subset("abcdefgh", [1, 3, 5, 7])
    assert [letters[i] for i in range(len(letters))] == ["b", "d", "f", "h"]
    assert letters.__getitems__([3, 0]) == ["h", "b"]
    assert Subset(letters, [2, 1])[0] == "f"


def test_subset_gives_batches_only_where_the_whole_dataset_does():
    array_backed = TensorDataset(tensor([10, 11, 12, 13]))
    (batch,) = Subset(Subset(array_backed, [3, 2, 1]), [0, 2]).get_batch([1, 0])
    assert batch.tolist() == [11, 13]
    assert Subset([1, 2, 3], [0]).get_batch([0]) is NotImplemented


def test_a_dataset_without_getitem_says_so():
    with pytest.raises(NotImplementedError, match="Dataset must implement __getitem__"):
        Dataset()[0]


# ---- memory that is used again ----------------------------------------------------------------------


def pointer(memory):
    return memory.empty((200, 200), np.dtype(np.float32)).ctypes.data


def test_memory_is_given_out_again_once_nothing_refers_to_it():
    memory = ReusedArrays()
    assert pointer(memory) == pointer(memory)
    assert memory.empty((200, 201), np.dtype(np.float32)).shape == (200, 201)
    assert memory.empty((200, 200), np.dtype(np.int32)).dtype == np.int32


@pytest.mark.parametrize(
    "refer",
    [
        lambda a: a[3:, 4],
        lambda a: a.reshape(-1)[5],
        lambda a: from_numpy(a)[0].view(2, 100),
        memoryview,
        lambda a: (from_numpy(a).requires_grad_() ** 2).sum(),
        lambda a: from_numpy(a).untyped_storage(),
        lambda a: np.from_dlpack(a)[0],
    ],
)
def test_memory_that_something_refers_to_is_not_given_out_again(refer):
    memory = ReusedArrays()
    array = memory.empty((200, 200), np.dtype(np.float32))
    array[:] = 1
    where, reference = array.ctypes.data, refer(array)
    del array
    if isinstance(reference, np.float32):
        assert pointer(memory) == where  # a copy
        return
    taken = [memory.empty((200, 200), np.dtype(np.float32)) for _ in range(6)]
    assert where not in {array.ctypes.data for array in taken}
    del reference


def test_rows_by_any_number_that_a_tensor_takes():
    dataset = TensorDataset(tensor(np.arange(40000.0).reshape(10, 4000)), tensor(list(range(10))))
    rows, numbers = dataset.get_batch([3, -1, 0])
    assert numbers.tolist() == [3, 9, 0]
    assert rows[:, 0].tolist() == [12000.0, 36000.0, 0.0]
    assert dataset.get_batch([])[0].shape == (0, 4000)
    for bad in (10, -11):
        with pytest.raises(IndexError):
            dataset.get_batch([1, bad])


def test_batches_that_are_kept_stay_as_they_were():
    dataset = TensorDataset(tensor(np.arange(40.0).repeat(20000).reshape(40, 20000)))
    kept = [batch[0] for batch in DataLoader(dataset, 4)]
    assert [batch[0, 0].item() for batch in kept] == list(range(0, 40, 4))
