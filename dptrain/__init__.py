"""dptrain: distributed data-parallel training with PyTorch's names.

`import dptrain` loads the core (tensors, autograd) only; the other rooms are imported by name or on
first use as attributes.
"""

from importlib import import_module
from math import e, inf, nan, pi
from typing import Any

from dptrain.core import ops as _ops  # binds the operations to Tensor  # noqa: F401
from dptrain.core.anomaly import is_anomaly_enabled
from dptrain.core.autocast import (
    autocast,
    autocast_decrement_nesting,
    autocast_increment_nesting,
    clear_autocast_cache,
    get_autocast_dtype,
    is_autocast_cache_enabled,
    is_autocast_enabled,
    set_autocast_cache_enabled,
    set_autocast_dtype,
    set_autocast_enabled,
)
from dptrain.core.autocast_older import (
    get_autocast_cpu_dtype,
    get_autocast_gpu_dtype,
    is_autocast_cpu_enabled,
    set_autocast_cpu_dtype,
    set_autocast_cpu_enabled,
    set_autocast_gpu_dtype,
)
from dptrain.core.creation import (
    as_tensor,
    empty,
    empty_like,
    eye,
    full,
    full_like,
    is_tensor,
    ones,
    ones_like,
    tensor,
    zeros,
    zeros_like,
)
from dptrain.core.device import device, get_default_device, set_default_device
from dptrain.core.dtypes import (
    bfloat16,
    double,
    dtype,
    float16,
    float32,
    float64,
    get_default_dtype,
    half,
    int8,
    int16,
    int32,
    int64,
    long,
    set_default_dtype,
    short,
    uint8,
)
from dptrain.core.dtypes import bool_ as bool
from dptrain.core.dtypes import float_ as float
from dptrain.core.dtypes import int_ as int
from dptrain.core.engine import grad as _grad  # binds Tensor.backward  # noqa: F401
from dptrain.core.export import FUNCTIONS as _FUNCTIONS
from dptrain.core.export import in_place_functions as _in_place_functions
from dptrain.core.facts import (
    conj,
    conj_physical,
    detach,
    get_device,
    is_conj,
    is_inference,
    is_neg,
    is_same_size,
    is_signed,
    real,
    resolve_conj,
    resolve_neg,
)
from dptrain.core.grad_mode import (
    enable_grad,
    inference_mode,
    is_grad_enabled,
    is_inference_mode_enabled,
    no_grad,
    set_grad_enabled,
)
from dptrain.core.layout import (
    channels_last,
    channels_last_3d,
    contiguous_format,
    layout,
    memory_format,
    preserve_format,
    strided,
)
from dptrain.core.lent_memory import asarray, from_dlpack, from_numpy, frombuffer
from dptrain.core.modes import (
    are_deterministic_algorithms_enabled,
    get_deterministic_debug_mode,
    get_float32_matmul_precision,
    get_num_interop_threads,
    is_deterministic_algorithms_warn_only_enabled,
    is_warn_always_enabled,
    set_deterministic_debug_mode,
    set_float32_matmul_precision,
    set_flush_denormal,
    set_num_interop_threads,
    set_warn_always,
    use_deterministic_algorithms,
)
from dptrain.core.printing import get_printoptions, set_printoptions
from dptrain.core.random import (
    Generator,
    get_rng_state,
    initial_seed,
    manual_seed,
    seed,
    set_rng_state,
)
from dptrain.core.random import default_generator as _default_generator
from dptrain.core.random_tensors import rand, rand_like, randint, randn, randn_like, randperm
from dptrain.core.ranges import (
    empty_permuted,
    empty_strided,
    randint_like,
    scalar_tensor,
    tril_indices,
    triu_indices,
)
from dptrain.core.ranges import range_ as range
from dptrain.core.size import Size
from dptrain.core.spaced import arange, linspace, logspace
from dptrain.core.storage import TypedStorage, UntypedStorage, is_storage
from dptrain.core.tensor import Tensor
from dptrain.core.threads import get_num_threads, set_num_threads
from dptrain.core.typed import (
    BFloat16Tensor,
    BoolTensor,
    ByteTensor,
    CharTensor,
    DoubleTensor,
    FloatTensor,
    HalfTensor,
    IntTensor,
    LongTensor,
    ShortTensor,
    can_cast,
    finfo,
    iinfo,
    is_complex,
    is_floating_point,
    is_nonzero,
    numel,
    promote_types,
    result_type,
    set_default_tensor_type,
    typename,
)
from dptrain.core.window_functions import (
    bartlett_window,
    blackman_window,
    hamming_window,
    hann_window,
    kaiser_window,
)
from dptrain.version import __version__ as __version__

newaxis = None

# The operations export themselves (see dptrain/core/op.py); dotted names belong to other rooms.
_OPERATIONS = {name: run for name, run in _FUNCTIONS.items() if "." not in name}
_OPERATIONS.update(_in_place_functions())
globals().update(_OPERATIONS)

