"""What a process loads before its first kernel runs."""

import subprocess
import sys
from importlib.util import find_spec

import pytest

pytest.importorskip("numba", reason="numba not installed")

_STEP = """
import sys
import numpy as np
from dptrain.core.kernels import kernels_for, native, reference
from numba.np import linalg

x = np.linspace(-1, 1, 8192, dtype=np.float32)
assert np.array_equal(kernels_for(x).relu(x), reference.relu(x))
print("scipy.linalg" in sys.modules)
linalg.ensure_blas()  # what numba's products of matrices ask first
print("scipy.linalg" in sys.modules)
"""


@pytest.mark.skipif(find_spec("scipy") is None, reason="SciPy not installed")
def test_kernels_run_without_scipy_and_numbas_products_still_find_it():
    done = subprocess.run(
        [sys.executable, "-c", _STEP], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["False", "True"]
