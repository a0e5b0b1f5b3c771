"""Integer, boolean and 16-bit inputs: every operation of these families gives PyTorch's types and values."""

import numpy as np
import pytest
import samples_arithmetic
import samples_arrange
import samples_index
import samples_statistics
from test_ops import as_list, build, resolve

import dptrain

FAMILIES = (samples_arithmetic, samples_arrange, samples_index, samples_statistics)
SAMPLES = {name: calls for family in FAMILIES for name, calls in family.SAMPLES.items()}
KINDS = ("int64", "int32", "uint8", "bool", "float16", "bfloat16")

#: Results that PyTorch does not determine (places of equal elements), or computes in 16 bits.
UNDETERMINED = {"sort", "topk", "argsort", "median", "nanmedian", "mode", "kthvalue", "histc"}


def convert(array, arg, kind, torch):
    tensor = torch.from_numpy(np.ascontiguousarray(array).reshape(array.shape).copy())
    if arg.kind in "xc":
        tensor = tensor.abs() if kind == "uint8" else tensor
        tensor = tensor.to(getattr(torch, kind))
    return tensor


def to_ours(tensor, torch):
    if tensor.dtype is torch.bfloat16:
        return dptrain.from_numpy(tensor.float().numpy()).bfloat16()
    return dptrain.from_numpy(tensor.numpy())


def attempt(module, functional, name, args, kwargs):
    try:
        return as_list(resolve(name, module, functional)(*args, **kwargs)), None
    except (RuntimeError, TypeError, IndexError, ValueError) as error:
        return None, error


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SAMPLES)
def test_other_types_equal_pytorch(name, kind):
    torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
    tolerance = {"float16": 5e-3, "bfloat16": 4e-2}.get(kind, 1e-4)
    for call in SAMPLES[name]:
        theirs, kwargs = build(call, np.float64, lambda a, s: convert(a, s, kind, torch))
        mine, _ = build(call, np.float64, lambda a, s: to_ours(convert(a, s, kind, torch), torch))
        reference, refused = attempt(torch, torch.nn.functional, name, theirs, kwargs)
        found, error = attempt(dptrain, None, name, mine, kwargs)
        if refused is not None:
            # Either refused here too, or served: PyTorch leaves out many types for lack of a kernel.
            continue
        assert error is None, error
        for a, r in zip(found, reference, strict=True):
            if not isinstance(r, torch.Tensor):
                assert a == r
                continue
            assert a.dtype.name == str(r.dtype).removeprefix("torch.")
            assert tuple(a.shape) == tuple(r.shape)
            if name not in UNDETERMINED:
                np.testing.assert_allclose(
                    a.to(dptrain.float64).numpy(),
                    r.double().numpy(),
                    rtol=tolerance,
                    atol=tolerance,
                )
