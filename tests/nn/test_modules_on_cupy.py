"""Layers, functions and optimizers over a stand-in for CuPy that takes no more than CuPy does."""

from functools import partial

import fake_cupy
import fake_kernels
import numpy as np
import on_devices
import pytest
from test_module_devices import (  # noqa: F401
    test_an_encoder_reads_masks_of_its_device,
    test_function_stays_on_its_device,
    test_initial_values_are_those_of_the_host,
    test_module_stays_on_its_device,
    test_parametrized_weight_stays_on_its_device,
    test_unpooling_finds_the_places_again,
)
from test_training_devices import (  # noqa: F401
    test_gradients_are_clipped_where_they_are,
    test_layers_and_vectors_of_parameters,
    test_optimizer_state_returns_to_the_device,
    test_optimizer_stays_on_its_device,
)

pytestmark = pytest.mark.filterwarnings("ignore:convolutions on GPUs run without cuDNN")


@pytest.fixture(autouse=True)
def gpu(monkeypatch):
    monkeypatch.setattr(on_devices, "PLACES", ("cpu", "cuda:0"))
    monkeypatch.setattr(on_devices, "ARRAY", fake_cupy.ndarray)
    near = partial(np.testing.assert_allclose, rtol=2e-4, atol=2e-5)
    monkeypatch.setattr(on_devices, "compare", near)
    with fake_kernels.installed(monkeypatch):
        yield
