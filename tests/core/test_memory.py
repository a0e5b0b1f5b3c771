"""The graph frees memory as backward goes: the peak of a deep model's step, beside PyTorch's."""

import subprocess
import sys

import pytest

# Peak of resident memory over one step above what was there before it. Each side runs in a process of
# its own, because a process never gives its peak back.
STEP = """
import resource, sys
if sys.argv[1] == "torch":
    import torch as m
    m.set_num_threads(1)
else:
    import dptrain as m
import numpy as np
nn = m.nn

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

def layers():
    net = nn.Sequential(*[k for _ in range(50) for k in (nn.Linear(64, 64), nn.ReLU())])
    return net, (64,), 8192

class Block(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.short = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.short = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x):
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(out + self.short(x))

def residual():  # the stages of a ResNet-18, narrower
    stem = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True)]
    sizes = [(16, 16, 1), (16, 16, 1), (16, 32, 2), (32, 32, 1), (32, 64, 2), (64, 64, 1), (64, 128, 2), (128, 128, 1)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10)]
    return nn.Sequential(*stem, *[Block(*s) for s in sizes], *head), (3, 32, 32), 128

net, shape, batch = {"layers": layers, "residual": residual}[sys.argv[2]]()
optimizer = m.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)

def step(n):
    net(m.from_numpy(np.ones((n, *shape), np.float32))).sum().backward()
    optimizer.step()
    optimizer.zero_grad()

step(2)  # loads what is loaded on first use
before = peak()
step(batch)
print(peak() - before)
"""


def step_peak(library, model):
    done = subprocess.run(
        [sys.executable, "-c", STEP, library, model],
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
    )
    return int(done.stdout)


@pytest.mark.oracle
@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="ru_maxrss counts kB on Linux only"
)
@pytest.mark.parametrize(("model", "most"), [("layers", 1.0), ("residual", 1.0)])
def test_peak_of_a_step_is_near_pytorchs(model, most):
    pytest.importorskip("torch", reason="extra `oracle` is not installed")
    assert step_peak("dptrain", model) <= most * step_peak("torch", model)
