"""What code of a module may do where nobody is to notice that it does not run.

Owns: the tables of `plainness`. Must not know: how code is read.
"""

from __future__ import annotations


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


#: Where the layers are whose code is known: they compute, and count batches in buffers.
LAYERS = ("dptrain.nn.", "dptrain.vision.")
#: Where functions of tensors are defined; `dptrain` is the home of the exported operations.
FUNCTIONS = (
    "dptrain.nn.functional",
    "dptrain.core.creation",
    "dptrain.core.ops.",
    "dptrain.core.spaced",
)
HOMES = _words(
    """
    dptrain dptrain.core.export dptrain.core.facts dptrain.core.random_tensors dptrain.core.ranges
    dptrain.core.window_functions dptrain.linalg dptrain.special math operator _operator
    """
)
#: Functions of ours, defined beside others, that only tell of types and shapes.
FACTS = _words(
    """
    can_cast get_default_dtype is_complex is_floating_point is_signed numel promote_types result_type
    """
)
#: Modules whose functions are looked at one by one.
NAMESPACES = _words("dptrain dptrain.nn dptrain.linalg dptrain.special math operator")
#: What NumPy has that makes values from values; a tensor handed to it is noticed by the recording.
OF_NUMPY = _words(
    """
    abs all any append arange argmax argmin argsort array asarray bool bool_ ceil clip concatenate copy
    cos cross cumsum diag dot dtype e einsum exp expand_dims eye flip float32 float64 floor full inf
    int32 int64 isfinite isinf isnan linspace log log10 log2 logical_and logical_not logical_or matmul
    max maximum mean min minimum mod multiply nan ndim newaxis ones outer pi power prod ravel repeat
    reshape roll round shape sign sin size sort split sqrt square squeeze stack std sum swapaxes tan
    tanh tile trace transpose tril triu unique var where zeros
    """
)
BUILTINS = _words(
    """
    AssertionError Ellipsis False IndexError KeyError None NotImplemented NotImplementedError RuntimeError
    True TypeError ValueError abs all any bool dict divmod enumerate float hasattr int isinstance len list
    max min pow range reversed round slice sorted str sum super tuple type zip
    """
)
#: Methods and attributes of tensors, modules and containers that leave something behind, or tell of what
#: differs in a replay.
KEEPS = _words(
    """
    apply apply_ backward clear compile data_ptr eval grad grad_fn insert is_leaf item map2_ map_ numpy
    pin_memory pop popitem remove requires_grad_ retain_grad set_ setdefault share_memory_ storage tolist
    train untyped_storage update zero_grad
    """
)
#: Special methods that reading an object does not run, or that only show or copy it.
UNUSED = _words(
    """
    __init__ __new__ __post_init__ __init_subclass__ __class_getitem__ __repr__ __str__ __eq__ __hash__ __lt__
    __le__ __gt__ __ge__ __replace__ __setattr__ __delattr__ __getstate__ __setstate__ __reduce__ __deepcopy__
    """
)
STARTS_OF_KEEPS = ("register_", "add_module", "load_", "__")
#: What instructions may do: compute with local names, read others, call, branch. No storing elsewhere,
#: no import, no `with`, no catching of exceptions. Of Python 3.11 to 3.14.
INSTRUCTIONS = _words(
    """
    BINARY_OP BINARY_SLICE BINARY_SUBSCR BUILD_CONST_KEY_MAP BUILD_LIST BUILD_MAP BUILD_SET BUILD_SLICE
    BUILD_STRING BUILD_TUPLE CACHE CALL CALL_FUNCTION_EX CALL_INTRINSIC_1 CALL_KW COMPARE_OP CONTAINS_OP
    CONVERT_VALUE COPY COPY_FREE_VARS DICT_MERGE DICT_UPDATE END_FOR EXTENDED_ARG FORMAT_SIMPLE FORMAT_VALUE
    FORMAT_WITH_SPEC FOR_ITER GET_ITER GET_LEN IS_OP JUMP_BACKWARD JUMP_BACKWARD_NO_INTERRUPT JUMP_FORWARD
    JUMP_IF_FALSE_OR_POP JUMP_IF_TRUE_OR_POP KW_NAMES LIST_APPEND LIST_EXTEND LIST_TO_TUPLE
    LOAD_ASSERTION_ERROR LOAD_ATTR LOAD_CLASSDEREF LOAD_CLOSURE LOAD_COMMON_CONSTANT LOAD_CONST LOAD_DEREF
    LOAD_FAST LOAD_FAST_AND_CLEAR LOAD_FAST_BORROW LOAD_FAST_BORROW_LOAD_FAST_BORROW LOAD_FAST_CHECK
    LOAD_FAST_LOAD_FAST LOAD_GLOBAL LOAD_METHOD LOAD_SMALL_INT LOAD_SUPER_ATTR LOAD_SUPER_METHOD
    LOAD_ZERO_SUPER_METHOD MAKE_CELL MAKE_FUNCTION MAP_ADD NOP NOT_TAKEN POP_ITER POP_JUMP_BACKWARD_IF_FALSE
    POP_JUMP_BACKWARD_IF_NONE POP_JUMP_BACKWARD_IF_NOT_NONE POP_JUMP_BACKWARD_IF_TRUE
    POP_JUMP_FORWARD_IF_FALSE POP_JUMP_FORWARD_IF_NONE POP_JUMP_FORWARD_IF_NOT_NONE POP_JUMP_FORWARD_IF_TRUE
    POP_JUMP_IF_FALSE POP_JUMP_IF_NONE POP_JUMP_IF_NOT_NONE POP_JUMP_IF_TRUE POP_TOP PRECALL PUSH_NULL
    RAISE_VARARGS RERAISE RESUME RETURN_CONST RETURN_GENERATOR RETURN_VALUE SET_ADD SET_FUNCTION_ATTRIBUTE
    SET_UPDATE STORE_FAST STORE_FAST_LOAD_FAST STORE_FAST_MAYBE_NULL STORE_FAST_STORE_FAST SWAP TO_BOOL
    UNARY_INVERT UNARY_NEGATIVE UNARY_NOT UNARY_POSITIVE UNPACK_EX UNPACK_SEQUENCE
    """
)
#: Inside of a generator expression, which its function runs to the end.
OF_GENERATORS = _words("YIELD_VALUE")
ATTRIBUTES = _words("LOAD_ATTR LOAD_METHOD LOAD_SUPER_ATTR LOAD_SUPER_METHOD")
