"""Arguments of a wrong kind, for every exported function: PyTorch's kind of exception, in our own words.

The cases are made from the samples of the operations, so that a new operation has them with its samples.
"""

import re

import numpy as np
import pytest
from op_samples import SAMPLES
from test_ops import build, ours, resolve

import dptrain
from dptrain.core.arguments import Signature
from dptrain.core.export import FUNCTIONS, REGISTRY

#: Words that come from below: NumPy's, Python's of our internals.
FOREIGN = re.compile(r"numpy|ndarray|ufunc|has no attribute '_|forward\(\)|<lambda>|dtype\('")
#: In PyTorch these are written in Python and fail where the argument is used first.
WRITTEN_IN_PYTHON = re.compile(
    r"nn\.functional\..*|adaptive_.*|unravel_index|tensordot|split|norm|broadcast_shapes"
)
#: PyTorch's kind where it is another one.
ELSEWHERE = {
    ("broadcast_shapes", "surplus"): RuntimeError,
}
NAMES = sorted(n for n, calls in SAMPLES.items() if n in FUNCTIONS and calls)


def made(name, m):
    """The arguments of the first sample."""
    arrays = (
        (lambda a, arg: ours(a, arg, grad=False))
        if m is dptrain
        else lambda a, arg: m.from_numpy(np.ascontiguousarray(a).reshape(a.shape).copy())
    )
    return build(SAMPLES[name][0], np.float64, arrays)


def wrong(name, m):
    """Label and call of every case for one module."""
    function = resolve(name, m, m.nn.functional)
    args, kwargs = made(name, m)
    yield "unknown keyword", lambda: function(*args, **kwargs, no_such_argument=1)
    yield "surplus", lambda: function(*args, *[object()] * 12, **kwargs)
    for i, value in enumerate(args):
        if isinstance(value, m.Tensor):
            for label, other in (("object", object()), ("string", "x"), ("list", ["x"])):
                changed = (*args[:i], other, *args[i + 1 :])
                yield f"{label} for {i}", lambda changed=changed: function(*changed, **kwargs)


def kind_of(call):
    with pytest.raises(Exception) as caught:  # noqa: PT011
        call()
    return caught.value


@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_kind_is_a_type_error_in_our_words(name):
    for label, call in wrong(name, dptrain):
        error = kind_of(call)
        wanted = ELSEWHERE.get((name, label.partition(" ")[0]), TypeError)
        assert isinstance(error, wanted), (label, error)
        assert not FOREIGN.search(str(error)), (label, error)
        assert error.__cause__ is None, label


@pytest.mark.oracle
@pytest.mark.parametrize("name", [n for n in NAMES if not WRITTEN_IN_PYTHON.fullmatch(n)])
def test_pytorch_raises_the_same_kind(name):
    torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
    for label, call in wrong(name, torch):
        assert isinstance(kind_of(call), TypeError), label


def test_every_exported_function_has_cases():
    assert set(FUNCTIONS) - set(SAMPLES) == set()
    assert set(REGISTRY) >= set(FUNCTIONS)


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("label", "call"),
    [
        ("float dim", lambda m, x: m.sum(x, 1.5)),
        ("bool dim", lambda m, x: m.cummin(x, dim=True)),
        ("string dim", lambda m, x: x.softmax("x")),
        ("float keepdim", lambda m, x: m.sum(x, 0, 1.5)),
        ("int keepdim", lambda m, x: m.amax(x, 0, keepdim=1)),
        ("none keepdim", lambda m, x: m.argmax(x, 0, None)),
        ("list for int", lambda m, x: m.topk(x, [1])),
        ("float k", lambda m, x: m.topk(x, 1.0)),
        ("float stride", lambda m, x: m.nn.functional.max_pool1d(x, 1, 1.5)),
        ("bool kernel", lambda m, x: m.nn.functional.avg_pool1d(x, True)),
        ("tensor dim", lambda m, x: m.unsqueeze(x, m.tensor(1.0))),
        ("none in place", lambda m, x: x.add_(None)),
        ("list in place", lambda m, x: x.mul_(["x"])),
        ("sum axis", lambda m, x: x.sum(axis="x")),
    ],
)
def test_ints_and_flags_are_what_pytorch_takes(label, call):
    torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
    for m in (torch, dptrain):
        with pytest.raises(TypeError):
            call(m, m.ones(2, 3))


