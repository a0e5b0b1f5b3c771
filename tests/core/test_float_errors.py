"""Inf and nan are values inside operations; NumPy's error state outside is the user's."""

import numpy as np
import pytest

import dptrain
from dptrain.core import float_errors

SWITCHES = {
    "variable": (float_errors.ignore_float_errors, float_errors.restore_float_errors),
    "errstate": (float_errors._with_errstate, float_errors._leave_errstate),
}


@pytest.mark.parametrize("how", SWITCHES)
def test_switches_are_silent_inside_and_leave_nothing_behind(how):
    enter, leave = SWITCHES[how]
    zero = np.zeros(1)
    with np.errstate(all="raise"):
        token = enter()
        try:
            assert np.isinf(1 / zero)
        finally:
            leave(token)
        with pytest.raises(FloatingPointError):
            1 / zero


def test_operations_and_backward_ignore_what_the_user_raises():
    with np.errstate(all="raise"):
        x = dptrain.zeros(2, requires_grad=True)
        (1 / x).sum().backward()
        assert x.grad.tolist() == [-np.inf, -np.inf]
        with pytest.raises(RuntimeError, match="must match the size"):
            x + dptrain.zeros(3)  # leaves the state alone too
        with pytest.raises(FloatingPointError):
            1 / np.zeros(1)


def test_error_state_of_numpy_is_reached_without_building_it_anew():
    assert float_errors.ignore_float_errors is not float_errors._with_errstate
