"""A sample call of an operation on the host and on a GPU (or its stand-in): alike, and nothing copied back."""

import ml_dtypes
import numpy as np
import pytest
from op_samples import SAMPLES
from test_ops import as_list, build, flat, ours, resolve

import dptrain
from dptrain.core.transfers import watch

PLACE = "cuda:0"
CASES = [(name, n) for name, calls in SAMPLES.items() for n in range(len(calls))]
DTYPES = [np.float32, np.float64, ml_dtypes.bfloat16]

#: Names whose job it is to bring values to the host.
_LEAVES = {"Tensor.cpu", "Tensor.numpy", "Tensor.item", "Tensor.tolist", "Tensor.to"}


def _run(name, n, dtype, make):
    """Results, gradients, transfers of a sample call, and whether a tensor said where it is to run."""
    args, kwargs = build(SAMPLES[name][n], dtype, make)
    given = any(isinstance(a, dptrain.Tensor) for a in flat([*args, *kwargs.values()]))
    dptrain.manual_seed(0)
    with watch() as seen:
        outs = as_list(resolve(name, dptrain, dptrain.nn.functional)(*args, **kwargs))
        wanted = [o for o in outs if getattr(o, "requires_grad", False)]
        if wanted:
            sum((o * o).sum() for o in wanted).backward()
    return outs, [getattr(a, "grad", None) for a in flat(args)], seen, given


def _there(array, arg):
    tensor = ours(array, arg).to(PLACE)
    return tensor.requires_grad_() if arg.kind == "x" else tensor


def check_on_gpu(name, n, dtype):
    """Values, gradients, types and places are the host's; or the same kind of error is raised."""
    try:
        expected, expected_grads, *_ = _run(name, n, dtype, lambda a, s: ours(a, s, grad=True))
    except Exception as error:
        assert dtype is ml_dtypes.bfloat16, "a sample has to run"
        with pytest.raises(type(error)):
            _run(name, n, dtype, _there)
        return
    found, grads, seen, given = _run(name, n, dtype, _there)
    for mine, theirs in zip([*found, *grads], [*expected, *expected_grads], strict=True):
        if not isinstance(theirs, dptrain.Tensor):
            assert mine == theirs
            continue
        assert mine.dtype is theirs.dtype
        assert name in _LEAVES or not given or str(mine.device) == PLACE
        _compare(mine, theirs, dtype)
    assert name in _LEAVES or not [t for t in seen if t.kind == "copy"]


def _compare(mine, theirs, dtype):
    found, expected = (t.detach().cpu().to(dptrain.float64).numpy() for t in (mine, theirs))
    near, scale = 2e-4, 1
    if dtype is ml_dtypes.bfloat16:  # intermediate values may be rounded elsewhere
        near, scale = 2e-2, max(1, np.abs(expected[np.isfinite(expected)]).max(initial=0))
    elif theirs.dtype is dptrain.float64 and dtype is np.float64:  # integers become float32
        near = 1e-9
    np.testing.assert_allclose(found, expected, rtol=near, atol=near * scale)
