"""Windows of images as columns, and columns added back to images: each the derivative of the other."""

from __future__ import annotations

import math
from typing import Any

from dptrain.core.op import Op
from dptrain.core.ops.windows import Sizes, Window, columns, image_of


class Im2Col(Op):
    """(N, C, H, W) -> (N, C * taps, windows)."""

    name = "unfold"

    def forward(self, input: Any, window: Window) -> Any:
        self.window, self.sizes = window, tuple(input.shape[2:])
        n, c = input.shape[:2]
        outs, taps = window.outputs(self.sizes), math.prod(window.kernel)
        rows = columns(input, outs, window).reshape(n, math.prod(outs), taps, c)
        return self.xp.ascontiguousarray(rows.transpose(0, 3, 2, 1)).reshape(
            n, c * taps, math.prod(outs)
        )

    def backward(self, grad: Any) -> Any:
        return Col2Im.call(grad, self.sizes, self.window)


class Col2Im(Op):
    """(N, C * taps, windows) -> (N, C, H, W), overlapping values added."""

    name = "fold"

    def forward(self, input: Any, sizes: Sizes, window: Window) -> Any:
        self.window = window
        n, depth, count = input.shape
        taps = math.prod(window.kernel)
        c = depth // taps
        rows = input.reshape(n, c, taps, count).transpose(0, 3, 2, 1).reshape(n * count, taps * c)
        return image_of(rows, (n, c, *sizes), window.outputs(sizes), window)

    def backward(self, grad: Any) -> Any:
        return Im2Col.call(grad, self.window)
