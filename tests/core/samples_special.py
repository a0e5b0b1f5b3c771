"""One line of samples per operation: `torch.special`."""

from sample_args import Call, c, call, i, pos, x

_UNARY = [call(x(3, 4, low=0.1)), call(x(2, low=-8.0, high=-0.1)), call(x()), call(i(3))]
_WIDE = [*_UNARY, call(x(3, low=31.0, high=60.0)), call(x(0, 2))]
_UNIT = [call(x(3, 4, low=0.01, high=0.99)), call(x(2, low=0.002, high=0.004))]
_INCOMPLETE = [
    call(c(3, 4, low=0.3, high=9.0), x(3, 4, low=0.2, high=15.0)),
    call(c(3, 1, low=40.0, high=60.0), x(4, low=30.0, high=70.0)),
]

SAMPLES: dict[str, list[Call]] = {
    "i0": _WIDE,
    "igamma": _INCOMPLETE,
    "igammac": _INCOMPLETE,
    "mvlgamma": [call(x(3, low=2.0, high=5.0), 3), call(x(2, low=1.0, high=5.0), 1)],
    "special.entr": [call(pos(3, 4)), call(i(3))],
    "special.erfcx": [call(x(3, 4)), call(x(3, low=4.5, high=30.0)), call(i(3))],
    "special.gammainc": _INCOMPLETE[:1],
    "special.gammaincc": _INCOMPLETE[:1],
    "special.i0": _WIDE[:1],
    "special.i0e": _WIDE,
    "special.i1": _WIDE,
    "special.i1e": _WIDE,
    "special.log_ndtr": [call(x(3, 4)), call(x(3, low=-5.0, high=-3.0)), call(i(3))],
    "special.multigammaln": [call(x(3, low=2.0, high=5.0), 2)],
    "special.ndtr": [call(x(3, 4)), call(x(3, low=-7.0, high=-4.0)), call(i(3))],
    "special.ndtri": _UNIT,
    "special.xlog1py": [call(x(3, 4), pos(3, 4)), call(2.0, pos(3)), call(x(3), 0.5)],
    "special.zeta": [
        call(c(3, low=1.5, high=9.0), pos(3)),
        call(c(3, 1, low=1.1, high=4.0), x(2, low=20.0, high=90.0)),
        call(2, pos(3)),
    ],
}
