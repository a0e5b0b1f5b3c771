"""One line of samples per operation: statistics, order, counts."""

from sample_args import Call, b, c, call, i, x

_ORDER = [call(x(3, 4)), call(x(3, 4), 0), call(x(2, 3, 4), 1), call(x()), call(x(0, 3), 0)]
_MIDDLE = [
    call(x(3, 5)),
    call(x(3, 4), 1),
    call(x(3, 4), 0, True),
    call(x(), 0),
    call(x(4)),
    call(i(5)),
    call(x()),
]
_QUANTILES = [
    call(x(3, 4), 0.3),
    call(x(3, 4), 0.75, 1),
    call(x(3, 4), 0.5, 0, True),
    call(x(3, 4), 0.2, keepdim=True),
    call(x(5), 0.3, interpolation="lower"),
    call(x(5), 0.3, interpolation="higher"),
    call(x(5), 0.3, interpolation="nearest"),
    call(x(5), 0.3, interpolation="midpoint"),
    call(x(3, 4), c(3, low=0.0, high=1.0), 1),
    call(x(), 0.5),
]
_MOMENTS = [
    call(x(3, 4)),
    call(x(3, 4), 1),
    call(x(3, 4), 0, False),
    call(x(2, 3, 4), (0, 2), correction=0, keepdim=True),
]

#: Distributions with one outcome only.
_CERTAIN = c(3, 2, low=1.0, high=1.0)
_NEVER = c(3, 2, low=0.0, high=0.0)

SAMPLES: dict[str, list[Call]] = {
    "gradient": [
        call(x(5)),
        call(x(4, 5)),
        call(x(4, 5), dim=1, spacing=0.5, edge_order=2),
        call(x(3, 4), spacing=[2.0, 0.25]),
        call(i(4)),
    ],
    "histogram": [call(c(20), 5), call(c(4, 5), 4, range=(-1.0, 1.0), density=True)],
    "aminmax": [call(x(3, 4)), call(x(3, 4), dim=1), call(x(3, 4), dim=0, keepdim=True), call(x())],
    "argsort": [call(x(3, 4)), call(x(3, 4), 0, True), call(i(9), stable=True), call(x())],
    "bernoulli": [call(_CERTAIN), call(_NEVER), call(c(3), 1.0), call(c(3), p=0.0)],
    "bincount": [call(i(8)), call(i(8), c(8)), call(i(3), minlength=9), call(i(0))],
    "bucketize": [
        call(c(3, 4), i(1)),
        call(i(6), i(1, low=2, high=3), right=True),
        call(i(2), i(0), out_int32=True),
    ],
    "corrcoef": [call(x(3, 6)), call(x(5))],
    "count_nonzero": [
        call(i(3, 4, high=2)),
        call(i(3, 4, high=2), 0),
        call(x(2, 3), (0, 1)),
        call(b(3)),
    ],
    "cov": [
        call(x(3, 6)),
        call(x(5)),
        call(x(2, 5), correction=0),
        call(i(2, 5)),
    ],
    "cross": [call(x(4, 3), x(4, 3), 1), call(x(3, 2), x(3, 1), 0)],
    "histc": [call(c(9)), call(c(20), 4, -1.0, 1.0), call(c(5), bins=3, min=9.0, max=10.0)],
    "kthvalue": [call(x(3, 4), 2), call(x(3, 4), 1, 0, True), call(x(), 1)],
    "logsumexp": [
        call(x(3, 4), 1),
        call(x(3, 4), (0, 1)),
        call(x(3, 4), 0, True),
        call(x(), 0),
        call(x(3, low=-900.0, high=900.0), 0),
        call(i(3), 0),
        call(c(0, 2), 0),
    ],
    "median": _MIDDLE,
    "mode": [call(i(3, 9)), call(i(9, 3), 0, True), call(x(4)), call(x())],
    "msort": [call(x(3, 4)), call(i(5))],
    "multinomial": [call(c(1, low=0.5, high=0.6), 1), call(c(3, 1, low=0.5, high=0.6), 2, True)],
    "nanmean": [call(x(3, 4)), call(x(3, 4), 1), call(x(3, 4), (0, 1), True)],
    "nanmedian": _MIDDLE,
    "nanquantile": _QUANTILES,
    "nansum": [call(x(3, 4)), call(x(3, 4), 1), call(i(3)), call(x(3, 4), (0, 1), True)],
    "normal": [call(c(3), 0.0), call(2.0, _NEVER), call(c(3, 1), _NEVER), call(1.5, 0.0, (2, 3))],
    "poisson": [call(_NEVER)],
    "prod": [
        call(x(3, 4)),
        call(x(3, 4), 1),
        call(x(3, 4), -2, True),
        call(x()),
        call(i(3, 4)),
        call(b(3), 0),
        call(x(0, 2), 0),
        call(x(1, 3), 0),
    ],
    "quantile": _QUANTILES,
    "renorm": [call(x(3, 4), 2, 0, 1.0), call(x(3, 4), 1, -1, 0.5), call(x(2, 3), 2.0, 0, 90.0)],
    "searchsorted": [
        call(i(1), c(3, 4)),
        call(i(1), i(5), right=True),
        call(i(2, 1), i(2, 4), side="right"),
        call(i(1), 3),
    ],
    "sort": [*_ORDER, call(x(3, 4), 1, True), call(i(9)), call(i(9), descending=True, stable=True)],
    "std_mean": _MOMENTS,
    "topk": [
        call(x(3, 4), 2),
        call(x(3, 4), 1, 0),
        call(x(3, 4), 3, largest=False),
        call(x(5), 0),
        call(x(), 1),
    ],
    "unique": [
        call(i(9)),
        call(i(3, 4), return_inverse=True, return_counts=True),
        call(i(6, 1, high=3), dim=0),
        call(i(5), True, True),
    ],
    "unique_consecutive": [
        call(i(9, high=2)),
        call(i(3, 4, high=2), True, True),
        call(i(6, 1, high=2), return_counts=True, dim=0),
        call(i(0)),
    ],
    "var_mean": _MOMENTS,
}
