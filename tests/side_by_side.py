"""Run one program with dptrain and with PyTorch, the library being its argument, and compare all that it gives."""

from collections.abc import Mapping

import numpy as np
import pytest

import dptrain


def values(lib, *shape, seed=0, dtype="float64"):
    """The same normally distributed numbers as a tensor of either library."""
    return lib.from_numpy(np.random.default_rng(seed).standard_normal(shape).astype(dtype))


def positive_values(lib, *shape, seed=0):
    """Likewise, above 0.3."""
    return values(lib, *shape, seed=seed).abs() + 0.3


def both(program, *args, tolerance=1e-10):
    """What `program(lib, *args)` gives with each library must be equal.

    Tensors and arrays in values, shape, dtype; anything else by `==`; containers by their elements.
    """
    torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
    _compare(program(dptrain, *args), program(torch, *args), tolerance, "result")


def _compare(ours, theirs, tolerance, where):
    if isinstance(theirs, Mapping):
        assert list(ours) == list(theirs), where
        for key in theirs:
            _compare(ours[key], theirs[key], tolerance, f"{where}[{key!r}]")
    elif isinstance(theirs, (list, tuple)) or hasattr(theirs, "__next__"):
        ours, theirs = list(ours), list(theirs)
        assert len(ours) == len(theirs), where
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            _compare(a, b, tolerance, f"{where}[{i}]")
    elif hasattr(theirs, "detach") or isinstance(theirs, np.ndarray):
        a, b = (t.detach().numpy() if hasattr(t, "detach") else t for t in (ours, theirs))
        assert a.dtype == b.dtype, where
        assert a.shape == b.shape, where
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance, err_msg=where)
    elif isinstance(theirs, BaseException):
        assert type(theirs).__name__ in [c.__name__ for c in type(ours).__mro__], (where, ours)
    elif isinstance(theirs, float):
        assert ours == pytest.approx(theirs, rel=max(tolerance, 1e-6), nan_ok=True), where
    else:
        assert ours == theirs, where


def error_of(use):
    """The error that a call raises; none is a failure of the test."""
    try:
        use()
    except Exception as error:
        return error
    raise AssertionError("no error was raised")
