"""`out=` of public functions, and the types of operations with several results."""

import pickle

import pytest

import dptrain


def both():
    return dptrain, pytest.importorskip("torch", reason="extra `oracle` is not installed")


OUT = {
    "filled": lambda m, x: m.add(x, x, alpha=2, out=m.empty(3)),
    "wider": lambda m, x: m.sqrt(x * x, out=m.empty(3, dtype=m.float64)),
    "rounded": lambda m, x: m.mul(x, 1.001, out=m.empty(3, dtype=m.float16)),
    "resized from nothing": lambda m, x: m.cat([x, x], out=m.empty(0)),
    "none": lambda m, x: m.sub(x, x, out=None),
    "its own input": lambda m, x: m.mul(x, x, out=x),
    "two": lambda m, x: m.max(x, 0, out=(m.empty(()), m.empty((), dtype=m.int64)))[1],
    "two in a list": lambda m, x: m.sort(x, out=[m.empty(3), m.empty(3, dtype=m.int64)]).values,
    "strided": lambda m, x: m.neg(x, out=m.zeros(3, 2)[:, 0]),
}
REFUSED = {
    "integers": lambda m, x: m.add(x, x, out=m.empty(3, dtype=m.int64)),
    "no tensor": lambda m, x: m.exp(x, out=3),
    "one for two": lambda m, x: m.max(x, 0, out=m.empty(())),
    "types of two": lambda m, x: m.max(x, 0, out=(m.empty(()), m.empty(()))),
    "an input that requires grad": lambda m, x: m.exp(x.requires_grad_(), out=m.empty(3)),
    "an output that requires grad": lambda m, x: m.exp(x, out=m.empty(3, requires_grad=True)),
    "an expanded output": lambda m, x: m.exp(x, out=m.empty(1).expand(3)),
    "an output shifted against the input": lambda m, x: m.exp(x[1:], out=x[:-1]),
    "another type than gather's": lambda m, x: m.gather(
        x, 0, m.tensor([1]), out=m.empty(1, dtype=m.float64)
    ),
    "another type than argmax's": lambda m, x: m.argmax(x, out=m.empty((), dtype=m.int32)),
    "another type than amax's": lambda m, x: m.amax(x, 0, out=m.empty((), dtype=m.float64)),
    "another type than the product's": lambda m, x: m.mm(
        x[None], x[:, None], out=m.empty(1, 1, dtype=m.float64)
    ),
    "numbers for a truth value": lambda m, x: m.any(x, out=m.empty((), dtype=m.int64)),
    "what gather reads": lambda m, x: m.gather(x, 0, m.tensor([2, 1, 0]), out=x),
    "what take reads": lambda m, x: m.take(x, m.tensor([2, 1, 0]), out=x),
    "a view": lambda m, x: m.reshape(x, (3, 1), out=m.empty(3, 1)),
    "a method": lambda m, x: x.add(x, out=m.empty(3)),
}


@pytest.mark.oracle
@pytest.mark.parametrize("case", OUT)
def test_results_are_stored_as_pytorch_does(case):
    found = []
    for m in both():
        result = OUT[case](m, m.tensor([1.5, -2.0, 0.25]))
        found.append((str(result.dtype).split(".")[1], tuple(result.shape), result.tolist()))
    assert found[0] == found[1]


@pytest.mark.oracle
@pytest.mark.parametrize("case", REFUSED)
def test_refused_outputs_raise_pytorchs_kind_of_error(case):
    ours, theirs = both()
    with pytest.raises((RuntimeError, TypeError)) as expected:
        REFUSED[case](theirs, theirs.tensor([1.5, -2.0, 0.25]))
    with pytest.raises(expected.type):
        REFUSED[case](ours, ours.tensor([1.5, -2.0, 0.25]))


def test_out_is_returned_and_its_memory_kept():
    x, out = dptrain.tensor([1.0, 2.0]), dptrain.empty(2)
    memory = out.data_ptr()
    assert dptrain.add(x, 1, out=out) is out
    assert out.data_ptr() == memory
    assert out.tolist() == [2.0, 3.0]


def test_another_shape_is_taken_on_with_a_warning():
    out = dptrain.empty(5)
    with pytest.warns(UserWarning, match="was resized since it had shape"):
        dptrain.exp(dptrain.zeros(2), out=out)
    assert out.tolist() == [1.0, 1.0]


def test_without_gradients_arguments_may_require_them():
    out = dptrain.empty(2)
    with dptrain.no_grad():
        dptrain.exp(dptrain.zeros(2, requires_grad=True), out=out)
    assert not out.requires_grad


@pytest.mark.oracle
def test_several_results_print_and_behave_as_pytorchs():
    texts, kinds = [], []
    for m in both():
        x = m.tensor([[1.0, 3.0], [2.0, 0.0]])
        results = [x.max(0), m.sort(x), m.linalg.qr(m.eye(2)), m.aminmax(x), m.frexp(x), x.mode()]
        texts.append([repr(r).replace("torch.", "dptrain.") for r in results])
        kinds.append([type(r).__name__ for r in results])
        values, indices = results[0]
        assert values is results[0].values
        assert indices is results[0][1]
        assert isinstance(results[0], tuple)
        assert type(pickle.loads(pickle.dumps(results[0]))) is type(results[0])
        assert isinstance(results[0], m.return_types.max)
        assert m.return_types.max([values, indices]).indices is indices
        with pytest.raises(TypeError, match="takes a 2-sequence"):
            m.return_types.max([values])
    assert texts[0] == texts[1]
    assert kinds[0] == kinds[1]
