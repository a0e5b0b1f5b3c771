"""The models of the step benchmark, written once for both libraries: their names are the same."""

from functools import partial

import families
import numpy as np

#: model: (shape of one sample, number of classes)
SAMPLES = {
    "mlp": ((784,), 10),
    "lenet": ((3, 32, 32), 10),
    "conv3": ((3, 32, 32), 10),
    "resnet20": ((3, 32, 32), 10),
    "gpt": ((64,), 256),
    "video": ((3, 8, 32, 32), 10),
    "audio": ((1, 2048), 10),
    "lstm": ((35,), 2000),
    "gru": ((35,), 2000),
    "cells": ((20,), 64),
    # For GPUs.
    "resnet18": ((3, 32, 32), 10),
    "resnet50": ((3, 224, 224), 1000),
    "gpt2": ((1024,), 50257),
    **families.SAMPLES,
}


def build(library, model):
    """The model in `library`, with weights that are equal in every library."""
    net = _MAKERS[model](library)
    stream = np.random.default_rng(0)
    norms = {name for name, module in net.named_modules() if "Norm" in type(module).__name__}
    with library.no_grad():
        for name, p in net.named_parameters():
            if p.ndim > 1:
                bound = 1 / np.sqrt(np.prod(p.shape[1:]))
                values = stream.uniform(-bound, bound, tuple(p.shape))
            else:  # scales of normalisation, and biases
                owner, _, kind = name.rpartition(".")
                values = np.full(tuple(p.shape), float(owner in norms and kind == "weight"))
            p.copy_(library.from_numpy(values.astype(np.float32)))
    return net


def data(library, model, batch):
    """A batch: (samples, classes)."""
    shape, classes = SAMPLES[model]
    stream = np.random.default_rng(1)
    if len(shape) == 1 and model != "mlp":
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


def _basic_block(library):
    """Two 3x3 convolutions beside a shortcut."""
    nn = library.nn

    class Block(nn.Module):
        expansion = 1

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

    return Block


def _bottleneck(library):
    """1x1, 3x3 (with the stride) and 1x1 convolutions beside a shortcut."""
    nn = library.nn

    class Block(nn.Module):
        expansion = 4

        def __init__(self, inputs, width, stride):
            super().__init__()
            outputs = 4 * width
            self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
            self.norm1 = nn.BatchNorm2d(width)
            self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
            self.norm2 = nn.BatchNorm2d(width)
            self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
            self.norm3 = nn.BatchNorm2d(outputs)
            self.relu = nn.ReLU()
            self.conv4 = self.norm4 = nn.Identity()
            if inputs != outputs:
                self.conv4 = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
                self.norm4 = nn.BatchNorm2d(outputs)

        def forward(self, x):
            out = self.relu(self.norm1(self.conv1(x)))
            out = self.relu(self.norm2(self.conv2(out)))
            return self.relu(self.norm3(self.conv3(out)) + self.norm4(self.conv4(x)))

    return Block


def _resnet(library, block, stem, widths, counts, classes):
    """Stages of blocks behind a stem whose result has widths[0] channels."""
    nn = library.nn

    class ResNet(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = stem
            blocks, inputs = [], widths[0]
            for k, (width, count) in enumerate(zip(widths, counts, strict=True)):
                for i in range(count):
                    blocks.append(block(inputs, width, 2 if k and not i else 1))
                    inputs = block.expansion * width
            self.blocks = nn.Sequential(*blocks)
            self.head = nn.Sequential(
                nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes)
            )

        def forward(self, x):
            return self.head(self.blocks(self.stem(x)))

    return ResNet()


