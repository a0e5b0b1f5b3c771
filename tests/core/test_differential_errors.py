"""One argument of a valid call replaced by something else: both libraries take it, or both refuse it alike.

Each public function that has samples is called with every argument of its first sample exchanged for values
of other kinds, left out, or joined by one too many. What PyTorch refuses is refused, with its kind of
exception or a subclass; what it takes is taken. The table holds the differences that are decisions.
"""

import warnings

import numpy as np
import pytest
from op_samples import SAMPLES
from test_ops import build, ours, resolve

import dptrain

MUTATIONS = {
    "None": lambda m: None,
    "text": lambda m: "x",
    "object": lambda m: object,
    "True": lambda m: True,
    "2.5": lambda m: 2.5,
    "-7": lambda m: -7,
    "[]": lambda m: [],
    "[1.5]": lambda m: [1.5],
    "[True]": lambda m: [True],
    "(1, -1)": lambda m: (1, -1),
    "int tensor": lambda m: m.tensor(1),
    "empty tensor": lambda m: m.empty(0),
    "nan": lambda m: float("nan"),
    "float tensor": lambda m: m.tensor(1.5),
    "sizes tensor": lambda m: m.tensor([2, 3]),
}
NAMES = sorted(n for n, calls in SAMPLES.items() if calls)
#: What PyTorch's functions that are written in Python raise where they happen to use such a value.
ACCIDENTS = (AttributeError, AssertionError, UnboundLocalError)
#: Which of them a tensor of a wrong shape and type leads to depends on what is looked at first.
OF_SHAPES = (RuntimeError, IndexError, ValueError)
#: PyTorch's function looks at these by itself, or only where they matter; we ask for the documented kind.
DOCUMENTED_KIND = {
    ("adaptive_avg_pool2d", "1"),
    ("adaptive_avg_pool3d", "1"),
    ("linalg.cross", "1"),
    ("meshgrid", "indexing"),
    ("nn.functional.gaussian_nll_loss", "1"),
    ("nn.functional.gaussian_nll_loss", "2"),
    ("nn.functional.multi_margin_loss", "surplus"),
    ("nn.functional.multilabel_soft_margin_loss", "1"),
    ("nn.functional.normalize", "surplus"),
    ("nn.functional.triplet_margin_with_distance_loss", "margin"),
}
#: Overloads and conversions that PyTorch has and we do not, or the reverse: harmless, and refused by nobody's mistake.
OVERLOADS = {
    ("cholesky", "0"): "an empty vector as a matrix",
    ("histogram", "missing"): "a default for bins",
    ("isin", "0"): "booleans",
    ("isin", "1"): "booleans",
    ("adjoint", "0"): "tensors without two dimensions",
    ("celu", "surplus"): "inplace, which nn.functional's form has",
    ("selu", "surplus"): "inplace, which nn.functional's form has",
    ("threshold", "surplus"): "inplace, which nn.functional's form has",
    ("linalg.vander", "0"): "fewer than two columns",
    ("logsumexp", "1"): "no dimensions stand for all, as in the other reductions",
    ("nn.functional.cosine_similarity", "0"): "integers",
    ("nn.functional.cosine_similarity", "1"): "integers",
    ("repeat_interleave", "1"): "None is the form with counts alone",
    ("repeat_interleave", "missing"): "the form with counts alone",
    ("split", "1"): "a float in a tensor as a size",
    ("unravel_index", "1"): "a tensor as a shape; True as a size",
    ("Tensor.expand", "2"): "True as a size",
    ("Tensor.repeat", "2"): "True as a size",
    ("Tensor.sum_to_size", "2"): "True as a size",
    ("Tensor.view", "2"): "True as a size",
    ("broadcast_shapes", "0"): "None and -1 as a shape",
    ("broadcast_shapes", "1"): "None and -1 as a shape",
    ("broadcast_shapes", "2"): "None and -1 as a shape",
    ("broadcast_shapes", "surplus"): "None as a shape",
}
#: Made of one implementation for several functions: one int where theirs takes a sequence only, or the reverse.
ONE_INT = {
    ("broadcast_to", "1"),
    ("expand_copy", "1"),
    ("expand_copy", "missing"),
    ("permute_copy", "1"),
    ("permute_copy", "missing"),
    ("split_copy", "1"),
    ("unsafe_split", "1"),
    ("view_copy", "1"),
    ("view_copy", "missing"),
}
KNOWN = DOCUMENTED_KIND | OVERLOADS.keys() | ONE_INT


def arguments(name, m):
    def theirs(array, arg):
        return m.from_numpy(np.ascontiguousarray(array).reshape(array.shape).copy())

    make = (lambda a, arg: ours(a, arg, grad=False)) if m is dptrain else theirs
    return build(SAMPLES[name][0], np.float64, make)


def mutated(name, m):
    """(which argument, what it became, the call) for one function."""
    function = resolve(name, m, m.nn.functional)
    args, kwargs = arguments(name, m)
    first = int(name.startswith("Tensor."))
    for i in range(first, len(args)):
        for label, value in MUTATIONS.items():
            changed = [*args[:i], value(m), *args[i + 1 :]]
            yield str(i), label, lambda changed=changed: function(*changed, **kwargs)
    for key in kwargs:
        for label, value in MUTATIONS.items():
            changed = {**kwargs, key: value(m)}
            yield key, label, lambda changed=changed: function(*args, **changed)
    for label in ("None", "object"):
        more = [*args, MUTATIONS[label](m)]
        yield "surplus", label, lambda more=more: function(*more, **kwargs)
    if len(args) > first:
        yield "missing", "", lambda: function(*args[:-1], **kwargs)


def refusal(call):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            call()
        except Exception as error:
            return error
    return None


def alike(where, label, mine, theirs):
    if theirs is None:
        return mine is None
    if mine is None:
        # Where PyTorch has an overload, a parameter has the default None here.
        return where == "surplus" and label == "None"
    if isinstance(mine, type(theirs)):
        return True
    if isinstance(theirs, ACCIDENTS):
        return isinstance(mine, TypeError)
    return "tensor" in label and isinstance(mine, OF_SHAPES) and isinstance(theirs, OF_SHAPES)


@pytest.mark.oracle
@pytest.mark.parametrize("name", NAMES)
def test_what_pytorch_refuses_is_refused_alike(name):
    torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
    for (where, label, mine), (_, _, theirs) in zip(
        mutated(name, dptrain), mutated(name, torch), strict=True
    ):
        if (name, where) in KNOWN:
            continue
        found, expected = refusal(mine), refusal(theirs)
        assert alike(where, label, found, expected), (where, label, repr(found), repr(expected))


def test_the_table_names_what_there_is():
    assert {name for name, _ in KNOWN} <= set(NAMES)
