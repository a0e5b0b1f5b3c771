"""One line of samples per operation of layers: convolutions, pools, padding, rearrangements."""

from sample_args import Call, call, x

_LINE = x(2, 4, 9)
_VOLUME = x(2, 4, 5, 4, 6)

SAMPLES: dict[str, list[Call]] = {
    "adaptive_avg_pool1d": [call(_LINE, 1), call(_LINE, 4), call(x(4, 9), 12)],
    "adaptive_avg_pool2d": [call(x(2, 3, 5, 7), (3, None)), call(x(2, 3, 5, 7), 1)],
    "adaptive_avg_pool3d": [call(_VOLUME, (2, 1, 3)), call(x(4, 5, 4, 6), 2)],
    "avg_pool1d": [call(_LINE, 3), call(_LINE, 3, 2, 1, True, False), call(x(4, 9), 2)],
    "avg_pool3d": [
        call(_VOLUME, 2),
        call(_VOLUME, (3, 2, 3), 2, (1, 0, 1), ceil_mode=True, count_include_pad=False),
        call(x(4, 5, 4, 6), 2, divisor_override=3),
    ],
    "max_pool1d": [call(_LINE, 3), call(_LINE, 3, 2, 1, 1, True), call(x(4, 9), 2, dilation=2)],
    "max_pool3d": [
        call(_VOLUME, 2),
        call(_VOLUME, (3, 2, 3), 2, (1, 0, 1), ceil_mode=True),
        call(x(4, 5, 4, 6), 2, 1, 0, (2, 1, 2)),
    ],
    "conv1d": [
        call(_LINE, x(6, 4, 3), x(6)),
        call(_LINE, x(6, 2, 3), None, stride=2, padding=1, groups=2),
        call(_LINE, x(4, 4, 2), x(4), dilation=3),
        call(_LINE, x(4, 4, 4), None, padding="same"),
        call(x(4, 9), x(3, 4, 2), x(3)),
    ],
    "conv3d": [
        call(_VOLUME, x(3, 4, 2, 3, 2), x(3)),
        call(_VOLUME, x(4, 2, 3, 2, 2), None, stride=(2, 1, 2), padding=(1, 0, 1), groups=2),
        call(x(2, 5, 4, 6), x(3, 2, 2, 2, 2), x(3), dilation=(2, 1, 2)),
        call(x(1, 2, 4, 4, 4), x(2, 2, 2, 3, 2), None, padding="same"),
    ],
    "conv_transpose1d": [
        call(_LINE, x(4, 3, 3), x(3)),
        call(_LINE, x(4, 3, 4), None, stride=3, padding=1, output_padding=2, groups=2),
        call(x(4, 9), x(4, 2, 2), x(2), dilation=2),
    ],
    "conv_transpose2d": [
        call(x(2, 4, 3, 4), x(4, 3, 3, 2), x(3)),
        call(x(2, 4, 3, 4), x(4, 2, 3, 3), x(4), 2, 1, 1, 2),
        call(x(4, 3, 4), x(4, 2, 2, 2), None, stride=(2, 1), dilation=(1, 2)),
        # Output padding beyond the stride: windows that would fit are left out.
        call(x(2, 4, 3, 3), x(4, 2, 2, 3), x(4), (3, 2), (1, 2), (2, 3), 2, (4, 4)),
    ],
    "conv_transpose3d": [
        call(x(1, 2, 3, 2, 3), x(2, 3, 2, 2, 3), x(3)),
        call(x(1, 2, 3, 2, 3), x(2, 1, 2, 3, 2), x(2), 2, (1, 1, 0), 1, 2),
        call(x(1, 2, 2, 2, 3), x(2, 1, 2, 2, 2), None, (1, 2, 1), (1, 0, 1), (1, 2, 2), 2, 3),
    ],
}
