"""Every module of PyTorch's own test database, with PyTorch's inputs: results, gradients, text, state, errors."""

import copy
import inspect

import numpy as np
import pytest

import dptrain

pytestmark = pytest.mark.oracle
torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
pytest.importorskip("expecttest", reason="extra `oracle` is not installed")
module_db = pytest.importorskip(
    "torch.testing._internal.common_modules", reason="PyTorch without its test database"
).module_db

#: Modules that are not here; tests/nn/test_signatures.py says why.
ABSENT = {"nn.LinearCrossEntropyLoss"}
INFOS = {
    f"{info.name}": info
    for info in module_db
    if info.name not in ABSENT and info.name.startswith("nn.")
}


def _ours(value):
    """PyTorch's value as ours."""
    if isinstance(value, torch.nn.TransformerEncoderLayer):
        return _ours_layer(value)
    if isinstance(value, torch.Tensor):
        return dptrain.tensor(value.detach().numpy().copy()).requires_grad_(value.requires_grad)
    if isinstance(value, torch.dtype):
        return getattr(dptrain, str(value).removeprefix("torch."))
    if isinstance(value, torch.nn.utils.rnn.PackedSequence):
        return dptrain.nn.utils.rnn.PackedSequence(*map(_ours, value))
    if isinstance(value, (list, tuple)):
        return type(value)(map(_ours, value))
    if isinstance(value, dict):
        return {k: _ours(v) for k, v in value.items()}
    if callable(value) and getattr(value, "__module__", "").startswith("torch"):
        return getattr(dptrain.nn.functional, value.__name__)
    return value


def _ours_layer(layer):
    made = dptrain.nn.TransformerEncoderLayer(
        layer.linear1.in_features,
        layer.self_attn.num_heads,
        layer.linear1.out_features,
        layer.dropout.p,
        _ours(layer.activation),
        layer.norm1.eps,
        layer.self_attn.batch_first,
        layer.norm_first,
        layer.linear1.bias is not None,
    )
    return made.to(_ours(layer.linear1.weight.dtype))


def _fresh(value):
    """Leaves of their own."""
    if isinstance(value, torch.Tensor):
        return value.detach().clone().requires_grad_(value.requires_grad)
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        return type(value)(map(_fresh, value))
    if isinstance(value, dict):
        return {k: _fresh(v) for k, v in value.items()}
    return copy.deepcopy(value)


def _leaves(value):
    if isinstance(value, (torch.Tensor, dptrain.Tensor)):
        return [value]
    parts = value.values() if isinstance(value, dict) else value
    return [t for p in parts for t in _leaves(p)] if isinstance(value, (list, tuple, dict)) else []


def _same(theirs, ours, tolerance):
    for a, b in zip(theirs, ours, strict=True):
        assert (a is None) == (b is None)
        if a is None:
            continue
        assert tuple(a.shape) == tuple(b.shape)
        assert str(a.dtype).removeprefix("torch.") == b.dtype.name
        a, b = a.detach().numpy(), b.detach().numpy()
        np.testing.assert_allclose(b, a, rtol=tolerance, atol=tolerance)


def _is_random(module, training):
    draws = (torch.nn.modules.dropout._DropoutNd, torch.nn.RReLU)
    return training and any(
        isinstance(m, draws) or (isinstance(getattr(m, "dropout", None), float) and m.dropout)
        for m in module.modules()
    )


def _built(info, given, dtype):
    named = inspect.signature(info.module_cls).parameters
    options = dict(given.kwargs)
    if "dtype" in named or issubclass(info.module_cls, torch.nn.RNNBase):
        options["dtype"] = dtype
    theirs = info.module_cls(*given.args, **options)
    ours = getattr(dptrain.nn, info.module_cls.__name__)(*_ours(given.args), **_ours(options))
    return theirs, ours


def _text(module):
    return repr(module).replace("torch.", "dptrain.")


def _compare(info, sample, dtype, training):
    tolerance = 1e-9 if dtype is torch.float64 else 2e-4
    theirs, ours = _built(info, sample.constructor_input, dtype)
    theirs.train(training), ours.train(training)
    assert _text(theirs) == _text(ours)
    assert list(theirs.state_dict()) == list(ours.state_dict())
    args, kwargs = _fresh(sample.forward_input.args), _fresh(sample.forward_input.kwargs)
    mine, named = _ours(args), _ours(kwargs)
    if "Lazy" in info.name:  # the first call gives the shapes, and the text changes
        theirs(*args, **kwargs), ours(*mine, **named)
        assert _text(theirs) == _text(ours)
    ours.load_state_dict({k: v.numpy() for k, v in theirs.state_dict().items()})
    try:
        wanted = theirs(*args, **kwargs)
    except RuntimeError:  # samples of float64 for a layer of float32
        with pytest.raises(RuntimeError):
            ours(*mine, **named)
        return
    found = ours(*mine, **named)
    if _is_random(theirs, training):
        assert [tuple(t.shape) for t in _leaves(wanted)] == [t.shape for t in _leaves(found)]
        return
    _same(_leaves(wanted), _leaves(found), tolerance)
    _same(theirs.state_dict().values(), ours.state_dict().values(), tolerance)
    outs = [[t for t in _leaves(r) if t.requires_grad] for r in (wanted, found)]
    if outs[0]:
        for lib, results in ((torch, outs[0]), (dptrain, outs[1])):
            weights = [np.cos(np.arange(t.numel())).reshape(tuple(t.shape)) for t in results]
            pairs = zip(weights, results, strict=True)
            lib.autograd.backward(results, [lib.tensor(w).to(t.dtype) for w, t in pairs])
        inputs = [
            [t.grad for t in _leaves(values) if t.requires_grad and t.is_leaf]
            for values in ((args, kwargs), (mine, named))
        ]
        grads = [[p.grad for p in m.parameters()] for m in (theirs, ours)]
        _same(inputs[0] + grads[0], inputs[1] + grads[1], 10 * tolerance)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", INFOS)
def test_module_agrees_with_pytorch(name):
    info = INFOS[name]
    torch.manual_seed(0)
    for dtype in (torch.float64, torch.float32):
        for training in (True, False) if info.train_and_eval_differ else (True,):
            options = {"device": "cpu", "requires_grad": True, "training": training}
            samples = info.module_inputs_func(info, dtype=dtype, **options)
            # All of them in float64; the first ones say what there is to say of float32.
            for i, sample in enumerate(samples):
                if sample.forward_input is not None and (i < 4 or dtype is torch.float64):
                    try:
                        _compare(info, sample, dtype, training)
                    except AssertionError as error:
                        case = f"{dtype}, training={training}, sample {i}: {sample.desc}"
                        raise AssertionError(f"{name}, {case}: {error}") from error


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [n for n, i in INFOS.items() if i.module_error_inputs_func])
def test_errors_are_pytorchs(name):
    info = INFOS[name]
    layer = getattr(dptrain.nn, info.module_cls.__name__)
    for training in (True, False):
        options = {"device": "cpu", "requires_grad": False, "training": training}
        for case in info.module_error_inputs_func(info, dtype=torch.float32, **options):
            made, call = (
                case.module_error_input.constructor_input,
                case.module_error_input.forward_input,
            )

            def use(made=made, call=call):
                module = layer(*_ours(made.args), **_ours(made.kwargs))
                if call is not None:
                    module(*_ours(call.args), **_ours(call.kwargs))

            with pytest.raises(case.error_type):
                use()
