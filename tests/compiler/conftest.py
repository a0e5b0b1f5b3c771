"""Shared by the tests of compiled steps: stand-ins that are importable by their names, and a GPU of them."""

import sys
from pathlib import Path

import pytest

from dptrain.nn import replays

sys.path[:0] = [str(Path(__file__).parents[1] / folder) for folder in ("comm", "core", "parallel")]


@pytest.fixture(scope="session")
def driver(tmp_path_factory):
    """Runs the CUDA kernels by g++; each source is compiled once for all tests (`cuda_on_cpu`)."""
    from captured import make_driver

    folder = tmp_path_factory.getbasetemp() / "cuda_on_cpu"
    folder.mkdir(exist_ok=True)
    return make_driver(folder)


@pytest.fixture
def gpu(monkeypatch, driver):
    """`cuda:0` is the stand-in for CuPy."""
    from captured import install

    with install(monkeypatch, driver) as library:
        yield library


@pytest.fixture(autouse=True)
def replays_by_themselves(monkeypatch):
    """Tests may switch them off; the next one has them again."""
    monkeypatch.setattr(replays.state, "enabled", True)
