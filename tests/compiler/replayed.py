"""What the tests of modules that are replayed by themselves share."""

import numpy as np
from training import F, nn, normal

import dptrain

#: Calls ahead of the first replay: some before the module is looked at, one of the kind, two recordings.
AHEAD = 7


class Net(nn.Module):
    """What users write."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.2)
        self.layers = nn.ModuleList([nn.Linear(36, 36) for _ in range(2)])
        self.head = nn.Linear(36, 3)
        self.scale = 0.5

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.norm(self.conv(x))), 2)
        x = dptrain.flatten(x, 1)
        for layer in self.layers:
            x = x + self.scale * dptrain.tanh(layer(self.drop(x)))
        n, width = x.shape
        return self.head(x.view(n, width))


IMAGES = normal(5, 1, 8, 8)


def sequential():
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, 16),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.BatchNorm1d(16),
        nn.Linear(16, 3),
    )


def ready(make=Net, count=AHEAD, shape=(5, 1, 8, 8)):
    """A model whose next call is replayed, and an argument for it."""
    dptrain.manual_seed(0)
    model = make()
    x = dptrain.from_numpy(normal(*shape)(np.random.default_rng(0)))
    for _ in range(count):
        model(x).sum().backward()
    model.zero_grad()
    return model, x
