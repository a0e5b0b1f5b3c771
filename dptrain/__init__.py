"""dptrain: distributed data-parallel training with PyTorch's names.

`import dptrain` loads the core (tensors, autograd) only; the other rooms are imported by name or on
first use as attributes.
"""

from importlib import import_module
from typing import Any

from dptrain.core import ops as _ops  # binds the operations to Tensor  # noqa: F401
from dptrain.core.anomaly import is_anomaly_enabled
from dptrain.core.creation import (
    as_tensor,
    empty,
    empty_like,
    eye,
    from_dlpack,
    from_numpy,
    full,
    full_like,
    is_tensor,
    ones,
    ones_like,
    rand,
    rand_like,
    randint,
    randn,
    randn_like,
    randperm,
    tensor,
    zeros,
    zeros_like,
)
from dptrain.core.device import device
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
    promote_types,
    set_default_dtype,
    short,
    uint8,
)
from dptrain.core.dtypes import bool_ as bool
from dptrain.core.dtypes import float_ as float
from dptrain.core.dtypes import int_ as int
from dptrain.core.engine import grad as _grad  # binds Tensor.backward  # noqa: F401
from dptrain.core.export import FUNCTIONS as _FUNCTIONS
from dptrain.core.grad_mode import (
    enable_grad,
    inference_mode,
    is_grad_enabled,
    is_inference_mode_enabled,
    no_grad,
    set_grad_enabled,
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
from dptrain.core.ranges import (
    empty_strided,
    randint_like,
    scalar_tensor,
    tril_indices,
    triu_indices,
)
from dptrain.core.size import Size
from dptrain.core.spaced import arange, linspace, logspace
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
    result_type,
)

__version__ = "0.1.0"

# The operations export themselves (see dptrain/core/op.py); dotted names belong to other rooms.
_OPERATIONS = {name: run for name, run in _FUNCTIONS.items() if "." not in name}
globals().update(_OPERATIONS)

_ROOMS = frozenset(
    [
        "autograd",
        "backends",
        "checkpoint",
        "comm",
        "cuda",
        "data",
        "distributed",
        "linalg",
        "multiprocessing",
        "nn",
        "optim",
        "parallel",
        "profiler",
        "random",
        "return_types",
        "utils",
        "vision",
    ]
)

__all__ = [
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
    "bfloat16",
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
    *_OPERATIONS,
]


def __getattr__(name: str) -> Any:
    if name == "default_generator":  # one per context, so that thread ranks have their own
        return _default_generator()
    if name in _ROOMS:
        return import_module(f"dptrain.{name}")
    raise AttributeError(f"module 'dptrain' has no attribute {name!r}")
