"""What a process loads that compiles a kernel."""

import subprocess
import sys
from importlib.util import find_spec

import pytest

pytest.importorskip("numba", reason="numba not installed")

_COMPILER = """
import sys
from dptrain.core.kernels.deferred import numba

assert numba().njit(lambda x: x + 1)(1) == 2
print("scipy.linalg" in sys.modules)
from numba.np import linalg
linalg.ensure_blas()  # what numba's products of matrices ask first
print("scipy.linalg" in sys.modules)
"""


@pytest.mark.skipif(find_spec("scipy") is None, reason="SciPy not installed")
def test_the_compiler_is_loaded_without_scipy_and_its_products_still_find_it():
    done = subprocess.run(
        [sys.executable, "-c", _COMPILER], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["False", "True"]
