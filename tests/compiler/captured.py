"""A GPU that is not there, for captured steps: the stand-in for CuPy, with the CUDA kernels run by g++."""

import fake_cupy
import numpy as np
from cuda_on_cpu import COMPILER, CpuDriver

from dptrain.core.kernels.cuda import FAMILIES, cudnn, launch


class Driver(CpuDriver):
    """Launches over the stand-in's arrays, noted while a stream is captured."""

    def __call__(self, program, kernel, declared, grid, block, values):
        hosts = [v.host if type(v) is fake_cupy.ndarray else v for v in values]
        run = super().__call__
        fake_cupy.noted(
            lambda *hosts: run(program, kernel, declared, grid, block, hosts), hosts, {}
        )


def make_driver(folder):
    """One for many tests: each source is compiled once."""
    return Driver(folder, FAMILIES)


def install(monkeypatch, driver):
    """Context in which `cuda:0` is the stand-in."""
    monkeypatch.setattr(launch, "driver", driver)
    monkeypatch.setattr(cudnn, "_library", [None])
    return fake_cupy.installed(monkeypatch)


def launches():
    """How many graphs were started."""
    return sum(entry[0] == "launch" for entry in fake_cupy.LOG)


__all__ = ["COMPILER", "install", "launches", "make_driver", "np"]
