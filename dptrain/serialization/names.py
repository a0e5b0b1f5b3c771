"""What PyTorch's files call things, and what they are here.

Owns: the table between PyTorch's global names and ours, both ways. Must not know: how files are laid
out. Nothing here imports torch: a name is written and read as text.
"""

from __future__ import annotations

from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from functools import cache
from importlib import import_module
from typing import Any

from dptrain.core.dtypes import ALL_DTYPES, dtype, uint8
from dptrain.core.layout import (
    channels_last,
    channels_last_3d,
    contiguous_format,
    layout,
    memory_format,
    preserve_format,
    strided,
)
from dptrain.serialization.source import shown

_STORAGE_NAMES = {
    "float64": "Double",
    "float32": "Float",
    "float16": "Half",
    "bfloat16": "BFloat16",
    "uint8": "Byte",
    "int8": "Char",
    "int16": "Short",
    "int32": "Int",
    "int64": "Long",
    "bool": "Bool",
}


class TorchGlobal:
    """A name of PyTorch's that is written into a file instead of one of ours.

    It can be called only because a pickler wants to see a callable in this place. A pickler that can only
    write names which it finds writes `stand_in`, which this module has; see `pickler.py`.
    """

    __slots__ = ("module", "name")

    def __init__(self, module: str, name: str) -> None:
        self.module = module
        self.name = name

    @property
    def stand_in(self) -> str:
        """The name in this module under which it is found; dots would mean attributes of attributes."""
        return f"{self.module}.{self.name}".replace(".", ":")

    def __call__(self, *args: Any) -> Any:
        raise TypeError(f"{self.module}.{self.name} is PyTorch's and cannot be called here")


class StorageType:
    """What `torch.FloatStorage` is in a file: the type of a storage's elements."""

    __slots__ = ("dtype",)

    def __init__(self, kind: dtype) -> None:
        self.dtype = kind


@cache
def torch_global(name: str) -> TorchGlobal:
    """The one marker for a dotted name, so that a pickler writes it once."""
    module, _, last = name.rpartition(".")
    return TorchGlobal(module, last)


def __getattr__(name: str) -> Any:
    if ":" in name:
        return torch_global(name.replace(":", "."))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def storage_global(kind: dtype) -> TorchGlobal:
    """How a file names storages of elements of this type."""
    return torch_global(f"torch.{_STORAGE_NAMES[kind.name]}Storage")


@cache
def parameter_class() -> Any:
    """`dptrain.nn.Parameter`, which lives in a room above this one."""
    return import_module("dptrain.nn.parameter").Parameter


def layout_by_name(name: str) -> layout:
    """What `torch.serialization._get_layout` gives for a name.

    Raises:
        RuntimeError: a sparse layout.
    """
    if not isinstance(name, str) or name != "torch.strided":
        raise RuntimeError(
            f"the file names the layout {shown(name)}; dptrain has torch.strided only"
        )
    return strided


def value_globals() -> dict[str, Any]:
    """PyTorch's names of values (dtypes, types of storages) and what they are here."""
    found: dict[str, Any] = {f"torch.{d.name}": d for d in ALL_DTYPES}
    for d in ALL_DTYPES:
        for module in ("torch", "torch.cuda"):  # files of old versions name the GPU's storages
            found[f"{module}.{_STORAGE_NAMES[d.name]}Storage"] = StorageType(d)
    for old in (
        "torch.storage.UntypedStorage",
        "torch.storage._UntypedStorage",
        "torch.UntypedStorage",
    ):
        found[old] = StorageType(uint8)
    return found


def memory_formats() -> dict[str, memory_format]:
    """PyTorch's names of memory formats, which only trusted files may hold, as in PyTorch."""
    held = (contiguous_format, channels_last, channels_last_3d, preserve_format)
    return {f"torch.{value.name}": value for value in held}


def modern_name(module: str, name: str) -> str:
    """The full name in Python 3 of what a file of protocol 2 or older names as Python 2 did."""
    if (module, name) in NAME_MAPPING:
        module, name = NAME_MAPPING[module, name]
    else:
        module = IMPORT_MAPPING.get(module, module)
    return f"{module}.{name}"


def why_unsupported(name: str) -> str | None:
    """What a file holds that uses a name of PyTorch's for which there is nothing here; None for other names."""
    module, _, last = name.rpartition(".")
    if module in ("torch", "torch.cuda") and last.endswith("Storage"):
        return f"a storage of a type that dptrain does not have ({name})"
    if module == "torch" and last[:1].islower():
        return f"PyTorch's {name}, for which dptrain has nothing"
    if module == "torch._utils" and last.startswith("_rebuild"):
        kind = last.removeprefix("_rebuild_").removesuffix("_tensor").replace("_", " ")
        return f"a tensor of a kind that dptrain does not have ({kind})"
    if name.startswith("torch.jit."):
        return "a TorchScript object"
    if name.startswith(("torch.", "torchvision.")):
        return (
            f"an object of PyTorch's class {name}, perhaps a whole model; only PyTorch can use its classes. "
            "Load it there and save its values: torch.save(model.state_dict(), path)"
        )
    return None
