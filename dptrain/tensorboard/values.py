"""What a caller gives as a value, as a NumPy array.

Owns: the conversion and its errors. Must not know: messages.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dptrain.core.arrays import to_host
from dptrain.core.dtypes import bfloat16
from dptrain.core.tensor import Tensor


def make_np(x: Any) -> np.ndarray[Any, Any]:
    """The values of a tensor (of any device), an array or a number.

    bfloat16 becomes float32, which holds all its values.

    Raises:
        NotImplementedError: something else.
    """
    if isinstance(x, np.ndarray):
        return x
    if isinstance(x, Tensor):
        host = to_host(x.detach()._array)
        return host.astype(np.float32) if x.dtype is bfloat16 else host
    if np.isscalar(x):
        return np.array([x])
    raise NotImplementedError(f"Got {type(x)}, but numpy array or dptrain tensor are expected.")
