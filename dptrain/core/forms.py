"""Functions of several forms, PyTorch's overloads: which of their arguments may be given together.

Owns: the table and its check. Must not know: any particular operation beyond its public name; kinds of
values, which are `core/arguments.py`'s.

Such a function is one here, with defaults for what only some of its forms have. Arguments of two forms
together, or a part of one, would be computed as something that was not asked for.
"""

from __future__ import annotations

#: NumPy's names, which PyTorch takes too.
ALIASES = {"axis": "dim", "keepdims": "keepdim"}

_OVER_DIMENSIONS = (
    "input unbiased? | input dim? correction? keepdim? | input dim unbiased? keepdim?"
)
_MADE = "generator? dtype? layout? device? pin_memory? requires_grad?"
_NORMAL = f"mean std? generator? | std mean? generator? | mean std size {_MADE}"
#: Functions -> their forms; `?` marks what a form may go without.
_TABLE = {
    "max min": "input | input other | input dim keepdim?",
    "median nanmedian all any": "input | input dim keepdim?",
    "sum mean prod": "input dtype? | input dim keepdim? dtype?",
    "var std var_mean std_mean": _OVER_DIMENSIONS,
    "scatter": "input dim index src reduce? | input dim index value reduce?",
    "where": "condition | condition input other | self condition other",
    "linalg.pinv": "A atol? rtol? hermitian? | A rcond hermitian?",
    "linalg.matrix_rank": "A atol? rtol? hermitian? | A tol hermitian?",
    "normal": _NORMAL,
    "trapezoid cumulative_trapezoid": "y x dim? | y dx? dim?",
}


class Forms:
    """The forms of one function."""

    def __init__(self, words: str) -> None:
        self.forms = []
        for form in words.split(" | "):
            names = form.split()
            required = frozenset(n for n in names if not n.endswith("?"))
            self.forms.append((required, frozenset(n.rstrip("?") for n in names) | {"out"}))
        self.words = ", ".join(f"({form.replace(' ', ', ')})" for form in words.split(" | "))
        #: (number of positional arguments, keywords...) of calls that are of one form.
        self.fitting: set[tuple[int | str, ...]] = set()

    @classmethod
    def of(cls, label: str) -> Forms | None:
        """The forms of a function by its public name; None where it has but one."""
        return next((cls(words) for names, words in _TABLE.items() if label in names.split()), None)

    def check(
        self, label: str, names: tuple[str, ...], count: int, keywords: tuple[str, ...]
    ) -> None:
        """Refuse arguments that are of no form.

        Args:
            label: the function's name.
            names: of its positional parameters.
            count: how many of them are given.
            keywords: the names that are given.

        Raises:
            TypeError: naming the function, what was given, and the forms.
        """
        given = {*names[:count], *(ALIASES.get(k, k) for k in keywords)}
        if not any(required <= given <= allowed for required, allowed in self.forms):
            raise TypeError(
                f"{label}() received an invalid combination of arguments: got ({', '.join(sorted(given))}), but expected "
                f"one of {self.words}"
            )
        self.fitting.add((count, *keywords))
