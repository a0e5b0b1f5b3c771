"""Element types that a public function refuses although its arithmetic would go through.

Owns: the table and its check. Must not know: any particular operation beyond its public name.

What an operation cannot compute it refuses itself. Here stands what it could: PyTorch has no kernel for
booleans there, or reads them as a mistake; integers would be cut; two tensors must agree. As there, it is
an error rather than a number that was not asked for.
"""

from __future__ import annotations

from typing import Any

from dptrain.core.tensor import Tensor

_POOLS = " ".join(
    f"nn.functional.{kind}_pool{rank}d{end}"
    for kind in ("adaptive_max", "fractional_max")
    for rank in (1, 2, 3)
    for end in ("", "_with_indices")
)
_UNPOOLS = " ".join(f"nn.functional.max_unpool{rank}d" for rank in (1, 2, 3))
_WINDOWS = " ".join(
    f"{place}max_pool{rank}d{end}"
    for rank in (1, 2, 3)
    for place, end in (("", ""), ("nn.functional.", ""), ("nn.functional.", "_with_indices"))
)
#: (kind of exception, refused kinds of NumPy's, functions; `:i` for another argument than the first).
_REFUSED: list[tuple[type[Exception], str, str]] = [
    (
        RuntimeError,
        "b",
        "argmax argmin corrcoef cov isin isin:1 mvlgamma special.multigammaln topk relu nn.functional.relu trapezoid "
        "trapezoid:1 trapz trapz:1 cumulative_trapezoid cumulative_trapezoid:1 linalg.vander gradient",
    ),
    (
        NotImplementedError,
        "b",
        f"cross linalg.cross nanmedian median trace nn.functional.threshold threshold {_WINDOWS}",
    ),
    (
        NotImplementedError,
        "biu",
        "nn.functional.binary_cross_entropy_with_logits nn.functional.multi_margin_loss "
        f"nn.functional.multilabel_margin_loss {_POOLS} {_UNPOOLS}",
    ),
    (NotImplementedError, "iu", "nn.functional.unfold nn.functional.fold"),
    (
        RuntimeError,
        "biu",
        "nn.functional.binary_cross_entropy_with_logits:1 nn.functional.gaussian_nll_loss:2 nn.functional.huber_loss "
        "nn.functional.soft_margin_loss nn.functional.hinge_embedding_loss nn.functional.gumbel_softmax "
        "nn.functional.kl_div nn.functional.kl_div:1 nn.functional.batch_norm:1 "
        "nn.functional.batch_norm:2 nn.functional.instance_norm:1 nn.functional.instance_norm:2 linalg.vecdot",
    ),
    (ValueError, "biu", "nn.functional.affine_grid"),
]
#: Functions of which so many leading arguments must have one type.
_ALIKE = {
    "cross": 2,
    "linalg.cross": 2,
    "linalg.vecdot": 2,
    "linalg.householder_product": 2,
    "orgqr": 2,
    "ormqr": 3,
    "addmm": 3,
    "addmv": 3,
    "addbmm": 3,
    "baddbmm": 3,
    "cdist": 2,
    "nn.functional.bilinear": 3,
    "nn.functional.binary_cross_entropy": 2,
}


class Rules:
    """What one function refuses: (argument, kinds of NumPy's, exception) each, and how many are alike."""

    def __init__(self, name: str) -> None:
        self.name = name
        # A method that stores its result in the tensor refuses what the function refuses.
        function_of = name if name.endswith("__") else name.removesuffix("_")
        self.refused: list[tuple[int, str, type[Exception]]] = []
        for error, kinds, functions in _REFUSED:
            for function in functions.split():
                plain, _, position = function.partition(":")
                if plain == function_of:
                    self.refused.append((int(position or 0), kinds, error))
        self.alike = _ALIKE.get(function_of, 0)

    def __bool__(self) -> bool:
        return bool(self.refused or self.alike)

    def check(self, names: tuple[str, ...], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Refuse arguments by their element types.

        Raises:
            RuntimeError, NotImplementedError, ValueError: as the table says, naming the argument.
        """
        for position, kinds, error in self.refused:
            value = (
                args[position] if position < len(args) else _given(position, names, args, kwargs)
            )
            if isinstance(value, Tensor) and value.dtype.numpy.kind in kinds:
                raise error(
                    f"{self.name}: not implemented for {names[position]!r} of type {value.dtype}"
                )
        if not self.alike:
            return
        found = [_given(position, names, args, kwargs) for position in range(self.alike)]
        types = [v.dtype for v in found if isinstance(v, Tensor)]
        if len(set(types)) > 1:
            raise RuntimeError(
                f"{self.name}: expected tensors of the same dtype, but got {', '.join(map(str, types))}"
            )


def _given(
    position: int, names: tuple[str, ...], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """The argument of that position, wherever it stands; None if there is none."""
    if position < len(args):
        return args[position]
    return kwargs.get(names[position]) if position < len(names) else None
