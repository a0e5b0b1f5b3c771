"""Settings of the core room: the one place below it that reads the process environment.

Owns: the names, defaults and checks of the variables that concern computing, and the place of
PyTorch's downloads.
Must not know: ranks and launchers (those variables belong to `dptrain.comm.env`).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

KERNEL_PROVIDERS = ("auto", "numba", "numpy")


@dataclass(frozen=True)
class Settings:
    """What the environment asks of the core.

    Attributes:
        kernels: provider of the hot CPU kernels: "auto" (numba where it is installed), "numba", "numpy".
        host_devices: into how many virtual devices the host is split (`cpu:0`, `cpu:1`, ...).
        replays: whether modules are recorded and replayed by themselves.
        cuda_visible_devices: CUDA_VISIBLE_DEVICES, which CUDA itself obeys; here for error messages.
        compiler: numba's own variables, which it obeys, but for where it keeps files.
    """

    kernels: str = "auto"
    host_devices: int = 1
    replays: bool = True
    cuda_visible_devices: str | None = None
    compiler: tuple[tuple[str, str], ...] = ()


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
    return Settings(
        kernels=kernels,
        host_devices=_count("DPTRAIN_HOST_DEVICES", 1, 64),
        replays=_switch("DPTRAIN_REPLAYS", True),
        cuda_visible_devices=os.environ.get("CUDA_VISIBLE_DEVICES"),
        compiler=tuple(
            sorted(
                (name, value)
                for name, value in os.environ.items()
                if name.startswith("NUMBA_") and name not in _NO_MATTER_OF_CODE
            )
        ),
    )


#: numba's variables that change no code.
_NO_MATTER_OF_CODE = ("NUMBA_CACHE_DIR", "NUMBA_NUM_THREADS")


def _switch(name: str, default: bool) -> bool:
    text = os.environ.get(name, "").strip()
    if text not in ("", "0", "1"):
        raise ValueError(f"{name}={text!r} is neither 0 nor 1")
    return default if not text else text == "1"


def _count(name: str, default: int, most: int) -> int:
    text = os.environ.get(name, "").strip()
    if not text:
        return default
    if not text.isdecimal() or not 1 <= int(text) <= most:
        raise ValueError(f"{name}={text!r} is no number of devices; expected 1 to {most}")
    return int(text)


def _user_cache(name: str) -> str:
    return os.path.join(os.environ.get("XDG_CACHE_HOME", "~/.cache"), name)


def torch_home() -> Path:
    """PyTorch's folder of downloaded files: `$TORCH_HOME`, or `torch` in the user's cache folder."""
    return Path(os.environ.get("TORCH_HOME", _user_cache("torch"))).expanduser()


def kernel_folders(source: Path) -> list[Path]:
    """Where compiled kernels may lie, whose source lies in a folder; they are written to the first that takes them."""
    chosen = os.environ.get("NUMBA_CACHE_DIR")
    if chosen:
        return [Path(chosen) / "dptrain"]
    folders = source / "__pycache__", os.path.expanduser(_user_cache("dptrain"))
    return [Path(f) for f in folders if os.path.isabs(f)]  # a user may have no home
