"""Running one layer in both libraries on the same values: what the comparison tables share."""

import numpy as np
import pytest

import dptrain

torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")


def same_state(ours, theirs):
    """Give PyTorch's layer random values, and ours the same."""
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.uniform_(-1, 1)
    ours.load_state_dict({k: v.numpy() for k, v in theirs.state_dict().items()})


def flatten(result):
    if isinstance(result, (tuple, list)):
        return [leaf for part in result for leaf in flatten(part)]
    return [] if result is None else [result]


def convert(lib, args):
    def one(value):
        if isinstance(value, (tuple, list)) and value and not isinstance(value[0], int):
            return type(value)(one(v) for v in value)
        if not isinstance(value, np.ndarray):
            return value
        made = lib.tensor(value.copy())
        return made.requires_grad_() if value.dtype == np.float64 else made

    return [one(a) for a in args]


def run(lib, layer, args, kwargs, modes=(True, False)):
    """Outputs, gradients and state after a call in each mode."""
    found = []
    for training in modes:
        layer.train(training)
        values = convert(lib, args)
        outs = flatten(layer(*values, **kwargs))
        found += [o.detach().numpy() for o in outs]
        total = sum(
            (o * lib.tensor(np.cos(np.arange(o.numel()).reshape(o.shape)))).sum() for o in outs
        )
        layer.zero_grad()
        if getattr(total, "requires_grad", False):
            total.backward()
        inputs = [v for v in flatten(values) if getattr(v, "requires_grad", False)]
        for leaf in [*inputs, *layer.parameters()]:
            found.append(np.zeros(leaf.shape) if leaf.grad is None else leaf.grad.numpy())
    return found + [v.detach().numpy() for v in layer.state_dict().values()]


def agree(make, args, kwargs=None, modes=(True, False)):
    ours, theirs = make(dptrain.nn).double(), make(torch.nn).double()
    same_state(ours, theirs)
    results = [
        run(lib, layer, args, kwargs or {}, modes)
        for lib, layer in ((dptrain, ours), (torch, theirs))
    ]
    assert len(results[0]) == len(results[1])
    for got, expected in zip(*results, strict=True):
        assert got.shape == expected.shape
        np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-10)


def same_text_and_state(make):
    ours, theirs = make(dptrain.nn), make(torch.nn)
    assert repr(ours) == repr(theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert [n for n, _ in ours.named_parameters()] == [n for n, _ in theirs.named_parameters()]
    for (_, a), (_, b) in zip(ours.state_dict().items(), theirs.state_dict().items(), strict=True):
        assert tuple(a.shape) == tuple(b.shape)
        assert a.dtype.name == str(b.dtype).removeprefix("torch.")


def spread_agrees(make):
    ours, theirs = make(dptrain.nn), make(torch.nn)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        a, b = np.sort(p.detach().numpy().ravel()), np.sort(q.detach().numpy().ravel())
        # Largest distance of the two empirical distributions (Kolmogorov-Smirnov, 1 in 10^5).
        grid = np.concatenate([a, b])
        gap = np.abs(np.searchsorted(a, grid, "right") - np.searchsorted(b, grid, "right")).max()
        assert gap / a.size < 2.47 * np.sqrt(2 / a.size)
