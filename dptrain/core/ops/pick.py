"""Taking single elements by position: what pools that keep indices, unpooling and embeddings are made of.

Each scatter is the transpose of its gather, so that both differentiate.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dptrain.core.arrays import namespace_of, on_gpu
from dptrain.core.kernels import kernels_for
from dptrain.core.op import Op
from dptrain.core.ops.index import Index
from dptrain.core.ops.shape import Expand


def _flat(index: np.ndarray, size: int) -> np.ndarray:
    """Positions inside each row as positions in all rows: (rows, k) -> (rows * k,)."""
    return (index + namespace_of(index).arange(len(index))[:, None] * size).ravel()


class Pick(Op):
    """out[r, k] = input[r, index[r, k]]."""

    name = "pick"

    def forward(self, input: Any, index: Any) -> Any:
        self.index, self.size = index, input.shape[1]
        return (
            self.xp.ascontiguousarray(input).ravel()[_flat(index, self.size)].reshape(index.shape)
        )

    def backward(self, grad: Any) -> Any:
        return Place.call(grad, self.index, self.size)


class Place(Op):
    """out[r, index[r, k]] += input[r, k], over zeros of `size` columns."""

    name = "place"

    def forward(self, input: Any, index: Any, size: int) -> Any:
        self.index = index
        out = self.xp.zeros(len(index) * size, input.dtype)
        kernels_for(out).add_at(
            out, (_flat(index, size),), self.xp.ascontiguousarray(input).ravel()
        )
        return out.reshape(len(index), size)

    def backward(self, grad: Any) -> Any:
        return Pick.call(grad, self.index)


class Embedding(Op):
    """Rows of a table by index: (num, D) with (...) -> (..., D). `padding_idx` gets no gradient."""

    name = "embedding"
    direct = 0

    def forward(self, weight: Any, indices: Any, padding_idx: int) -> Any:
        self.indices, self.padding_idx, self.num = indices, padding_idx, len(weight)
        return Index.call(weight, (indices,))

    def backward(self, grad: Any) -> Any:
        return EmbeddingDense.call(grad, self.indices, self.padding_idx, self.num, self.target)


class EmbeddingDense(Op):
    """The derivative of Embedding: gradients added up in the rows that they came from."""

    in_float32 = halves_on_gpu = True

    def forward(self, grad: Any, indices: Any, padding_idx: int, num: int, into: Any = None) -> Any:
        self.indices, self.padding_idx = indices, padding_idx
        rows = grad.reshape(indices.size, grad.shape[-1])
        if into is None or on_gpu(rows) or into.dtype != rows.dtype:
            out = kernels_for(rows).add_rows(rows, indices.ravel(), num)
        else:
            out = kernels_for(rows).add_rows(rows, indices.ravel(), num, out=into)
        if padding_idx >= 0:
            out[padding_idx] = 0
        return out

    def backward(self, grad: Any) -> Any:
        rows = Embedding.call(grad, self.indices, -1)
        if self.padding_idx < 0:
            return rows
        return rows * (self.indices != self.padding_idx)[..., None]


class BagSum(Op):
    """Sums of rows of a table: (num, D) with indices (B, L) -> (B, D)."""

    direct = 0

    def forward(self, weight: Any, indices: Any) -> Any:
        self.indices, self.num = indices, len(weight)
        return Index.call(weight, (indices,)).sum(axis=1)

    def backward(self, grad: Any) -> Any:
        shape = (*self.indices.shape, grad.shape[-1])
        wide = Expand.call(grad[:, None], shape)
        return EmbeddingDense.call(wide, self.indices, -1, self.num, self.target)


class SegmentSum(Op):
    """Sums of the rows of each bag: (R, D) with the bag of each row -> (bags, D)."""

    in_float32 = halves_on_gpu = True

    def forward(self, input: Any, bag_of: Any, bags: int) -> Any:
        self.bag_of = bag_of
        return kernels_for(input).add_rows(input, bag_of, bags)

    def backward(self, grad: Any) -> Any:
        return Embedding.call(grad, self.bag_of, -1)
