"""Files: `save` and `load` of PyTorch's own formats, and safetensors files.

Nothing here needs PyTorch, and with `weights_only=True`, the default, nothing from a file is run.
"""

from dptrain.serialization.endianness import (
    LoadEndianness,
    get_default_load_endianness,
    set_default_load_endianness,
)
from dptrain.serialization.files import (
    DEFAULT_PROTOCOL,
    get_unsafe_globals_in_checkpoint,
    load,
    save,
)
from dptrain.serialization.safe_globals import (
    add_safe_globals,
    clear_safe_globals,
    get_safe_globals,
    safe_globals,
)
from dptrain.serialization.safetensors_file import load_file, save_file

__all__ = [
    "DEFAULT_PROTOCOL",
    "LoadEndianness",
    "add_safe_globals",
    "clear_safe_globals",
    "get_default_load_endianness",
    "get_safe_globals",
    "get_unsafe_globals_in_checkpoint",
    "load",
    "load_file",
    "safe_globals",
    "save",
    "save_file",
    "set_default_load_endianness",
]
