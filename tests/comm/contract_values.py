"""What ranks contribute in the contract's tests, and what has to come out of it."""

from __future__ import annotations

import ml_dtypes
import numpy as np

from dptrain.comm import Communicator

DTYPES = [
    np.dtype(name)
    for name in ("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64")
] + [np.dtype(kind) for kind in (np.float16, np.float32, np.float64, ml_dtypes.bfloat16)]
FLOATS = [dtype for dtype in DTYPES if dtype.name.endswith(("float16", "float32", "float64"))]
INTS = [dtype for dtype in DTYPES if dtype not in FLOATS]
BINARY = {
    "product": np.multiply,
    "band": np.bitwise_and,
    "bor": np.bitwise_or,
    "bxor": np.bitwise_xor,
}
# Around the borders of the small path, of a staging piece and of a reduction block.
SIZES = [0, 1, 7, 1000, 16 * 1024, 16 * 1024 + 1, 131_072 + 3, 300_001]

# Where large sums are grouped by host, small whole numbers make every order give the same bits.
exact = False
NOT_EXACT = 1  # The salt of values that are no whole numbers even then.


def values(rank: int, shape: tuple[int, ...], dtype: np.dtype, salt: int = 0) -> np.ndarray:
    """What rank `rank` contributes; every rank can work out what the others have."""
    random = np.random.default_rng([rank, salt, len(shape), *shape])
    if dtype.name == "bool":
        return random.integers(0, 2, shape).astype(bool)
    if dtype.kind in "iu":
        return random.integers(0, 7, shape).astype(dtype)
    if exact and salt != NOT_EXACT:
        return random.integers(-3, 4, shape).astype(dtype)
    return random.standard_normal(shape).astype(dtype)


def all_values(comm: Communicator, shape, dtype, salt: int = 0) -> list[np.ndarray]:
    return [values(rank, shape, dtype, salt) for rank in range(comm.world_size)]


def reduced(arrays: list[np.ndarray], op: str) -> np.ndarray:
    """The reference: a plain loop over the ranks, in order; 16-bit floats in float32."""
    dtype = arrays[0].dtype
    wide = np.float32 if dtype.itemsize == 2 and dtype.kind not in "iu" else dtype
    total = arrays[0].astype(wide)
    for array in arrays[1:]:
        operand = array.astype(wide)
        if op in ("sum", "avg"):
            total = total + operand
        elif op in BINARY:
            total = BINARY[op](total, operand)
        else:
            total = np.maximum(total, operand) if op == "max" else np.minimum(total, operand)
    if op == "avg":
        total = total / total.dtype.type(len(arrays))
    return total.astype(dtype)


def same_on_all_ranks(comm: Communicator, array: np.ndarray) -> bool:
    return len({bytes(data) for data in comm.all_gather_object(array.tobytes())}) == 1


def bits(array: np.ndarray) -> bytes:
    return np.ascontiguousarray(array).tobytes()
