"""Operations over the stand-in for CuPy: CUDA kernels are their host twins, random numbers the host's."""

from contextlib import contextmanager
from importlib import import_module

import fake_cupy

from dptrain.core import kernels
from dptrain.core.half import HALVES, _lower, lift
from dptrain.core.kernels import cuda, reference, reference_activations, reference_optim

#: Kernels that write into arguments, and those whose results are float32 where 16-bit values come.
_IN_PLACE = {"assign", "follow", "normalise"}
_COMPUTED = {"batch_statistics", "batch_vectors", "convert", "cross_entropy", "sum_pool"}
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
            kinds = [a.dtype for a in args if getattr(a, "dtype", None) in HALVES]
            wide = [lift(a) for a in args]
            out = fake_cupy._run(host, wide, kwargs)
            if name in _IN_PLACE:
                for array, computed in zip(args, wide, strict=True):
                    if array is not computed:
                        array[...] = computed.astype(array.dtype)
            if not kinds or name in _COMPUTED:
                return out
            if type(out) is not tuple:
                return _lower(out, kinds[0])
            return _lower(out[0], kinds[0]), *out[1:]  # statistics are of the computed type

        return run


class Stream:
    """The host's random numbers, on the stand-in."""

    def __init__(self, xp, stream):
        self.random = lambda size, dtype: xp.asarray(stream.random(size, dtype))


@contextmanager
def installed(monkeypatch):
    """One GPU whose arrays are the stand-in's, on which all operations run."""
    choices = (kernels._native, kernels._kernels, kernels._optim_kernels)
    for choice in choices:
        choice.cache_clear()
    try:
        with monkeypatch.context() as patch, fake_cupy.installed(monkeypatch, 1):
            patch.setattr(kernels, "_native", lambda name="native": None)
            patch.setattr(kernels, "_cuda", Kernels)
            patch.setattr(cuda.philox, "DeviceStream", Stream)
            yield
    finally:
        for choice in choices:  # the tests that follow have the compiled kernels again
            choice.cache_clear()