def _stem(library, width, kernel, stride):
    nn = library.nn
    parts = {
        "conv": nn.Conv2d(3, width, kernel, stride, kernel // 2, bias=False),
        "norm": nn.BatchNorm2d(width),
        "relu": nn.ReLU(),
    }
    if stride > 1:
        parts["pool"] = nn.MaxPool2d(3, 2, 1)
    stem = nn.Sequential()
    for name, part in parts.items():
        stem.add_module(name, part)
    return stem


def _resnet20(library):
    stem = _stem(library, 16, 3, 1)
    return _resnet(library, _basic_block(library), stem, (16, 32, 64), (3, 3, 3), 10)


def _resnet18(library):
    stem = _stem(library, 64, 3, 1)
    return _resnet(library, _basic_block(library), stem, (64, 128, 256, 512), (2, 2, 2, 2), 10)


def _resnet50(library):
    stem = _stem(library, 64, 7, 2)
    return _resnet(library, _bottleneck(library), stem, (64, 128, 256, 512), (3, 4, 6, 3), 1000)


def _video(library):
    """3x3x3 convolutions with pools of volumes (C3D), then one over planes and one over time (R(2+1)D)."""
    nn = library.nn
    return nn.Sequential(
        nn.Conv3d(3, 32, 3, padding=1), nn.ReLU(), nn.MaxPool3d((1, 2, 2)),
        nn.Conv3d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool3d(2),
        nn.Conv3d(64, 64, (1, 3, 3), padding=(0, 1, 1)), nn.ReLU(),
        nn.Conv3d(64, 64, (3, 1, 1), padding=(1, 0, 0)), nn.ReLU(),
        nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip


def _audio(library, width=32, layers=6):
    """Gated convolutions whose dilation doubles, beside shortcuts (WaveNet), over the mean of all places."""
    nn = library.nn

    class Layer(nn.Module):
        def __init__(self, dilation):
            super().__init__()
            self.gates = nn.Conv1d(width, 2 * width, 2, dilation=dilation)
            self.merge = nn.Conv1d(width, width, 1)

        def forward(self, x):
            value, gate = self.gates(x).chunk(2, 1)
            out = library.tanh(value) * library.sigmoid(gate)
            return self.merge(out) + x[..., -out.shape[-1] :]

    return nn.Sequential(
        nn.Conv1d(1, width, 1), *[Layer(2**k) for k in range(layers)],
        nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(width, 10),
    )  # fmt: skip


def _gpt(library, width=128, heads=4, length=64, vocabulary=256, blocks=2):
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
            self.blocks = nn.Sequential(*[Block() for _ in range(blocks)])
            self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)

        def forward(self, x):
            out = self.tokens(x) + self.places(library.arange(x.shape[1], device=x.device))
            return self.head(self.norm(self.blocks(out))).reshape(-1, vocabulary)

    return Gpt()


def _gpt2(library):
    """GPT-2 small: 124 million parameters, the head's weight is the embedding's."""
    net = _gpt(library, 768, 12, 1024, 50257, 12)
    net.head.weight = net.tokens.weight
    return net


def _recurrent(library, kind, width=200, vocabulary=2000):
    """A language model of two recurrent layers."""
    nn = library.nn

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.tokens = nn.Embedding(vocabulary, width)
            self.layers = getattr(nn, kind)(width, width, 2, batch_first=True)
            self.head = nn.Linear(width, vocabulary)

        def forward(self, x):
            out, _ = self.layers(self.tokens(x))
            return self.head(out).reshape(-1, vocabulary)

    return Model()


def _cells(library, width=64, vocabulary=64):
    """A cell of an LSTM in a loop over characters."""
    nn = library.nn

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.tokens = nn.Embedding(vocabulary, width)
            self.cell = nn.LSTMCell(width, width)
            self.head = nn.Linear(width, vocabulary)

        def forward(self, x):
            values, outs = self.tokens(x), []
            state = (values.new_zeros(len(x), width), values.new_zeros(len(x), width))
            for t in range(x.shape[1]):
                state = self.cell(values[:, t], state)
                outs.append(state[0])
            return self.head(library.stack(outs, 1)).reshape(-1, vocabulary)

    return Model()


_MAKERS = {
    "mlp": _mlp,
    "lenet": _lenet,
    "conv3": _conv3,
    "resnet20": _resnet20,
    "gpt": _gpt,
    "video": _video,
    "audio": _audio,
    "lstm": partial(_recurrent, kind="LSTM"),
    "gru": partial(_recurrent, kind="GRU"),
    "cells": _cells,
    **families.MAKERS,
    "resnet18": _resnet18,
    "resnet50": _resnet50,
    "gpt2": _gpt2,
}