@pytest.mark.oracle
def test_ints_of_other_origins_are_taken():
    torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
    for m in (torch, dptrain):
        x = m.arange(6.0).view(2, 3)
        one = m.tensor(1)
        assert x.sum(one).tolist() == x.sum(np.int64(1)).tolist() == x.sum(axis=1).tolist()
        assert x.sum((0, 1), keepdim=True).shape == (1, 1)


def test_defaults_tell_what_may_be_left_out():
    def function(input, dim=None, keepdim=False, *, alpha=1):
        return input

    signature = Signature("f", function)
    signature.check((1, None), {"keepdim": True})
    for args, kwargs in (((1, 1.5), {}), ((1,), {"keepdims": 0}), ((1, 0, "x"), {})):
        with pytest.raises(TypeError, match=r"f\(\): argument '(dim|keepdim)'"):
            signature.check(args, kwargs)
    failed = signature.blame((dptrain.ones(1),), {"alpha": "x"}, ValueError("deep"))
    assert "alpha" in str(failed)
    assert isinstance(failed, TypeError)
    unnamed = signature.blame((dptrain.ones(1),), {}, RuntimeError("deep"))
    assert str(unnamed) == "f(): deep"
    kept = RuntimeError("f: ours")
    assert signature.blame((dptrain.ones(1),), {}, kept) is kept


def outcomes_twice(call, wrong, taken):
    """Results or errors of calls with the values that are wrong and those that are taken, the same again after both."""

    def outcome(value):
        try:
            return call(value).tolist()
        except (TypeError, RuntimeError) as error:
            return type(error), str(error)

    before = [outcome(value) for value in wrong]
    found = [outcome(value) for value in taken]
    assert [outcome(value) for value in wrong] == before
    assert [outcome(value) for value in taken] == found
    return before, found


@pytest.mark.parametrize(
    "use",
    [
        lambda m, x, v: x.sum(v),
        lambda m, x, v: x.sum(dim=v),
        lambda m, x, v: m.cumsum(x, dim=v),
        lambda m, x, v: x.unsqueeze(v),
        lambda m, x, v: m.softmax(x, dim=v),
        lambda m, x, v: m.full((2,), 1.0, requires_grad=v),
    ],
)
def test_what_was_taken_once_does_not_let_another_kind_through(use):
    x = dptrain.ones(2, 2)
    wrong = ["a", 1.5, [0.5], object()]
    taken = [0, 0, np.int64(1), dptrain.tensor(1)]
    before, _ = outcomes_twice(lambda value: use(dptrain, x, value), wrong, taken)
    assert all(type(b) is tuple for b in before)


@pytest.mark.parametrize(
    ("use", "taken", "wrong"),
    [
        (
            lambda m, v: m.nn.functional.layer_norm(m.ones(2, 2), v),
            [(2,), [2], (2, 2), [np.int64(2)]],
            [(2.0,), ["a"], ("b",), (2, None), "ab"],
        ),
        (
            lambda m, v: m.cat(v, 0),
            [[dptrain.ones(1)], (dptrain.ones(1), dptrain.ones(2)), [dptrain.ones(3)] * 2],
            [[dptrain.ones(1), 2], [1, 2], ["a"], [None], dptrain.ones(1)],
        ),
        (
            lambda m, v: m.nn.functional.conv2d(
                m.ones(1, 1, 4, 4), m.ones(1, 1, 2, 2), None, stride=v
            ),
            [(1, 2), [2, 2], 1],
            [(1.5, 2), ("a", 1), (None, 1), [dptrain.ones(1), "b"]],
        ),
    ],
)
def test_sequences_that_were_taken_once_let_no_others_through(use, taken, wrong):
    before, found = outcomes_twice(lambda value: use(dptrain, value), wrong, taken)
    assert all(type(f) is list for f in found)
    assert sum(type(b) is tuple for b in before) >= len(wrong) - 1
