"""One line of samples per operation: reading and writing by index and mask."""

from sample_args import Call, b, c, call, i, pos, x

_ROWS = i(3, high=3)
_REDUCTIONS = [
    call(x(3, 4), 0, i(3, 4, high=3), x(3, 4), "sum"),
    call(pos(3, 4), 0, i(2, 4, high=3), pos(2, 4), "prod"),
    call(x(3, 4), 1, i(3, 2, high=4), x(3, 2), "mean"),
    call(x(3, 4), 0, i(3, 4, high=3), x(3, 4), "amax"),
    call(x(3, 4), -1, i(3, 4, high=3), x(3, 4), "amin"),
    call(x(3, 4), 0, i(3, 4, high=3), x(3, 4), "sum", include_self=False),
    call(pos(3, 4), 0, i(3, 4, high=3), pos(3, 4), "prod", include_self=False),
    call(x(3, 4), 0, i(3, 4, high=3), x(3, 4), "mean", include_self=False),
    call(x(3, 4), 0, i(3, 4, high=3), x(3, 4), "amax", include_self=False),
    *(
        call(pos(), 0, i(high=1), pos(), r, include_self=s)
        for r in ("sum", "mean", "prod", "amax", "amin")
        for s in (True, False)
    ),
]

SAMPLES: dict[str, list[Call]] = {
    "argwhere": [call(i(3, 4, high=2)), call(x(3)), call(i()), call(b(0, 2))],
    "diagonal_scatter": [
        call(x(3, 3), x(3)),
        call(x(3, 4), x(3), 1),
        call(x(2, 3, 4), x(4, 2), 0, 0, 1),
    ],
    "fill": [call(x(3, 4), 2.5), call(x(3), x()), call(i(3), 2)],
    "index_add": [
        call(x(3, 4), 0, i(5, high=3), x(5, 4)),
        call(x(3, 4), -1, i(2, high=4), x(3, 2), alpha=2.5),
        call(x(4), 0, i(2, high=4), x(2)),
    ],
    "index_copy": [
        call(x(6, 4), 0, i(1, high=6), x(1, 4)),
        call(x(3, 4), 1, i(1, high=4), x(3, 1)),
    ],
    "index_fill": [
        call(x(3, 4), 0, _ROWS, 2.0),
        call(x(3, 4), 1, _ROWS, c()),
        call(x(3, 4), -1, _ROWS, x()),
    ],
    "index_put": [
        call(x(3, 4), [i(1, high=3), i(1, high=4)], x(1)),
        call(x(3, 4), [i(5, high=3), i(5, high=4)], x(5), True),
        call(x(3, 4), [i(2, high=3)], x(4), accumulate=True),
    ],
    "index_reduce": [
        call(pos(3, 4), 0, i(5, high=3), pos(5, 4), "prod"),
        call(x(3, 4), 0, i(5, high=3), x(5, 4), "mean"),
        call(x(3, 4), 1, i(5, high=4), x(3, 5), "amax"),
        call(x(3, 4), 0, i(5, high=3), x(5, 4), "amin", include_self=False),
        call(pos(), 0, i(1, high=1), pos(), "amax"),
        call(pos(), 0, i(1, high=1), pos(), "mean"),
    ],
    "index_select": [
        call(x(3, 4), 0, i(5, high=3)),
        call(x(3, 4), -1, i(2, high=4)),
        call(x(4), 0, i(0)),
        call(x(3, 4), 0, i(high=3)),
        call(x(), 0, i(1, high=1)),
    ],
    "masked_fill": [
        call(x(3, 4), b(3, 4), 2.0),
        call(x(3, 4), b(4), x()),
        call(x(4), b(3, 4), -1.0),
        call(i(4), b(4), 7),
    ],
    "masked_scatter": [call(x(3, 4), b(3, 4), x(12)), call(x(4), b(3, 4), x(3, 5))],
    "masked_select": [call(x(3, 4), b(3, 4)), call(x(3, 4), b(4)), call(x(4), b(3, 4))],
    "nonzero": [call(i(3, 4, high=2)), call(i(3, 4, high=2), as_tuple=True), call(x())],
    "put": [call(x(3, 4), i(1, high=12), x(1)), call(x(3, 4), i(5, high=12), x(5), True)],
    "repeat_interleave": [
        call(x(3, 2), 2),
        call(x(3, 2), 2, 1),
        call(x(3, 2), i(3), 0),
        call(i(3)),
        call(x(), 3),
        call(x(3), i(1, low=2, high=3)),
    ],
    "scatter": [
        call(x(3, 4), 0, i(1, 4, high=3), x(1, 4)),
        call(x(3, 4), 0, i(1, 2, high=3), c(3, 4)),
        call(x(3, 4), 1, i(3, 1, high=4), x(3, 1)),
        call(x(3, 4), -1, i(2, 2, high=4), 1.5),
        call(x(3, 4), 0, i(0, 4), x(0, 4)),
        call(x(5), 0, i(2, 0), c(5)),
        call(x(), 0, i(0), c()),
    ],
    "scatter_add": [
        call(x(3, 4), 0, i(5, 4, high=3), x(5, 4)),
        call(x(3, 4), 1, i(2, 6, high=4), x(2, 6)),
        call(x(4), 0, i(6, high=4), x(6)),
        call(x(4), 0, i(3, 0), c(4)),
    ],
    "scatter_reduce": _REDUCTIONS,
    "select_scatter": [call(x(3, 4), x(4), 0, 1), call(x(3, 4), x(3), -1, -2)],
    "slice_scatter": [
        call(x(5, 2), x(2, 2), 0, 1, 3),
        call(x(2, 5), x(2, 3), 1, None, None, 2),
        call(x(4), x(4)),
    ],
    "take": [
        call(x(3, 4), i(2, 3, high=12)),
        call(x(3, 4), i(4, low=-12, high=12)),
        call(x(2), i(0)),
    ],
    "take_along_dim": [
        call(x(3, 4), i(3, 2, high=4), 1),
        call(x(3, 4), i(1, 4, high=3), 0),
        call(x(3, 4), i(5, high=12)),
        call(x(1, 4), i(3, 2, high=4), dim=-1),
    ],
    "unravel_index": [
        call(i(2, 3, high=12), (3, 4)),
        call(i(3, high=4), (4,)),
        call(i(high=8), (2, 2, 2)),
    ],
}
