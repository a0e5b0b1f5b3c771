"""What an operation is: one class whose instance is the graph node.

Owns: `Op` (forward over raw arrays, backward; what is saved is in `saved`) and `Op.apply` (unwrap, promote, run,
record). Must not know: any particular operation, or under which names it is public.

An operation is written as one block::

    @export("exp", methods=("exp",))
    class Exp(Op):
        def forward(self, input):
            return self.xp.exp(input)

        def backward(self, grad, out):      # dy/dx = y
            return grad * out

`forward` sees raw arrays. `backward` asks for what it needs *by name*: parameters named as those of
`forward` arrive as the saved inputs, `out` as the saved result; plain attributes set on `self` in
`forward` (masks, shapes) stay with the node. `backward` is written with Python operators and with
`SomeOp.call(...)`, both of which work on raw arrays (the usual, fast case) and on Tensors (under
`create_graph`), and returns one gradient per leading argument of `forward`. Broadcasting and
promotion are undone by the engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import Any, ClassVar

import numpy as np

from dptrain.core.arrays import REMOTE, as_array, elsewhere, is_array, namespace_of, shares_memory
from dptrain.core.capturing import recorder, recorders, watcher
from dptrain.core.cuda import refuse_exhaustion
from dptrain.core.dtypes import FROM_NUMPY
from dptrain.core.float_errors import ignore_float_errors, restore_float_errors
from dptrain.core.forms import ALIASES
from dptrain.core.grad_mode import is_grad_enabled, record_observer
from dptrain.core.half import rounded_once
from dptrain.core.hooks import RemovableHandle, RemovableHandles
from dptrain.core.memory_order import keep_unseen
from dptrain.core.node_hooks import HookedNode
from dptrain.core.node_names import event_name
from dptrain.core.operands import (
    check_count,
    host_scalars_moved,
    one_device,
    promote,
    refuse_argument,
    shape_error,
)
from dptrain.core.saved import SavedValues
from dptrain.core.tensor import Tensor, catch_up, wrap

_sequence = count().__next__
_ndarray, _new = np.ndarray, object.__new__
#: Those of a node that is not recorded.
_NO_EDGES: Any = (None,) * 64

#: The element types that are computed in as they are, and those of what has a gradient.
_WIDE = frozenset([np.dtype(np.float32), np.dtype(np.float64)])
_FLOATING = frozenset(kind for kind, ours in FROM_NUMPY.items() if ours.is_floating_point)

#: In the place of one argument's position (`Op.direct`): all of them.
EVERY = -1


def _positional(method: Any) -> tuple[str, ...]:
    """Names of the positional parameters after `self`."""
    code = getattr(method, "__wrapped__", method).__code__
    return tuple(code.co_varnames[1 : code.co_argcount])


class OpName(str):
    """The name of an operation; read from a node it can also be called, as PyTorch's `grad_fn.name()`."""

    node: Op

    def __get__(self, node: Op | None, owner: Any) -> OpName:
        # Read from the class, as operations do that only hand it on, it is there without being made.
        if node is None:
            return self
        bound = OpName(self)
        bound.node = node
        return bound

    def __call__(self) -> str:
        return self.node.grad_name


class AccumulateGrad:
    """The end of a path through the graph: where a leaf's `.grad` is accumulated."""

    next_functions: tuple[tuple[Any, int], ...] = ()

    def __init__(self, variable: Tensor) -> None:
        self.variable = variable
        self.metadata: dict[Any, Any] = {}

    def name(self) -> str:
        """As PyTorch prints it."""
        return "torch::autograd::AccumulateGrad"

    def register_prehook(self, fn: Any) -> RemovableHandle:
        """Call `fn((grad,))` before the gradient is accumulated; a tuple replaces it."""

        def hook(grad: Tensor) -> Any:
            replaced = fn((grad,))
            return replaced[0] if isinstance(replaced, tuple) else replaced

        return self.variable.register_hook(hook)

    def register_hook(self, fn: Any) -> RemovableHandle:
        """Call `fn((), (grad,))` after the gradient was accumulated."""
        came: list[Tensor] = []
        noted = self.variable.register_hook(came.append)
        done = self.variable.register_post_accumulate_grad_hook(lambda _: fn((), (came.pop(),)))
        return RemovableHandles([noted, done])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AccumulateGrad) and self.variable is other.variable

    def __hash__(self) -> int:
        return hash((AccumulateGrad, id(self.variable)))


