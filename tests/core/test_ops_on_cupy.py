"""Every operation on its samples over a stand-in for CuPy that takes no more than CuPy does."""

import fake_kernels
import ml_dtypes
import numpy as np
import pytest
from op_samples import SAMPLES
from test_ops import as_list, build, flat, ours, resolve

import dptrain
from dptrain.core.transfers import watch

#: Names whose job it is to bring values to the host.
LEAVES = {"Tensor.cpu", "Tensor.numpy", "Tensor.item", "Tensor.tolist", "Tensor.to"}


@pytest.fixture(autouse=True)
def gpu(monkeypatch):
    with fake_kernels.installed(monkeypatch):
        yield


CASES = [(name, n) for name, calls in SAMPLES.items() for n in range(len(calls))]


def run(name, n, dtype, make):
    args, kwargs = build(SAMPLES[name][n], dtype, make)
    dptrain.manual_seed(0)
    with watch() as seen:
        outs = as_list(resolve(name, dptrain, dptrain.nn.functional)(*args, **kwargs))
        wanted = [o for o in outs if getattr(o, "requires_grad", False)]
        if wanted:
            sum((o * o).sum() for o in wanted).backward()
    return outs, [getattr(a, "grad", None) for a in flat(args)], seen


@pytest.mark.filterwarnings("ignore:convolutions on GPUs run without cuDNN")
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize(("name", "n"), CASES)
def test_cupy_takes_what_operations_ask_of_it(name, n, dtype):
    def there(array, arg):
        tensor = ours(array, arg).to("cuda:0")
        return tensor.requires_grad_() if arg.kind == "x" else tensor

    try:
        expected, expected_grads, _ = run(name, n, dtype, lambda a, s: ours(a, s, grad=True))
    except Exception as error:  # not made for 16 bits
        assert dtype is not np.float32
        with pytest.raises(type(error)):
            run(name, n, dtype, there)
        return
    found, grads, seen = run(name, n, dtype, there)
    near = 2e-5 if dtype is np.float32 else 2e-2
    for ours_, theirs in zip([*found, *grads], [*expected, *expected_grads], strict=True):
        if not isinstance(theirs, dptrain.Tensor):
            assert ours_ == theirs
            continue
        assert ours_.dtype is theirs.dtype
        values = theirs.detach().to(dptrain.float64).numpy()
        scale = max(
            1, np.abs(values, where=np.isfinite(values), out=np.zeros(values.shape)).max(initial=0)
        )
        np.testing.assert_allclose(
            ours_.detach().cpu().to(dptrain.float64).numpy(), values, rtol=near, atol=near * scale
        )
    assert name in LEAVES or not [t for t in seen if t.kind == "copy"]
