"""One line of samples per activation."""

from sample_args import Call, c, call, pos, x

_BELOW = x(3, low=-3.0, high=-0.6)
_EACH = [call(x(3, 4)), call(x()), call(x(0, 2)), call(x(3, 4, transform="transposed"))]
_WIDE = call(x(4, 5, low=-5.0, high=5.0))

SAMPLES: dict[str, list[Call]] = {
    "celu": [call(x(3, 4), 1.5)],
    "hardshrink": [call(x(3, 4))],
    "prelu": [call(x(2, 3, 4), x(3))],
    "selu": [call(x(3, 4))],
    "threshold": [call(x(3, 4), 0.1, 20.0)],
    "nn.functional.celu": [*_EACH, call(x(3, 4), alpha=0.5)],
    "nn.functional.elu": [*_EACH, call(x(3, 4), alpha=0.7), call(_BELOW, 2.0)],
    "nn.functional.gelu": [*_EACH, call(x(3, 4), approximate="tanh"), _WIDE],
    "nn.functional.glu": [call(x(3, 4)), call(x(4, 3), 0), call(x(2, 6, 3), dim=-2)],
    "nn.functional.hardshrink": [*_EACH, call(x(3, 4), 0.9)],
    # PyTorch's float64 gradient multiplies by 1/6 in float32: see tests/nn for the derivative.
    "nn.functional.hardsigmoid": [call(c(4, 5, low=-5.0, high=5.0)), call(c(0, 2))],
    "nn.functional.hardswish": [*_EACH, _WIDE],
    "nn.functional.hardtanh": [*_EACH, call(x(3, 4), -0.3, 1.2)],
    "nn.functional.leaky_relu": [*_EACH, call(x(3, 4), 0.2), call(x(3), -0.5)],
    "nn.functional.logsigmoid": [*_EACH, call(x(4, low=-50.0, high=50.0))],
    "nn.functional.mish": [*_EACH, _WIDE],
    "nn.functional.prelu": [
        call(x(3, 4), x(4)),
        call(x(3, 4), x(1)),
        call(x(2, 3, 4), x(3)),
        call(x(4), x(1)),
        call(x(), x()),
        call(x(2, 3), c(3)),
    ],
    "nn.functional.relu6": [*_EACH, call(x(9, low=-1.0, high=9.0))],
    "nn.functional.rrelu": [*_EACH, call(x(3, 4), 0.2, 0.6), call(pos(3, 4), training=True)],
    "nn.functional.selu": _EACH,
    "nn.functional.silu": [*_EACH, _WIDE],
    "nn.functional.softmin": [call(x(3, 4), 1), call(x(2, 3, 4), dim=-2)],
    "nn.functional.softplus": [*_EACH, call(x(3, 4), 2.0, 1.0), call(x(3, 4), beta=0.5)],
    "nn.functional.softshrink": [*_EACH, call(x(3, 4), 0.9)],
    "nn.functional.softsign": _EACH,
    "nn.functional.tanhshrink": _EACH,
    "nn.functional.threshold": [call(x(3, 4), 0.3, -2.0), call(x(5), 0.0, 0.0)],
}
