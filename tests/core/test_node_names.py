"""The names of graph nodes are PyTorch's, for every sample of the operations of `samples_core`."""

import numpy as np
import pytest
import samples_core
from test_ops import as_list, build, ours, resolve

import dptrain

#: Compositions that PyTorch has as one operation (or the other way round): their last node is shown.
COMPOSED = {"bmm", "matmul", "norm", "std", "Tensor.contiguous", "t"}
#: Named tuples of `max(input, dim)`: gathered by the index that was found.
COMPOSED |= {"max", "min", "vdot"}
#: Windows over images without a batch dimension end in a squeeze here.
COMPOSED |= {"avg_pool2d", "conv2d", "max_pool2d"}
NAMES = sorted(samples_core.SAMPLES)


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("name", [n for n in NAMES if n not in COMPOSED])
def test_node_is_named_as_in_pytorch(name):
    torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")

    def theirs(array, arg):
        tensor = torch.from_numpy(np.ascontiguousarray(array).reshape(array.shape).copy())
        return tensor.requires_grad_() if arg.kind == "x" else tensor

    for call in samples_core.SAMPLES[name]:
        args, kwargs = build(call, np.float64, lambda a, s: ours(a, s, grad=True))
        torch_args, _ = build(call, np.float64, theirs)
        found = as_list(resolve(name, dptrain, None)(*args, **kwargs))
        expected = as_list(resolve(name, torch, torch.nn.functional)(*torch_args, **kwargs))
        for a, b in zip(found, expected, strict=True):
            if isinstance(b, torch.Tensor) and b.grad_fn is not None:
                assert a.grad_fn.grad_name == type(b.grad_fn).__name__


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda x: x @ x, "MmBackward0"),
        (lambda x: x[0] @ x[1], "DotBackward0"),
        (lambda x: x @ x[0], "MvBackward0"),
        (lambda x: x.max(), "MaxBackward1"),
        (lambda x: x.t(), "TBackward0"),
        (lambda x: x.view(4), "ViewBackward0"),
        (lambda x: x.mean((0, 1)), "MeanBackward1"),
    ],
)
def test_forms_of_composed_operations(make, name):
    assert make(dptrain.ones(2, 2, requires_grad=True)).grad_fn.grad_name == name
