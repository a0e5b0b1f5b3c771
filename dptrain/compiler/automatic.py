"""Modules whose calls are replayed without having been asked to.

Owns: `Automatic`: the recordings of one module, and when to give up. Must not know: which calls are
offered (`dptrain.nn.replays`).

Nobody is to notice but by the time it takes: results, gradients, buffers and random numbers are those of
the plain call, bit for bit; the code of the module must be seen to do nothing else (`plainness`); memory
stays within bounds; where anything that a recording depends on has changed, the call is made as it is,
and a module for which that happens again and again is left alone. A second derivative, which a recording
does not have, comes from the plain call, made once more.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakSet, ref

import numpy as np

from dptrain.compiler.draft import Draft, Outline
from dptrain.compiler.function import Report
from dptrain.compiler.graphs import bytes_behind
from dptrain.compiler.kinds import kind_of, reason_now
from dptrain.compiler.pending_pass import PendingPass
from dptrain.compiler.plainness import why_not_plain
from dptrain.compiler.program import Program, agreed
from dptrain.compiler.recorder import record
from dptrain.compiler.replayed import changed_since
from dptrain.compiler.state import Survey, overlaps, survey
from dptrain.compiler.writing import MISS
from dptrain.core.autocast import autocast, autocast_facts
from dptrain.core.engine import grad as gradients_of
from dptrain.core.flat import before_moving
from dptrain.core.grad_mode import enable_grad
from dptrain.core.random import Generator, default_generator
from dptrain.core.tensor import Tensor, wrap
from dptrain.core.tree import leaves
from dptrain.nn.module import Module
from dptrain.nn.replays import PLACES, AsItIs

#: Kinds of calls (shapes, types) that are told apart, and recordings that did not hold, before a module is left alone.
_MOST_KINDS, _MOST_MISSES, _MOST_FAILURES = 8, 4, 2
#: Calls that wait for their backward passes at once (of a siamese network, of a judge of real and fake) need a
#: recording each, since each has its own values in memory.
_MOST_AT_ONCE = 4
#: More of them where a module is called in a loop, of steps in time or of a solver, as long as all take little
#: memory; one at a time after so many calls, of which it makes those to come faster.
_MOST_IN_LOOP, _MOST_LOOP_BYTES, _CALLS_FOR_EACH = 64, 16 << 20, 50
#: A recording keeps its memory between steps: so much for results, and for gradients, and all recordings
#: together. Where a step needs more, Python is not what takes the time.
_MOST_RESULTS, _MOST_GRADIENTS, _MOST_BYTES = 256 << 20, 32 << 20, 512 << 20


@dataclass
class _Kind:
    """Calls with arguments of one kind.

    Attributes:
        nbytes: about how much memory a recording takes.
        outline: that of the last recording, with which the next one is to agree.
        programs: what can be replayed.
        most: how many of these there may be.
        last: which of them was found free last.
    """

    nbytes: int = 0
    outline: Outline | None = None
    programs: list[Program] = field(default_factory=list)
    most: int = _MOST_IN_LOOP
    last: int = 0

    def free_program(self) -> Program | None:
        """One over whose memory no backward pass is still to come."""
        programs = self.programs
        for place in (*range(self.last, len(programs)), *range(min(self.last, len(programs)))):
            if not programs[place].is_busy():
                self.last = place  # the one after it is the next that a loop finds free
                return programs[place]
        return None

    def takes_another(self) -> bool:
        """Whether there may be one more recording."""
        count = len(self.programs)
        if count >= _MOST_AT_ONCE and (count + 1) * self.nbytes > _MOST_LOOP_BYTES:
            return False
        return not count or (count < self.most and _held() + self.nbytes <= _MOST_BYTES)


_all: WeakSet[Automatic] = WeakSet()


def _let_go() -> None:
    """Forget the recordings, whose parameters are to move; there will be others."""
    held = [automatic for automatic in list(_all) if automatic.forget()]
    if held:
        gc.collect()  # recordings know themselves in circles


before_moving.append(_let_go)


class Automatic:
    """The recordings of a module; a copy of the module begins anew, and so does what is loaded.

    Args:
        module: which holds this.
        with_graph: whether these are the calls that record a graph, or those that record none.

    Attributes:
        report: what became of its calls, since it was first looked at.
    """

    def __init__(self, module: Module, with_graph: bool = True) -> None:
        self._module = ref(module)
        self._place = PLACES[with_graph]
        self.report = Report()
        self._kinds: dict[Any, _Kind] = {}
        self._misses = self._failures = 0
        self._is_plain = False
        #: Of its calls as many wait for their backward passes as there may be; steps in time, often, walked back together.
        self._waiting: _Kind | None = None
        _all.add(self)

    def __reduce__(self) -> tuple[type[int], tuple[()]]:
        return int, ()

    def forget(self) -> bool:
        """Forget the recordings; whether there were any."""
        found = any(kind.programs or kind.outline for kind in self._kinds.values())
        self._kinds.clear()
        self._waiting = None
        return found

    def call(self, module: Module, args: Any, kwargs: Any) -> Any:
        """Call the module, by a replay if there is one that holds."""
        if self._module() is not module:  # it has taken over another one's attributes
            module.__dict__[self._place] = 0
            return module.forward(*args, **kwargs)
        self.report.calls += 1
        if self._waiting is not None:
            still = self._waiting.programs and self._waiting.free_program() is None
            if still and self.report.calls % _CALLS_FOR_EACH:
                return module.forward(*args, **kwargs)
            self._waiting = None
        key, tensors, others = kind_of(args, kwargs)
        kind = self._kinds.get(key)
        if kind is not None and kind.programs:
            program = kind.free_program()
            if not (program or kind.programs[0]).holds():
                kind.programs.clear()
                kind.outline = None
                self._misses += 1
                self._is_plain = False  # it may be the code that has changed
            elif program is not None:
                return self._replay(program, module, tensors, args, kwargs)
            elif not kind.takes_another():
                self._waiting = kind
                return module.forward(*args, **kwargs)
        reason = self._why_not(module, kind)
        if reason is not None:
            return self.give_up(module, reason).forward(*args, **kwargs)
        if others or reason_now() is not None or autocast_facts() is not None:
            return module.forward(*args, **kwargs)
        if kind is None:
            result = module.forward(*args, **kwargs)
            size, reason = _size_of(module, result)
            self._kinds[key] = _Kind(size)
            if reason is not None:
                self.give_up(module, reason)
            return result
        return self._record(kind, module, tensors, args, kwargs)

    def _why_not(self, module: Module, kind: _Kind | None) -> str | None:
        """Why there are to be no further recordings, if so."""
        if self._misses > _MOST_MISSES:
            return "what is in its reach changes again and again"
        if kind is None and len(self._kinds) >= _MOST_KINDS:
            return f"there are more than {_MOST_KINDS} kinds of calls (shapes, types)"
        if any(p._twice for p in module.parameters()):  # it would be given up anyway
            return "it is differentiated twice"
        if not self._is_plain:
            reason = why_not_plain(module)
            self._is_plain = reason is None
            return reason
        return None

    def _replay(
        self, program: Program, module: Module, tensors: list[Tensor], args: Any, kwargs: Any
    ) -> Any:
        if program.takes(tensors):
            again = None
            if program.walks_back:
                drawn = _standing(program.generator)
                again = _Again(self, module, args, kwargs, tensors, drawn, program.holds)
            try:
                result = program.run(tensors, again)
            except Exception:
                result = MISS  # the plain call names the layer in which it fails
            if result is not MISS:
                self.report.replays += 1
                return result
        return module.forward(*args, **kwargs)

    def _record(
        self, kind: _Kind, module: Module, tensors: list[Tensor], args: Any, kwargs: Any
    ) -> Any:
        try:
            found = survey([module.forward], gradients=False)
        except Exception as error:  # of an object of the user's that was looked at
            found = Survey(reason=f"{type(error).__name__}: {error}")
        arrays = [t._array for t in (*tensors, *found.tensors.values()) if t._has_values]
        if any(type(a) is not np.ndarray for a in arrays):
            found.reason = "a tensor lives on another device"
        elif any(not type(t).__module__.startswith("dptrain.") for t in tensors):
            found.reason = "an argument is of a class of the user's"
        elif found.parallel:
            found.reason = f"{type(found.parallel[0]).__name__} is in reach"
        if found.reason is not None:
            return self.give_up(module, found.reason).forward(*args, **kwargs)
        if overlaps(tensors, found):
            return module.forward(*args, **kwargs)
        drawn = _standing(default_generator())

        def attach(draft: Draft, values: list[Any], tensors: list[Tensor]) -> None:
            again = _Again(self, module, args, kwargs, tensors, drawn, draft.unchanged)
            PendingPass(draft).attach(draft, values, tensors).again = again

        result, draft = record(module.forward, args, kwargs, tensors, found, attach)
        if not draft.backwards:  # nobody knew before how much memory there is to keep
            kind.nbytes = 0
            kind.nbytes, reason = draft.trace.nbytes(), _too_large(draft.trace.nbytes(), 0)
            draft.trace.reason = draft.trace.reason or reason
        program, kind.outline, reason = agreed(kind.outline, draft, found)
        if program is not None:
            kind.programs.append(program)
            self.report.add(program)
            if len(kind.programs) >= _MOST_AT_ONCE:
                self._waiting = kind
        if reason is not None and kind.programs:
            kind.most = len(kind.programs)
        elif reason is not None:
            self._failures += 1
            if self._failures >= _MOST_FAILURES:
                self.give_up(module, reason)
        return result

    def give_up(self, module: Module, reason: str) -> Module:
        """Have the module run as it is from here on."""
        self._kinds.clear()
        module.__dict__[self._place] = AsItIs(reason)
        return module


def _size_of(module: Module, result: Any) -> tuple[int, str | None]:
    """About how many bytes a recording takes that had this result, and why there should be none, if so."""
    results = bytes_behind(result)
    if not results:  # no graph
        return 0, None
    gradients = sum(p._array.nbytes for p in module.parameters() if p._has_values)
    reason = _too_large(results, gradients)
    return 0 if reason else results + gradients, reason


def _too_large(results: int, gradients: int) -> str | None:
    held, total = _held(), results + gradients
    if results > _MOST_RESULTS or gradients > _MOST_GRADIENTS or held + total > _MOST_BYTES:
        return f"its recording would take {total >> 20} MiB, beside {held >> 20} MiB of others"
    return None


def _held() -> int:
    """About how many bytes all recordings take."""
    kinds = [kind for automatic in list(_all) for kind in automatic._kinds.values()]
    return sum(kind.nbytes * max(len(kind.programs), 1) for kind in kinds)


#: A generator, and where its streams stood.
_Standing = tuple[Generator, list[Any]]


def _standing(generator: Generator | None) -> _Standing | None:
    return None if generator is None else (generator, generator.mark())


class _Again:
    """A call that can be made once more, as it was.

    Args:
        owner: gives up the module, which is differentiated twice.
        module, args, kwargs: the call.
        tensors: the tensors among its arguments.
        drawn: the generator from which it draws numbers, if it does, and where that stood.
        holds: whether everything that it reads is as it was.
    """

    def __init__(
        self,
        owner: Automatic,
        module: Module,
        args: Any,
        kwargs: Any,
        tensors: list[Tensor],
        drawn: _Standing | None,
        holds: Callable[[], bool],
    ) -> None:
        self._owner, self._module, self._args, self._kwargs = owner, module, args, kwargs
        self._counts = [(t, t._version_counter()[0]) for t in tensors]
        self._drawn, self._holds = drawn, holds

    def gradients(
        self, results: list[int], grads: list[Any], ends: list[Tensor]
    ) -> tuple[Any, ...]:
        """See `replayed.Again`.

        Raises:
            RuntimeError: an argument was changed in place since the call, or the module in any way.
        """
        for tensor, count in self._counts:
            if tensor._version_counter()[0] != count:
                raise RuntimeError(changed_since(tensor, count, "an argument of a module"))
        if not self._holds():
            raise RuntimeError(
                f"{type(self._module).__name__} was changed (its mode, an attribute, a part) between its call and this "
                "backward pass, which has to make the call once more; walk back first, or set DPTRAIN_REPLAYS=0"
            )
        with_graph = isinstance(grads[0], Tensor)
        habit = (
            "differentiated twice" if with_graph else "given gradients of other results at times"
        )
        self._owner.give_up(self._module, f"it is {habit}")
        buffers = [(b, b._array.copy()) for b in self._module.buffers()]
        generator, mark = self._drawn or (None, [])
        drawn = nullcontext() if generator is None else generator.back_at(mark)
        with drawn, enable_grad(), autocast("cpu", enabled=False):
            values, _ = leaves(self._module.forward(*self._args, **self._kwargs))
        for buffer, before in buffers:  # has counted this batch already
            buffer._array[...] = before
        found = gradients_of(
            [values[i] for i in results],
            ends,
            grads if with_graph else [wrap(g) for g in grads],
            create_graph=with_graph,
            allow_unused=True,
        )
        return found if with_graph else tuple(None if g is None else g._array for g in found)