class Op(SavedValues, HookedNode):
    """One application of an operation: the graph node.

    Attributes:
        outs: (shape, NumPy dtype) of each output, to which incoming gradients are brought.
    """

    #: How many leading arguments are brought to one dtype and broadcast against each other.
    promotes: ClassVar[int] = 0
    #: Whether tensors of no dimension on the host may meet those of a GPU; where arguments are promoted they may.
    takes_host_scalars: ClassVar[bool] = False
    #: How many leading arguments must be tensors; 0 where a number may stand in the first place too.
    num_tensors: ClassVar[int] = 1
    #: A boolean beside numbers counts as 0 or 1; elsewhere it is an error.
    takes_bool: ClassVar[bool] = True
    #: How many leading arguments must have one dtype.
    alike: ClassVar[int] = 0
    #: Numbers in all places that are promoted give a tensor without dimensions, as in PyTorch.
    numbers_only: ClassVar[bool] = False
    #: 16-bit floating point is computed in float32 and rounded once, forward and backward.
    in_float32: ClassVar[bool] = False
    #: Except on a GPU, whose kernels take 16-bit values as they are: computed in float32 and rounded once there.
    halves_on_gpu: bool = False
    #: On a GPU one of two arguments that are promoted may stay of 16 bits beside float32, in one shape.
    takes_mixed: ClassVar[bool] = False
    differentiable: ClassVar[bool] = True
    #: Saved argument -> the position whose gradient it serves; not saved where that is not wanted.
    saved_for: ClassVar[dict[str, int]] = {}
    #: Argument whose gradient `backward` can write into `self.target`, which the engine provides;
    #: `EVERY`: all of them, and the target is a list with one entry (or None) for each.
    direct: ClassVar[int | None] = None
    target: Any = None
    #: Nothing of the arguments is kept for backward: the in-place form needs no copy of the old values.
    forgets: ClassVar[bool] = False
    #: Backward may be computed together with that of another node: `joined` is asked before it.
    joins: ClassVar[bool] = False
    #: The result may share memory with the first argument.
    is_view: ClassVar[bool] = False
    #: Set by a forward whose result lies in memory as the user asked, whatever the arguments' order.
    order_asked: bool = False
    #: The result is `input[self.index]`, a basic index: gradients may be added there.
    takes_part: ClassVar[bool] = False
    #: Of the edges those that lead to what a backward pass was asked for, while it runs and where it is not all.
    narrowed: Any = None
    name: ClassVar[str] = ""
    #: How the node prints, as PyTorch's `grad_fn`; by default from the class: `AddBackward0`. A forward
    #: may set it on the instance, where PyTorch numbers the forms of one operation.
    backward_name: str = ""
    #: How a drawing of the graph shows the node, where its forms have names of their own.
    drawn_as: ClassVar[str] = ""
    #: What makes arrays where the arguments live; `numpy` on the CPU.
    xp: Any = np

    outs: tuple[tuple[tuple[int, ...], np.dtype[Any]], ...]
    hooks: dict[int, dict[int, Any]] | None
    sequence: int

    _defaults: ClassVar[dict[str, Any]] = {}
    #: `forward` without what lifts 16-bit values (`in_float32`), where the first argument decides that alone.
    _computes: ClassVar[Any] = None

    __slots__ = ("hooks", "outs", "sequence")

    def __init_subclass__(cls) -> None:
        cls.name = OpName(cls.name or cls.__name__.lower())
        # Read off the code objects: `inspect.signature` for some hundred operations would take
        # longer than the rest of the import.
        cls._parameters = _positional(cls.forward)
        defaults = getattr(cls.forward, "__wrapped__", cls.forward).__defaults__ or ()
        cls._defaults = (
            dict(zip(cls._parameters[-len(defaults) :], defaults, strict=True)) if defaults else {}
        )
        wanted = _positional(cls.backward)[1:]
        cls._saved_names = tuple(
            (-1 if n == "out" else cls._parameters.index(n), cls.saved_for.get(n)) for n in wanted
        )
        if cls.in_float32 and not hasattr(cls.forward, "__wrapped__"):
            cls.forward = rounded_once(cls.forward)  # type: ignore[method-assign]
        cls._computes = getattr(cls.forward, "of_wide", None)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Compute on raw arrays."""
        raise NotImplementedError(f"{type(self).__name__} defines no forward")

    def backward(self, grad: Any, /, *args: Any) -> Any:
        """Gradients of the leading arguments from the gradient of the result."""
        raise RuntimeError(f"the derivative of {self.name} is not implemented")

    def joined(self, run: Any) -> bool:
        """Whether the next node of the backward pass `run` does the work of this one too.

        It then receives this node's incoming gradient as it is. Asked where no graph is recorded.
        """
        return False

    @property
    def needs(self) -> Sequence[Any]:
        """None where the gradient of an argument is not wanted; `backward` may skip those."""
        return self.edges if self.narrowed is None else self.narrowed

    @property
    def grad_name(self) -> str:
        """The name under which the node is printed, as PyTorch's `grad_fn`."""
        return self.backward_name or f"{type(self).__name__}Backward0"

    def __repr__(self) -> str:
        return f"<{self.grad_name} object at {id(self):#x}>"

    @property
    def next_functions(self) -> tuple[tuple[Any, int], ...]:
        """The nodes that receive this node's gradients; leaves as `AccumulateGrad`."""
        return tuple(
            (None, 0) if e is None else (AccumulateGrad(e[0]), 0) if e[1] is None else (e[0], e[1])
            for e in self.edges
        )

    @property
    def metadata(self) -> dict[Any, Any]:
        """A dictionary for the user's notes on this node."""
        notes: dict[Any, Any] = self.__dict__.setdefault("_metadata", {})
        return notes

    # ---- running -------------------------------------------------------------------------------

    @classmethod
    def call(cls, *args: Any, **kwargs: Any) -> Any:
        """Run on raw arrays or on Tensors, whichever come: the form that backward functions use."""
        xp: Any = np
        for a in args:
            if isinstance(a, Tensor):
                return cls.apply(*map(_as_argument, args), **kwargs)
            if type(a) in REMOTE:
                guard = elsewhere((a,))
                if guard is not None:
                    with guard:
                        return cls.call(*args, **kwargs)
                xp = namespace_of(a)
        op = cls()
        if xp is not np:
            op.xp = xp
        return op.forward(*args, **kwargs)

    @classmethod
    def _bind(
        cls, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Move keyword arguments that have a position to it; accept NumPy's `axis`/`keepdims`."""
        if not cls._parameters:  # of any number of tensors: what has a name is given by name
            return args, kwargs
        kwargs = {ALIASES.get(k, k): v for k, v in kwargs.items()}
        positional = list(args)
        for name in cls._parameters[len(args) :]:
            if name in kwargs:
                positional.append(kwargs.pop(name))
            elif name in cls._defaults:
                positional.append(cls._defaults[name])
            else:
                raise TypeError(f"{cls.name}() missing required argument: {name!r}")
        for name in kwargs:
            if name in cls._parameters:
                raise TypeError(f"{cls.name}() got multiple values for argument {name!r}")
        return tuple(positional), kwargs

    @classmethod
    def apply(cls, *args: Any, **kwargs: Any) -> Any:
        """Run the operation on Tensors and record it where a gradient may be asked for.

        Raises:
            TypeError: an argument that must be a Tensor is none.
            RuntimeError: shapes do not fit.
        """
        if kwargs:
            args, kwargs = cls._bind(args, kwargs)
        raw: list[Any] = []
        remote = False
        edges: list[Any] | None = None
        needed, differentiates = cls.num_tensors, cls.differentiable and is_grad_enabled()
        for a in args:
            if isinstance(a, Tensor):
                if a._base is not None and a._base._node is not a._seen:
                    catch_up(a)
                array = a._array
                if type(array) is not _ndarray:
                    remote = True
                if differentiates and a._requires_grad:
                    if edges is None:
                        edges = [None] * len(args)
                    # edge_of(a), without the call: this loop runs for every operation
                    edges[len(raw)] = (a, None) if a._node is None else (a._node, a._index)
                raw.append(array)
            else:
                i = len(raw)
                if i < needed or (type(a) is _ndarray and i < cls.promotes):
                    refuse_argument(cls, args, i)
                raw.append(a)
        if len(raw) < needed:
            refuse_argument(cls, args, len(raw))
        if cls.is_view and args[0]._unseen is not None:
            raw[0] = args[0]._settled()
        op = cls()
        if recorders:
            watch = watcher()
            if watch is not None and watch.counts():
                return _measured(cls, watch, args, kwargs)
            if (listener := recorder()) is not None:
                listener.enter(args, raw)
                remote = True
        if remote:
            guard = elsewhere(raw)
            if guard is not None:  # the arrays' GPU is not the current one
                with guard:
                    return cls.apply(*args, **kwargs)
            if cls.promotes or cls.takes_host_scalars:
                beside_gpu = host_scalars_moved(args, raw)
                if beside_gpu is not None:
                    return cls.apply(*beside_gpu, **kwargs)
            op.xp = one_device(cls, raw)
        recording = edges is not None
        op.edges = _NO_EDGES if edges is None else edges
        # What gives views computes nothing that NumPy could warn of.
        token = None if cls.is_view else ignore_float_errors()
        try:
            if cls.promotes:
                promote(cls, raw, op.xp)
            computes = cls._computes
            if kwargs:
                out = op.forward(*raw, **kwargs)
            elif computes is None or type(raw[0]) is not _ndarray or raw[0].dtype not in _WIDE:
                out = op.forward(*raw)
            else:  # nothing is to be lifted: without the function around it
                out = computes(op, *raw)
        except TypeError:
            check_count(cls, args)
            raise
        except ValueError as error:
            raise shape_error(cls, raw, error) from None
        except (ArithmeticError, MemoryError) as error:
            refuse_exhaustion(error)
            raise RuntimeError(f"{cls.name}: {error}") from None
        except Exception as error:
            refuse_exhaustion(error)
            raise
        finally:
            if token is not None:
                restore_float_errors(token)
        if type(out) is not _ndarray:
            if type(out) is tuple:
                return op._record_many(args, raw, kwargs, out, recording)
            if type(out) not in REMOTE:
                out = op.xp.asarray(out)
        result = _new(Tensor)  # wrap(out), without the call
        result._array = out
        if cls.is_view and shares_memory(out, raw[0]):
            _share(result, args[0], (cls, raw[1:], kwargs, None))
        elif out.ndim > 2 and not out.flags.c_contiguous and not op.order_asked:
            keep_unseen(result, args)
        if recording and out.dtype in _FLOATING:
            op.outs = ((out.shape, out.dtype),)
            op._record(args, raw, out, result)
            result._node = op
            result._requires_grad = True
        return result

    def _record(
        self, args: tuple[Any, ...], raw: list[Any], out: Any, result: Tensor | None
    ) -> None:
        self.sequence = _sequence()
        self.hooks = None
        if self._saved_names:
            self._save(args, raw, out, result)
        else:
            self.saved = self.versions = ()
        observer = record_observer()
        if observer is not None:
            observer(self)

    def _record_many(
        self,
        args: tuple[Any, ...],
        raw: list[Any],
        kwargs: dict[str, Any],
        outs: tuple[Any, ...],
        recording: bool,
    ) -> Any:
        outs = tuple([o if is_array(o) else self.xp.asarray(o) for o in outs])
        results = [wrap(o) for o in outs]
        if recording:
            self.outs = tuple((o.shape, o.dtype) for o in outs)
            self._record(args, raw, outs[0], results[0])
        shared = self.is_view and any(shares_memory(out, raw[0]) for out in outs)
        cls, rest = type(self), raw[1:]
        for i, result in enumerate(results):
            out = outs[i]
            if shared:
                _share(result, args[0], (cls, rest, kwargs, i))
            elif out.ndim > 2 and not out.flags.c_contiguous:
                keep_unseen(result, args)
            if recording and out.dtype in _FLOATING:
                result._node, result._index = self, i
                result._requires_grad = True
        return tuple(results)


def _as_argument(value: Any) -> Any:
    """What a node keeps beside its saved values (masks, indices) are raw constants."""
    if isinstance(value, Tensor):
        return value
    return wrap(as_array(value)) if type(value) is np.bool_ or is_array(value) else value


def _measured(cls: type[Op], watch: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """`Op.apply`, as an event of a profile."""
    again = Op.apply.__func__  # type: ignore[attr-defined]
    return watch.operation(event_name(cls.name), args, lambda: again(cls, *args, **kwargs))


def edge_of(tensor: Tensor) -> tuple[Any, int | None]:
    """Where the gradient of a tensor goes: (node, output index), or (leaf, None)."""
    return (tensor, None) if tensor._node is None else (tensor._node, tensor._index)


def _share(view: Tensor, source: Tensor, step: tuple[Any, ...]) -> None:
    """A view counts in-place changes together with its base and remembers the way from there."""
    counter = source._counter
    view._counter = source._version_counter() if counter is None else counter
    base = view._base = source if source._base is None else source._base
    if base._node is not None:
        view._seen = base._node
    steps = () if base is source else source._steps
    if steps is not None and is_grad_enabled():
        view._steps = (steps, step)  # shared, not copied: views of views stay cheap
