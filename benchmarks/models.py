"""The models of the step benchmark, written once for both libraries: their names are the same."""

import numpy as np

#: model: (shape of one sample, number of classes)
SAMPLES = {
    "mlp": ((784,), 10),
    "lenet": ((3, 32, 32), 10),
    "conv3": ((3, 32, 32), 10),
    "resnet20": ((3, 32, 32), 10),
    "gpt": ((64,), 256),
}


def build(library, model):
    """The model in `library`, with weights that are equal in every library."""
    net = _MAKERS[model](library)
    stream = np.random.default_rng(0)
    with library.no_grad():
        for name, p in net.named_parameters():
            if p.ndim > 1:
                bound = 1 / np.sqrt(np.prod(p.shape[1:]))
                values = stream.uniform(-bound, bound, tuple(p.shape))
            else:  # scales of normalisation, and biases
                values = np.full(tuple(p.shape), float("norm" in name and "weight" in name))
            p.copy_(library.from_numpy(values.astype(np.float32)))
    return net


def data(library, model, batch):
    """A batch: (samples, classes)."""
    shape, classes = SAMPLES[model]
    stream = np.random.default_rng(1)
    if model == "gpt":
        tokens = stream.integers(0, classes, (batch, shape[0] + 1))
        parts = (tokens[:, :-1], tokens[:, 1:].reshape(-1))
        return tuple(library.from_numpy(np.ascontiguousarray(p)) for p in parts)
    x = stream.standard_normal((batch, *shape)).astype(np.float32)
    return library.from_numpy(x), library.from_numpy(stream.integers(0, classes, batch))


def _mlp(library):
    nn = library.nn
    return nn.Sequential(
        nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)
    )


def _lenet(library):
    nn = library.nn
    return nn.Sequential(
        nn.Conv2d(3, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(800, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10),
    )  # fmt: skip


def _conv3(library):
    nn = library.nn
    stages = [
        layer
        for c, o in ((3, 32), (32, 32), (32, 64))
        for layer in (nn.Conv2d(c, o, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2))
    ]
    return nn.Sequential(*stages, nn.Flatten(), nn.Linear(1024, 64), nn.ReLU(), nn.Linear(64, 10))


def _resnet20(library):
    nn = library.nn

    class Block(nn.Module):
        def __init__(self, inputs, outputs, stride):
            super().__init__()
            self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
            self.norm1 = nn.BatchNorm2d(outputs)
            self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
            self.norm2 = nn.BatchNorm2d(outputs)
            self.relu = nn.ReLU()
            self.conv3 = self.norm3 = nn.Identity()
            if inputs != outputs:
                self.conv3 = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
                self.norm3 = nn.BatchNorm2d(outputs)

        def forward(self, x):
            out = self.norm2(self.conv2(self.relu(self.norm1(self.conv1(x)))))
            return self.relu(out + self.norm3(self.conv3(x)))

    class ResNet(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.norm, self.relu = (
                nn.Conv2d(3, 16, 3, 1, 1, bias=False),
                nn.BatchNorm2d(16),
                nn.ReLU(),
            )
            sizes = [(16, 16, 1)] * 3 + [(16, 32, 2)] + [(32, 32, 1)] * 2
            sizes += [(32, 64, 2)] + [(64, 64, 1)] * 2
            self.blocks = nn.Sequential(*[Block(*size) for size in sizes])
            self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))

        def forward(self, x):
            return self.head(self.blocks(self.relu(self.norm(self.stem(x)))))

    return ResNet()


def _gpt(library, width=128, heads=4, length=64, vocabulary=256):
    nn = library.nn

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
            self.project, self.merge = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
            self.gelu = nn.GELU()

        def forward(self, x):
            n, t, _ = x.shape
            parts = self.project(self.norm1(x)).reshape(n, t, 3, heads, width // heads)
            q, k, v = parts.permute(2, 0, 3, 1, 4).unbind(0)
            seen = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.merge(seen.transpose(1, 2).reshape(n, t, width))
            return x + self.narrow(self.gelu(self.wide(self.norm2(x))))

    class Gpt(nn.Module):
        def __init__(self):
            super().__init__()
            self.tokens, self.places = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
            self.blocks = nn.Sequential(Block(), Block())
            self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)

        def forward(self, x):
            out = self.tokens(x) + self.places(library.arange(x.shape[1]))
            return self.head(self.norm(self.blocks(out))).reshape(-1, vocabulary)

    return Gpt()


_MAKERS = {"mlp": _mlp, "lenet": _lenet, "conv3": _conv3, "resnet20": _resnet20, "gpt": _gpt}
