"""Names of graph nodes for functions that are one node in PyTorch and several here.

The last node of such a function carries PyTorch's name, so that results print alike. Must not know: any
particular operation beyond its public name. Likewise the names of operations in a profile.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dptrain.core.tensor import Tensor

#: Public name -> name of the last node, without "Backward0".
_COMPOSED = {
    "adaptive_avg_pool3d": "AdaptiveAvgPool3D",
    "aminmax": "Aminmax",
    "as_strided_scatter": "AsStridedScatter",
    "avg_pool2d": "AvgPool2D",
    "avg_pool3d": "AvgPool3D",
    "bmm": "Bmm",
    "cdist": "Cdist",
    "cholesky_solve": "CholeskySolve",
    "cross": "LinalgCross",
    "diagonal_scatter": "DiagonalScatter",
    "dist": "Dist",
    "kthvalue": "Kthvalue",
    "ldexp": "Ldexp",
    "linalg.cross": "LinalgCross",
    "linalg.householder_product": "LinalgHouseholderProduct",
    "linalg.lstsq": "LinalgLstsq",
    "linalg.lu": "LinalgLu",
    "linalg.solve": "LinalgSolveEx",
    "linalg.solve_ex": "LinalgSolveEx",
    "linalg.solve_triangular": "LinalgSolveTriangular",
    "linalg.tensorinv": "ReshapeAlias",
    "linalg.vector_norm": "LinalgVectorNorm",
    "max_pool2d": "MaxPool2DWithIndices",
    "max_pool3d": "MaxPool3DWithIndices",
    "mode": "Mode",
    "mvlgamma": "Mvlgamma",
    "nansum": "Nansum",
    "narrow_copy": "NarrowCopy",
    "nn.functional.pdist": "Pdist",
    "orgqr": "LinalgHouseholderProduct",
    "ormqr": "Ormqr",
    "polygamma": "Polygamma",
    "put": "Put",
    "renorm": "Renorm",
    "repeat": "Repeat",
    "roll": "Roll",
    "rot90": "Rot90",
    "select_scatter": "SelectScatter",
    "sgn": "Sgn",
    "slice_scatter": "SliceScatter",
    "sort": "Sort",
    "special.multigammaln": "Mvlgamma",
    "std": "Std",
    "std_mean": "StdMean",
    "take_along_dim": "Gather",
    "tile": "Repeat",
    "topk": "Topk",
    "trace": "Trace",
    "triangular_solve": "TriangularSolve",
    "unsafe_chunk": "UnsafeSplit",
    "unsafe_split": "UnsafeSplit",
    "unsafe_split_with_sizes": "UnsafeSplitWithSizes",
    "var_mean": "VarMean",
}
#: Functions with a form over all elements and one along a dimension: (its parts) -> name of the node.
_BY_RESULT: dict[str, tuple[str | None, str]] = {
    "avg_pool1d": ("SqueezeBackward1", "SqueezeBackward1"),
    "max": (None, "MaxBackward0"),
    "max_pool1d": ("SqueezeBackward1", "SqueezeBackward1"),
    "min": (None, "MinBackward0"),
    "median": ("MedianBackward0", "MedianBackward1"),
    "nanmedian": ("NanmedianBackward0", "NanmedianBackward1"),
}


#: Operation -> its name in a profile, where that is not the operation's.
_EVENTS = {
    "constantpadnd": "constant_pad_nd",
    "conv1d": "convolution",
    "conv_transpose1d": "convolution",
    "cross_entropy": "cross_entropy_loss",
}


def event_name(name: str) -> str:
    """Under which name an operation shows in a profile: "aten::mul"."""
    last = name.rpartition(".")[2]
    return f"aten::{_EVENTS.get(last, last)}"


def named(name: str, run: Callable[..., Any]) -> Callable[..., Any]:
    """`run` with the last node of its result named as PyTorch's, if the function has such a name."""
    composed = _COMPOSED.get(name)
    if composed is None and name not in _BY_RESULT:
        return run
    whole, parts = _BY_RESULT.get(name, (f"{composed}Backward0", f"{composed}Backward0"))

    def call(*args: Any, **kwargs: Any) -> Any:
        found = run(*args, **kwargs)
        several = isinstance(found, tuple)
        if not several and whole is None:
            return found
        for result in found if several else (found,):
            node = result._node
            if node is None:
                continue
            for a in args:
                if isinstance(a, Tensor) and a._node is node:
                    break  # handed on
            else:
                node.backward_name = parts if several else whole
        return found

    return call
