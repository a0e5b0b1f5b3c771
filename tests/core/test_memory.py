"""The graph frees memory as backward goes: the peak of a deep model's step, beside PyTorch's."""

import subprocess
import sys

import pytest

# Peak of resident memory over one step of 50 layers, above what was there before it. Each side runs in
# a process of its own, because a process never gives its peak back.
STEP = """
import resource, sys
if sys.argv[1] == "torch":
    import torch as m
    m.set_num_threads(1)
else:
    import dptrain as m
import numpy as np

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

net = m.nn.Sequential(*[k for _ in range(50) for k in (m.nn.Linear(64, 64), m.nn.ReLU())])
net(m.ones(2, 64)).sum().backward()  # loads what is loaded on first use
x = m.from_numpy(np.ones((8192, 64), np.float32))
before = peak()
net(x).sum().backward()
print(peak() - before)
"""


def step_peak(library):
    done = subprocess.run(
        [sys.executable, "-c", STEP, library],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return int(done.stdout)


@pytest.mark.oracle
@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="ru_maxrss counts kB on Linux only"
)
def test_peak_of_fifty_layers_is_within_ten_percent_of_pytorchs():
    pytest.importorskip("torch", reason="extra `oracle` is not installed")
    assert step_peak("dptrain") <= 1.1 * step_peak("torch")
