"""Where loaded storages go: `map_location`, and the tags that files give them.

Owns: the reading of tags and of `map_location`. Must not know: file formats.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from dptrain.core.device import as_device, device
from dptrain.core.dtypes import dtype
from dptrain.core.storage import UntypedStorage
from dptrain.serialization.rebuild import LoadedStorage

#: Gives a storage its place: the memory, the type of its elements, the tag in the file.
Place = Callable[[np.ndarray, dtype, str], LoadedStorage]


def placing(map_location: Any) -> Place:
    """How storages are placed under PyTorch's `map_location`.

    Args:
        map_location: None (where the tag says), a device or its name, a dict from tags to tags, or a
            function of a storage and its tag, which gives a storage or None.
    """
    if isinstance(map_location, bytes):
        map_location = map_location.decode()
    if isinstance(map_location, (str, device)):
        target = str(map_location)
        return lambda memory, kind, tag: _restore(memory, kind, target)
    if map_location is None or isinstance(map_location, dict):
        table = map_location or {}
        return lambda memory, kind, tag: _restore(memory, kind, str(table.get(tag, tag)))
    if not callable(map_location):
        raise TypeError(
            f"load: map_location must be a device, a string, a dict or a function, got {type(map_location).__name__}"
        )

    def place(memory: np.ndarray, kind: dtype, tag: str) -> LoadedStorage:
        given = UntypedStorage(memory)
        found = map_location(given, tag)
        if found is None:
            return _restore(memory, kind, tag)
        if not isinstance(found, UntypedStorage):
            raise TypeError(
                f"load: map_location gave a {type(found).__name__}; it has to give a storage or None"
            )
        return LoadedStorage(found._owner, kind)

    return place


def _restore(memory: np.ndarray, kind: dtype, tag: str) -> LoadedStorage:
    """The storage on the device of a tag.

    Raises:
        RuntimeError: it cannot be there.
    """
    base = tag.partition(":")[0]
    if base == "cpu":
        return LoadedStorage(memory, kind, as_device(tag).index or 0)
    if base in ("cuda", "mps", "xpu", "hip"):
        raise RuntimeError(
            f"Attempting to deserialize object on a {base.upper()} device ({tag}), but this version of dptrain "
            "computes on 'cpu' only. Please use dptrain.load with map_location=dptrain.device('cpu') to map the "
            "storages to the CPU."
        )
    raise RuntimeError(
        f"don't know how to restore data location of a storage (tagged with {tag[:80]}); "
        "map_location='cpu' puts all storages on the CPU"
    )
