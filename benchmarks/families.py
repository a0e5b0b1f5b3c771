"""Models of many families for the step benchmark (`--more`), written once for both libraries.

Smaller than those that carry the names, of the same layers: what a step spends its time on is alike.
"""

#: model: (shape of one sample, number of classes)
SAMPLES = {
    "vgg": ((3, 32, 32), 10),
    "resnet-wide": ((3, 64, 64), 10),
    "resnext": ((3, 32, 32), 10),
    "densenet": ((3, 32, 32), 10),
    "mobilenet": ((3, 32, 32), 10),
    "efficientnet": ((3, 64, 64), 10),
    "convnext": ((3, 64, 64), 10),
    "vit": ((3, 64, 64), 10),
    "speech": ((1, 8000), 35),
    "llama": ((64,), 500),
}

#: (model, batch, optimizer)
CASES = [
    ("vgg", 32, "sgd"),
    ("resnet-wide", 8, "sgd"),
    ("resnext", 16, "sgd"),
    ("densenet", 16, "sgd"),
    ("mobilenet", 16, "sgd"),
    ("efficientnet", 16, "adam"),
    ("convnext", 8, "adamw"),
    ("vit", 8, "adamw"),
    ("speech", 32, "adam"),
    ("llama", 8, "adamw"),
]


def _conv(nn, inputs, outputs, kernel=3, stride=1, groups=1, act=None):
    """A convolution without bias, batch normalisation and an activation."""
    layers = [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    return nn.Sequential(*layers, *([] if act is None else [act()]))


def _head(nn, width, classes=10):
    return nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes)


def _residual(library):
    """A body beside its input, or beside what `shortcut` makes of it."""
    nn = library.nn

    class Residual(nn.Module):
        def __init__(self, body, shortcut=None, after=None):
            super().__init__()
            self.body = body
            self.shortcut = shortcut or nn.Identity()
            self.after = after or nn.Identity()

        def forward(self, x):
            return self.after(self.shortcut(x) + self.body(x))

    return Residual


def vgg(library):
    nn = library.nn
    layers, inputs = [], 3
    for width in (32, "pool", 64, "pool", 128, 128, "pool", 128, 128, "pool"):
        if width == "pool":
            layers.append(nn.MaxPool2d(2))
        else:
            layers.append(_conv(nn, inputs, width, act=nn.ReLU))
            inputs = width
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, 10))


def resnet_wide(library):
    nn, residual = library.nn, _residual(library)
    stages, inputs = [], 64
    for width, stride in ((64, 1), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1)):  # fmt: skip
        body = nn.Sequential(
            _conv(nn, inputs, width, 3, stride, act=nn.ReLU), _conv(nn, width, width)
        )
        shortcut = _conv(nn, inputs, width, 1, stride) if inputs != width else None
        stages.append(residual(body, shortcut, nn.ReLU()))
        inputs = width
    stem = (_conv(nn, 3, 64, 7, 2, act=nn.ReLU), nn.MaxPool2d(3, 2, 1))
    return nn.Sequential(*stem, *stages, *_head(nn, 512))


def resnext(library):
    nn, residual = library.nn, _residual(library)
    stages = [_conv(nn, 3, 32, act=nn.ReLU)]
    for inputs, width, stride in ((32, 32, 1), (64, 64, 2), (128, 128, 2)):
        body = nn.Sequential(
            _conv(nn, inputs, width, 1, act=nn.ReLU),
            _conv(nn, width, width, 3, stride, groups=8, act=nn.ReLU),
            _conv(nn, width, 2 * width, 1),
        )
        stages.append(residual(body, _conv(nn, inputs, 2 * width, 1, stride), nn.ReLU()))
    return nn.Sequential(*stages, *_head(nn, 256))


