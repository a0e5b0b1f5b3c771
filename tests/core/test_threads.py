"""The number of threads can be set and is what the matrix library reports."""

import pytest

import dptrain


def test_number_of_threads_is_taken_over():
    before = dptrain.get_num_threads()
    try:
        dptrain.set_num_threads(1)
        assert dptrain.get_num_threads() == 1
    finally:
        dptrain.set_num_threads(before)
    with pytest.raises(RuntimeError, match="positive integer, got 0"):
        dptrain.set_num_threads(0)
