"""Every operation on its samples over a stand-in for CuPy that takes no more than CuPy does."""

import fake_kernels
import ml_dtypes
import numpy as np
import pytest
from op_runs import CASES, check_on_gpu


@pytest.fixture(autouse=True)
def gpu(monkeypatch):
    with fake_kernels.installed(monkeypatch):
        yield


@pytest.mark.filterwarnings("ignore:convolutions on GPUs run without cuDNN")
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize(("name", "n"), CASES)
def test_cupy_takes_what_operations_ask_of_it(name, n, dtype):
    check_on_gpu(name, n, dtype)
