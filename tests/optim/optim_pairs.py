"""Equal parameters and gradients on both sides, and the comparison of what optimizers made of them."""

import numpy as np
import torch

import dptrain
from dptrain import nn

SHAPES = [(3, 4), (4,), (), (2, 0), (1, 2, 3)]


def values(step, i, shape, dtype=np.float64):
    return np.random.default_rng(100 * step + i).standard_normal(shape).astype(dtype)


def pair(dtype=np.float64, shapes=SHAPES):
    """The same parameters on both sides."""
    start = [values(0, i, s, dtype) for i, s in enumerate(shapes)]
    ours = [nn.Parameter(dptrain.tensor(v)) for v in start]
    theirs = [torch.nn.Parameter(torch.tensor(v)) for v in start]
    return ours, theirs


def give_gradients(step, ours, theirs, dtype=np.float64):
    """The same gradients; some parameters get none in some steps."""
    for i, (p, q) in enumerate(zip(ours, theirs, strict=True)):
        if (step + i) % 4 == 3:
            p.grad = q.grad = None
        else:
            g = values(step + 1, i, tuple(p.shape), dtype)
            p.grad, q.grad = dptrain.tensor(g), torch.tensor(g)


def assert_same(ours, theirs, rtol=1e-10):
    for p, q in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(p.detach().numpy(), q.detach().numpy(), rtol=rtol, atol=rtol)


def assert_same_state(a, b, rtol=1e-10):
    assert a["state"].keys() == b["state"].keys()
    for key in a["state"]:
        assert list(a["state"][key]) == list(b["state"][key])
        for name, held in a["state"][key].items():
            theirs = b["state"][key][name]
            np.testing.assert_allclose(held.numpy(), theirs.numpy(), rtol=rtol, atol=rtol)
            assert str(held.dtype)[8:] == str(theirs.dtype)[6:]
            assert tuple(held.shape) == tuple(theirs.shape)


def ours_of(value, made=None):
    """PyTorch's tensors in an argument as ours; parameters stay leaves, one for one, with their gradients."""
    made = {} if made is None else made
    if isinstance(value, torch.nn.Parameter):
        if id(value) not in made:
            leaf = made[id(value)] = nn.Parameter(dptrain.tensor(value.detach().numpy()))
            leaf.grad = None if value.grad is None else dptrain.tensor(value.grad.numpy())
        return made[id(value)]
    if isinstance(value, torch.Tensor):
        return dptrain.tensor(value.numpy())
    return _mapped(value, lambda v: ours_of(v, made))


def theirs_of(value):
    """The other way round: a state of ours as PyTorch's."""
    if isinstance(value, dptrain.Tensor):
        return torch.tensor(np.array(value.numpy()))
    return _mapped(value, theirs_of)


def _mapped(value, convert):
    if type(value) is dict:
        return {k: convert(v) for k, v in value.items()}
    return type(value)(map(convert, value)) if type(value) in (list, tuple) else value


def assert_same_structure(a, b, tolerance, where="state_dict"):
    """Equal keys in equal order, types, shapes and element types, and close numbers."""
    if where.endswith("['t']"):  # LBFGS's step size: in PyTorch a tensor where the rate is one
        a, b = float(a), float(b)
    if isinstance(b, torch.Tensor):
        assert isinstance(a, dptrain.Tensor), where
        if tolerance < 1e-6 or a.ndim:
            assert str(a.dtype)[8:] == str(b.dtype)[6:], where
        assert tuple(a.shape) == tuple(b.shape), where
        np.testing.assert_allclose(
            a.detach().numpy(),
            b.detach().numpy(),
            rtol=tolerance,
            atol=tolerance,
            err_msg=where,
        )
        return
    assert type(a).__name__ == type(b).__name__, where
    if isinstance(b, dict):
        assert list(a) == list(b), where
        for key in b:
            assert_same_structure(a[key], b[key], tolerance, f"{where}[{key!r}]")
    elif isinstance(b, (list, tuple)):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same_structure(x, y, tolerance, f"{where}[{i}]")
    elif isinstance(b, float):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance, err_msg=where)
    else:
        assert a == b, where
