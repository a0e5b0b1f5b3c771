"""Linear layers of few rows: which of the two factors comes first in a product of BLAS.

Owns: `turns`. Must not know: how products are made.
"""

from __future__ import annotations

import numpy as np

#: Up to this many rows BLAS is faster with the (larger) weight as its first operand; the addition of
#: the bias then writes the result in row-major order. Measured on Zen 4 with OpenBLAS 0.3.
_FEW_ROWS = 128
#: Numbers of a weight that is too small for that: turning the result takes longer than the product.
_SMALL_WEIGHT = 1 << 14


def turns(x: np.ndarray, weight: np.ndarray) -> bool:
    """Whether `linear` multiplies the weight by the rows, and turns the result."""
    return x.ndim == 2 and len(x) <= _FEW_ROWS and weight.size > _SMALL_WEIGHT
