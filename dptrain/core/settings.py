"""Settings of the core room: the one place below it that reads the process environment.

Owns: the names, defaults and checks of the `DPTRAIN_*` variables that concern computing.
Must not know: ranks and launchers (those variables belong to `dptrain.comm.env`).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache

KERNEL_PROVIDERS = ("auto", "numba", "numpy")


@dataclass(frozen=True)
class Settings:
    """What the environment asks of the core.

    Attributes:
        kernels: provider of the hot CPU kernels: "auto" (numba where it is installed), "numba", "numpy".
    """

    kernels: str = "auto"


@cache
def settings() -> Settings:
    """Read the environment once.

    Raises:
        ValueError: a variable holds a value that is not among the allowed ones.
    """
    kernels = os.environ.get("DPTRAIN_KERNELS", "auto").strip().lower()
    if kernels not in KERNEL_PROVIDERS:
        raise ValueError(
            f"DPTRAIN_KERNELS={kernels!r} is not a kernel provider; "
            f"expected one of {', '.join(KERNEL_PROVIDERS)}"
        )
    return Settings(kernels=kernels)
