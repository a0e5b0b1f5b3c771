"""Every operation of the registry, compiled: values and gradients are the bits of the plain call, replayed or not."""

import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

import dptrain

sys.path.insert(0, str(Path(__file__).parents[1] / "core"))
from op_samples import SAMPLES
from test_ops import build, resolve

#: By the letter that names begin with, so that a failure says where to look and tests stay few.
GROUPS = sorted({name.rpartition(".")[2][0] for name in SAMPLES})


def tensors_in(value):
    if isinstance(value, dptrain.Tensor):
        return [value]
    return [t for v in value for t in tensors_in(v)] if isinstance(value, (list, tuple)) else []


def results(function, call, seed):
    """Values and gradients for arguments that differ from seed to seed."""
    stream = np.random.default_rng(seed)

    def make(array, arg):
        array = np.array(array)
        if array.dtype.kind == "f" and not arg.transform:
            array = np.asarray(array * (1 - 0.01 * stream.random(array.shape)), array.dtype)
        tensor = dptrain.from_numpy(array)
        return tensor.requires_grad_() if arg.kind == "x" and array.dtype.kind == "f" else tensor

    dptrain.manual_seed(seed)
    args, kwargs = build(call, np.float32, make)
    made = tensors_in(function(args, kwargs))
    found = [m.detach().numpy().copy() for m in made]
    wanted = [m for m in made if m.requires_grad]
    if wanted:
        sum((m * m).sum() for m in wanted).backward()
    return found + [t.grad.numpy().copy() for t in tensors_in(args) if t.grad is not None]


def same(a, b):
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


@pytest.mark.parametrize("letter", GROUPS)
def test_bits_of_every_operation(letter):
    replays, wrong = 0, []
    for name in [n for n in SAMPLES if n.rpartition(".")[2][0] == letter and SAMPLES[n]]:
        run, call = resolve(name, dptrain, None), SAMPLES[name][0]

        def function(args, kwargs, run=run):
            return run(*args, **kwargs)

        compiled = dptrain.compile(function)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for seed in range(4):
                plain, mine = (results(f, call, seed) for f in (function, compiled))
                if len(plain) != len(mine) or not all(map(same, plain, mine)):
                    wrong.append((name, seed))
        replays += dptrain.compiler.explain(compiled).replays
    assert not wrong
    assert replays
