"""Operations over the stand-in for CuPy: CUDA kernels are their host twins, random numbers the host's."""

from contextlib import contextmanager
from importlib import import_module

import fake_cupy

from dptrain.core import kernels
from dptrain.core.half import _HALVES, _lower, lift
from dptrain.core.kernels import cuda, reference, reference_activations, reference_optim

_TWINS = (reference, reference_activations, reference_optim)


class Kernels:
    """A module of CUDA kernels; what is written over arrays of any library runs as it is."""

    def __init__(self, name):
        self.__name__ = f"dptrain.core.kernels.{name}"
        self._module = import_module(self.__name__)

    def __getattr__(self, name):
        function = getattr(self._module, name)
        if ".cuda" not in function.__module__:
            return function
        host = next(getattr(m, name) for m in _TWINS if hasattr(m, name))

        def run(*args, **kwargs):  # CUDA kernels compute 16 bits in float32 and round once
            kinds = [a.dtype for a in args if getattr(a, "dtype", None) in _HALVES]
            out = fake_cupy._run(host, [lift(a) for a in args], kwargs)
            if not kinds:
                return out
            return (
                [_lower(o, kinds[0]) for o in out] if type(out) is tuple else _lower(out, kinds[0])
            )

        return run


class Stream:
    """The host's random numbers, on the stand-in."""

    def __init__(self, xp, stream):
        self.random = lambda size, dtype: xp.asarray(stream.random(size, dtype))


@contextmanager
def installed(monkeypatch):
    """One GPU whose arrays are the stand-in's, on which all operations run."""
    monkeypatch.setattr(kernels, "_cuda", Kernels)
    for choice in (kernels._native, kernels._kernels, kernels._optim_kernels):
        choice.cache_clear()
    monkeypatch.setattr(kernels, "_native", lambda name="native": None)
    monkeypatch.setattr(cuda.philox, "DeviceStream", Stream)
    with fake_cupy.installed(monkeypatch, 1):
        yield