_ROOMS = frozenset(
    [
        "amp",
        "autograd",
        "backends",
        "checkpoint",
        "comm",
        "compiler",
        "cpu",
        "cuda",
        "data",
        "distributed",
        "distributions",
        "func",
        "futures",
        "hub",
        "jit",
        "linalg",
        "metrics",
        "multiprocessing",
        "nn",
        "onnx",
        "optim",
        "parallel",
        "profiler",
        "random",
        "return_types",
        "serialization",
        "special",
        "tensorboard",
        "utils",
        "version",
        "vision",
    ]
)

__all__ = [
    "TypedStorage",
    "UntypedStorage",
    "are_deterministic_algorithms_enabled",
    "asarray",
    "channels_last",
    "channels_last_3d",
    "conj",
    "conj_physical",
    "contiguous_format",
    "detach",
    "e",
    "empty_permuted",
    "frombuffer",
    "get_default_device",
    "get_deterministic_debug_mode",
    "get_device",
    "get_float32_matmul_precision",
    "get_num_interop_threads",
    "inf",
    "is_conj",
    "is_deterministic_algorithms_warn_only_enabled",
    "is_inference",
    "is_neg",
    "is_same_size",
    "is_signed",
    "is_storage",
    "is_warn_always_enabled",
    "layout",
    "memory_format",
    "nan",
    "newaxis",
    "pi",
    "preserve_format",
    "range",
    "real",
    "resolve_conj",
    "resolve_neg",
    "set_default_device",
    "set_default_tensor_type",
    "set_deterministic_debug_mode",
    "set_float32_matmul_precision",
    "set_flush_denormal",
    "set_num_interop_threads",
    "set_warn_always",
    "strided",
    "typename",
    "use_deterministic_algorithms",
    "BFloat16Tensor",
    "BoolTensor",
    "ByteTensor",
    "CharTensor",
    "DoubleTensor",
    "FloatTensor",
    "Generator",
    "HalfTensor",
    "IntTensor",
    "LongTensor",
    "ShortTensor",
    "Size",
    "Tensor",
    "arange",
    "as_tensor",
    "bartlett_window",
    "bfloat16",
    "blackman_window",
    "autocast",
    "autocast_decrement_nesting",
    "autocast_increment_nesting",
    "clear_autocast_cache",
    "get_autocast_cpu_dtype",
    "get_autocast_dtype",
    "get_autocast_gpu_dtype",
    "is_autocast_cache_enabled",
    "is_autocast_cpu_enabled",
    "is_autocast_enabled",
    "set_autocast_cache_enabled",
    "set_autocast_cpu_dtype",
    "set_autocast_cpu_enabled",
    "set_autocast_dtype",
    "set_autocast_enabled",
    "set_autocast_gpu_dtype",
    "bool",
    "can_cast",
    "device",
    "double",
    "dtype",
    "empty",
    "empty_like",
    "empty_strided",
    "enable_grad",
    "eye",
    "finfo",
    "float",
    "float16",
    "float32",
    "float64",
    "from_dlpack",
    "from_numpy",
    "full",
    "full_like",
    "get_default_dtype",
    "get_num_threads",
    "get_printoptions",
    "get_rng_state",
    "half",
    "hamming_window",
    "hann_window",
    "iinfo",
    "inference_mode",
    "initial_seed",
    "int",
    "int8",
    "int16",
    "int32",
    "int64",
    "is_complex",
    "is_floating_point",
    "is_grad_enabled",
    "is_nonzero",
    "is_anomaly_enabled",
    "is_inference_mode_enabled",
    "is_tensor",
    "kaiser_window",
    "linspace",
    "logspace",
    "long",
    "manual_seed",
    "no_grad",
    "numel",
    "ones",
    "ones_like",
    "promote_types",
    "rand",
    "rand_like",
    "randint",
    "randint_like",
    "randn",
    "randn_like",
    "randperm",
    "result_type",
    "scalar_tensor",
    "seed",
    "set_default_dtype",
    "set_grad_enabled",
    "set_num_threads",
    "set_printoptions",
    "set_rng_state",
    "short",
    "tensor",
    "tril_indices",
    "triu_indices",
    "uint8",
    "zeros",
    "zeros_like",
    "compile",
    "vmap",
    "load",
    "save",
    *_OPERATIONS,
]


#: Functions of a room that PyTorch has at the top; the room is loaded with the first of them.
_FROM_ROOMS = {
    "save": "serialization",
    "load": "serialization",
    "compile": "compiler",
    "vmap": "func",
}


def __getattr__(name: str) -> Any:
    if name in _FROM_ROOMS:
        return getattr(import_module(f"dptrain.{_FROM_ROOMS[name]}"), name)
    if name == "default_generator":  # one per context, so that thread ranks have their own
        return _default_generator()
    if name in _ROOMS:
        return import_module(f"dptrain.{name}")
    if not name.startswith("_"):  # layer functions in PyTorch's native signatures
        found = import_module("dptrain.nn.functional.native").NATIVE.get(name)
        if found is not None:
            return found
    raise AttributeError(f"module 'dptrain' has no attribute {name!r}")