def densenet(library):
    nn = library.nn

    class Dense(nn.Module):
        def __init__(self, inputs, growth):
            super().__init__()
            self.layers = nn.Sequential(
                nn.BatchNorm2d(inputs),
                nn.ReLU(),
                nn.Conv2d(inputs, growth, 3, padding=1, bias=False),
            )

        def forward(self, x):
            return library.cat([x, self.layers(x)], 1)

    layers, width = [nn.Conv2d(3, 24, 3, padding=1)], 24
    for block in range(3):
        for _ in range(6):
            layers.append(Dense(width, 12))
            width += 12
        if block < 2:
            layers += [_conv(nn, width, width // 2, 1, act=nn.ReLU), nn.AvgPool2d(2)]
            width //= 2
    return nn.Sequential(*layers, nn.BatchNorm2d(width), nn.ReLU(), *_head(nn, width))


def mobilenet(library):
    nn, residual = library.nn, _residual(library)
    stages = [_conv(nn, 3, 16, act=nn.ReLU6)]
    for inputs, width, stride in ((16, 24, 2), (24, 24, 1), (24, 32, 2), (32, 32, 1), (32, 64, 2)):
        wide = 6 * inputs
        body = nn.Sequential(
            _conv(nn, inputs, wide, 1, act=nn.ReLU6),
            _conv(nn, wide, wide, 3, stride, groups=wide, act=nn.ReLU6),
            _conv(nn, wide, width, 1),
        )
        stages.append(residual(body) if inputs == width else body)
    return nn.Sequential(*stages, *_head(nn, 64))


def efficientnet(library):
    nn = library.nn

    class Squeeze(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.gate = nn.Sequential(
                nn.AdaptiveAvgPool2d(1),
                nn.Conv2d(width, width // 4, 1),
                nn.SiLU(),
                nn.Conv2d(width // 4, width, 1),
                nn.Sigmoid(),
            )

        def forward(self, x):
            return x * self.gate(x)

    stages = [_conv(nn, 3, 16, 3, 2, act=nn.SiLU)]
    for inputs, width, kernel in ((16, 24, 3), (24, 40, 5), (40, 80, 3)):
        wide = 4 * inputs
        stages += [
            _conv(nn, inputs, wide, 1, act=nn.SiLU),
            _conv(nn, wide, wide, kernel, 2, groups=wide, act=nn.SiLU),
            Squeeze(wide),
            _conv(nn, wide, width, 1),
        ]
    return nn.Sequential(*stages, *_head(nn, 80))


def convnext(library):
    nn, residual = library.nn, _residual(library)

    class Body(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.spatial = nn.Conv2d(width, width, 7, padding=3, groups=width)
            self.norm = nn.LayerNorm(width)
            self.channels = nn.Sequential(
                nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
            )

        def forward(self, x):
            x = self.spatial(x).permute(0, 2, 3, 1)
            return self.channels(self.norm(x)).permute(0, 3, 1, 2)

    blocks = {width: [residual(Body(width)) for _ in range(2)] for width in (48, 96)}
    return nn.Sequential(
        nn.Conv2d(3, 48, 4, 4), *blocks[48], nn.Conv2d(48, 96, 2, 2), *blocks[96], *_head(nn, 96)
    )


def vit(library):
    nn = library.nn

    class ViT(nn.Module):
        def __init__(self, width=128):
            super().__init__()
            self.patches = nn.Conv2d(3, width, 8, 8)
            self.token = nn.Parameter(library.zeros(1, 1, width))
            self.place = nn.Parameter(library.zeros(1, 65, width))
            layer = nn.TransformerEncoderLayer(
                width, 4, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True
            )
            self.layers = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
            self.head = nn.Linear(width, 10)

        def forward(self, x):
            x = self.patches(x).flatten(2).transpose(1, 2)
            x = library.cat([self.token.expand(len(x), -1, -1), x], 1) + self.place
            return self.head(self.layers(x)[:, 0])

    return ViT()


def speech(library):
    nn = library.nn
    layers = []
    for inputs, width, kernel, stride in ((1, 32, 80, 16), (32, 32, 3, 1), (32, 64, 3, 1)):
        layers += [
            nn.Conv1d(inputs, width, kernel, stride),
            nn.BatchNorm1d(width),
            nn.ReLU(),
            nn.MaxPool1d(4),
        ]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(64, 35))


def llama(library):
    nn, functional = library.nn, library.nn.functional

    class Block(nn.Module):
        def __init__(self, width, heads):
            super().__init__()
            self.heads = heads
            self.norms = nn.ModuleList([nn.RMSNorm(width) for _ in range(2)])
            self.qkv = nn.ModuleList([nn.Linear(width, width, bias=False) for _ in range(3)])
            self.out = nn.Linear(width, width, bias=False)
            self.gate = nn.Linear(width, 3 * width, bias=False)
            self.up = nn.Linear(width, 3 * width, bias=False)
            self.down = nn.Linear(3 * width, width, bias=False)

        def forward(self, x, cos, sin):
            n, length, width = x.shape
            y = self.norms[0](x)
            q, k, v = (
                layer(y).view(n, length, self.heads, -1).transpose(1, 2) for layer in self.qkv
            )
            q, k = self.turned(q, cos, sin), self.turned(k, cos, sin)
            y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.out(y.transpose(1, 2).reshape(n, length, width))
            y = self.norms[1](x)
            return x + self.down(functional.silu(self.gate(y)) * self.up(y))

        def turned(self, x, cos, sin):
            a, b = x.chunk(2, -1)
            return library.cat([a * cos - b * sin, a * sin + b * cos], -1)

    class Llama(nn.Module):
        def __init__(self, width=128, heads=4, length=64):
            super().__init__()
            self.embedding = nn.Embedding(500, width)
            self.blocks = nn.ModuleList([Block(width, heads) for _ in range(2)])
            self.norm = nn.RMSNorm(width)
            self.head = nn.Linear(width, 500, bias=False)
            half = width // heads // 2
            rates = 1e4 ** (-library.arange(0, half).float() / half)
            angles = library.outer(library.arange(length).float(), rates)
            self.register_buffer("cos", angles.cos())
            self.register_buffer("sin", angles.sin())

        def forward(self, tokens):
            x = self.embedding(tokens)
            for block in self.blocks:
                x = block(x, self.cos, self.sin)
            return self.head(self.norm(x)).flatten(0, 1)

    return Llama()


MAKERS = {
    "vgg": vgg,
    "resnet-wide": resnet_wide,
    "resnext": resnext,
    "densenet": densenet,
    "mobilenet": mobilenet,
    "efficientnet": efficientnet,
    "convnext": convnext,
    "vit": vit,
    "speech": speech,
    "llama": llama,
}
