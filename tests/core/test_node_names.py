"""The names of graph nodes are PyTorch's, for every sample of every operation."""

import numpy as np
import pytest
from op_samples import SAMPLES
from test_ops import as_list, build, ours, resolve

import dptrain

#: Operations whose last node has another name here, and why.
EXCEPTIONS = {
    # PyTorch numbers the forms of one operation: with a number or a tensor, over all or along a dimension.
    **dict.fromkeys(
        [
            "clamp_max",
            "clamp_min",
            "copysign",
            "fill",
            "float_power",
            "fmod",
            "index_fill",
            "lerp",
            "masked_fill",
            "nanquantile",
            "quantile",
            "round",
            "rsub",
            "scatter",
            "special.xlog1py",
            "special.zeta",
            "xlogy",
        ],
        "one node for all forms",
    ),
    # One node there, several here, of which the last is shown (losses: the reduction).
    **dict.fromkeys(
        [
            "adaptive_avg_pool1d",
            "adaptive_avg_pool2d",
            "Tensor.sum_to_size",
            "einsum",
            "linalg.cond",
            "linalg.matrix_norm",
            "linalg.norm",
            "nn.functional.binary_cross_entropy",
            "nn.functional.binary_cross_entropy_with_logits",
            "nn.functional.multi_margin_loss",
            "nn.functional.multilabel_margin_loss",
            "nn.functional.soft_margin_loss",
            "nn.functional.rrelu",
            "nn.functional.pairwise_distance",
            "repeat_interleave",
            "vdot",
            "diag",
        ],
        "another composition",
    ),
    # Several nodes on both sides, in another order.
    **dict.fromkeys(
        [
            "atleast_2d",
            "atleast_3d",
            "combinations",
            "cumulative_trapezoid",
            "kron",
            "linalg.matrix_power",
            "matmul",
            "trapezoid",
            "trapz",
            "nn.functional.margin_ranking_loss",
            "nn.functional.triplet_margin_loss",
        ],
        "several nodes on both sides",
    ),
    "special.ndtr": "one node here, five there",
    # Without a dimension to transpose the tensor itself is returned.
    "t": "no node for fewer than two dimensions",
}
NAMES = sorted(SAMPLES)


def names_of_nodes(name, torch):
    """Pairs of names for every sample's results."""

    def theirs(array, arg):
        tensor = torch.from_numpy(np.ascontiguousarray(array).reshape(array.shape).copy())
        return tensor.requires_grad_() if arg.kind == "x" else tensor

    for call in SAMPLES[name]:
        args, kwargs = build(call, np.float64, lambda a, s: ours(a, s, grad=True))
        torch_args, _ = build(call, np.float64, theirs)
        found = as_list(resolve(name, dptrain, None)(*args, **kwargs))
        expected = as_list(resolve(name, torch, torch.nn.functional)(*torch_args, **kwargs))
        for a, b in zip(found, expected, strict=True):
            if isinstance(b, torch.Tensor) and b.grad_fn is not None:
                yield getattr(a.grad_fn, "grad_name", None), type(b.grad_fn).__name__


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NAMES)
def test_node_is_named_as_in_pytorch(name):
    torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
    differing = {pair for pair in names_of_nodes(name, torch) if pair[0] != pair[1]}
    assert bool(differing) == (name in EXCEPTIONS), differing or "no longer an exception"


def test_a_node_keeps_its_name_after_backward():
    y = dptrain.ones(3, requires_grad=True).std()
    y.backward()
    assert y.grad_fn.name() == "StdBackward0"


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


@pytest.mark.oracle
@pytest.mark.parametrize("shape", [(3,), (2, 3), (2, 2, 3), (2, 2, 2, 3)])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_is_named_by_the_dimensions_of_its_input(shape, bias):
    torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
    ours, theirs = (m.nn.Linear(3, 2, bias=bias)(m.ones(shape)) for m in (dptrain, torch))
    assert ours.grad_fn.name() == theirs.grad_fn.name()
