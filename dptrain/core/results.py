"""What operations with several results return: tuples with named places, printed as PyTorch's.

Owns: `results`, the table behind `dptrain.return_types`. Must not know: any particular operation.
"""

from __future__ import annotations

from operator import itemgetter
from typing import Any, ClassVar

#: Name -> type; `dptrain.return_types` lifts these.
RESULTS: dict[str, type[Results]] = {}


class Results(tuple[Any, ...]):
    """A tuple of a fixed length; made from one sequence, as PyTorch's `torch.return_types`."""

    __slots__ = ()
    n_fields: ClassVar[int] = 0
    _names: ClassVar[tuple[str, ...]] = ()

    def __new__(cls, values: Any) -> Results:
        made = super().__new__(cls, values)
        if len(made) != cls.n_fields:
            raise TypeError(
                f"dptrain.return_types.{cls.__name__}() takes a {cls.n_fields}-sequence "
                f"({len(made)}-sequence given)"
            )
        return made

    def __repr__(self) -> str:
        lines = ",\n".join(f"{n}={v!r}" for n, v in zip(self._names, self, strict=True))
        return f"dptrain.return_types.{type(self).__name__}(\n{lines})"


def results(name: str, *fields: str) -> type[Results]:
    """The type `dptrain.return_types.<name>` with these fields."""
    places: dict[str, Any] = {n: property(itemgetter(i)) for i, n in enumerate(fields)}
    body = {"__slots__": (), "_names": fields, "n_fields": len(fields), **places}
    made = type(name, (Results,), {"__module__": "dptrain.return_types", **body})
    RESULTS[name] = made
    return made
