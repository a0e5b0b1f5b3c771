"""On a GPU: layers, functions and optimizers are the host's. `pytest -m gpu`."""

from functools import partial

import numpy as np
import on_devices
import pytest
from test_modules_on_cupy import *  # noqa: F403 (the same tests)

import dptrain
from dptrain.core.cuda import library, probe, trouble

REASON = trouble(probe())
if REASON is not None:  # one skipped test says so, not hundreds
    pytest.skip(f"no GPU: {REASON}", allow_module_level=True)
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore:convolutions on GPUs run without cuDNN"),
]


@pytest.fixture(autouse=True)
def gpu(monkeypatch):
    monkeypatch.setattr(dptrain.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(on_devices, "PLACES", ("cpu", "cuda:0"))
    monkeypatch.setattr(on_devices, "ARRAY", library().cupy.ndarray)
    near = partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4)
    monkeypatch.setattr(on_devices, "compare", near)
