"""Names of backends: PyTorch's, and what they stand for here.

Owns: `Backend`, `BackendConfig`, the names that are known. Must not know: groups, processes.
"""

from __future__ import annotations

from typing import ClassVar


class Backend(str):
    """A backend's name in lower case: `Backend("GLOO") == Backend.GLOO == "gloo"`.

    Raises:
        ValueError: no string.
    """

    __slots__ = ()

    UNDEFINED = "undefined"
    GLOO = "gloo"
    NCCL = "nccl"
    MPI = "mpi"
    backend_list: ClassVar[list[str]] = [UNDEFINED, GLOO, NCCL, MPI]
    default_device_backend_map: ClassVar[dict[str, str]] = {"cpu": GLOO, "cuda": NCCL}

    def __new__(cls, name: str) -> Backend:
        if not isinstance(name, str):
            raise ValueError("Backend constructor parameter must be string-ish")
        return super().__new__(cls, name.lower())


class BackendConfig:
    """Which backend serves which kind of device: "cpu:gloo,cuda:nccl", or one name for all.

    Raises:
        ValueError: another form.
    """

    def __init__(self, backend: str) -> None:
        self.device_backend_map: dict[str, str] = {}
        if ":" not in backend:
            self.device_backend_map = dict.fromkeys(("cpu", "cuda"), backend.lower())
            return
        for entry in backend.lower().split(","):
            device, colon, name = entry.strip().partition(":")
            if not colon or not device or not name or device in self.device_backend_map:
                raise ValueError(
                    f"The custom backend string argument is invalid: {backend}; expected one "
                    "device:backend pair for each device, such as 'cpu:gloo,cuda:nccl'"
                )
            self.device_backend_map[device] = name

    def get_device_backend_map(self) -> dict[str, str]:
        """Device type -> backend."""
        return self.device_backend_map

    def __repr__(self) -> str:
        return ",".join(f"{device}:{name}" for device, name in self.device_backend_map.items())


#: PyTorch's backend names -> ours. Both gloo and mpi mean MPI; nccl is MPI for what lives on the CPU.
BACKENDS = {"mpi": "mpi", "gloo": "mpi", "serial": "serial", "nccl": "nccl"}


def known(backend: str) -> BackendConfig:
    """What a text of backends' names asks for.

    Raises:
        ValueError: no string, another form, or a name that is not known.
    """
    found = BackendConfig(Backend(backend))
    for name in found.device_backend_map.values():
        if name not in BACKENDS:
            raise ValueError(
                f"backend {backend!r} is not available in this version; expected one of {', '.join(BACKENDS)}"
            )
    return found
