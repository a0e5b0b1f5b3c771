"""Runs the same on two virtual devices: the bits have to be equal, and to lie where they were asked for."""

import numpy as np

import dptrain
from dptrain.core.host_array import HostArray
from dptrain.nn.utils import rnn

#: Where it runs, what an array of the second place is, and how equal the results have to be.
PLACES = ("cpu:0", "cpu:2")
ARRAY = HostArray
compare = np.testing.assert_array_equal


def leaves(value):
    if isinstance(value, dptrain.Tensor):
        return [value]
    if isinstance(value, rnn.PackedSequence):
        return [value.data]  # its batch sizes are always the host's
    parts = value.values() if isinstance(value, dict) else value
    return [t for p in parts for t in leaves(p)] if isinstance(value, (list, tuple, dict)) else []


def moved(value, place):
    """Arguments on a device; floating point tensors become leaves that want gradients."""
    if isinstance(value, np.ndarray):
        made = dptrain.tensor(value, device=place)
        return made.requires_grad_() if made.is_floating_point() else made
    if isinstance(value, (list, tuple)) and not all(isinstance(v, int) for v in value):
        return type(value)(moved(v, place) for v in value)
    return value


def weighted(outs):
    """One number of all outputs, with different gradients for each element."""
    total = 0
    for out in outs:
        if out.requires_grad:
            numbers = dptrain.arange(out.numel(), device=out.device).reshape(out.shape)
            total = total + (out * dptrain.cos(numbers.to(out.dtype))).sum()
    return total


def same_everywhere(run):
    """`run(place)` gives tensors of that device, and of the same bits on all."""
    results = []
    for place in PLACES:
        dptrain.manual_seed(3)
        results.append(leaves(run(place)))
    assert len(results[0]) == len(results[1]) > 0
    for first, other in zip(*results, strict=True):
        assert (str(first.device), str(other.device)) == PLACES
        assert type(other._array) is ARRAY
        assert first.dtype is other.dtype
        compare(first.numpy(force=True), other.numpy(force=True))
