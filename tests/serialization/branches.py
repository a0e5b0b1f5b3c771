"""Which branches of some source files were run: both ways of every conditional jump, and every line.

Owns: `Branches`. A branch is a jump of the compiled code, as that is what runs: `a and b` has two, a loop has
one (another round, or its end). Source of the events: Python's documentation of `sys.settrace`.
"""

import dis
import inspect
import sys
from pathlib import Path

#: After these a jump asks whether an exception is of a kind that is caught; others pass by.
_OF_HANDLERS = ("CHECK_EXC_MATCH", "WITH_EXCEPT_START", "CHECK_EG_MATCH")


class _Code:
    """What is to be reached in one function: its lines, and both ways of its jumps."""

    def __init__(self, code):
        self.where = f"{Path(code.co_filename).name}:{code.co_qualname}"
        instructions = list(dis.get_instructions(code))
        self.real, first = {}, None  # EXTENDED_ARG and what follows it are one instruction
        for i in instructions:
            first = i.offset if first is None else first
            if i.opname != "EXTENDED_ARG":
                self.real |= dict.fromkeys(range(first, i.offset + 1, 2), i.offset)
                first = None
        instructions = [i for i in instructions if i.opname != "EXTENDED_ARG"]
        self.after, self.line_of, before = {}, {}, None
        for i, following in zip(instructions, [*instructions[1:], None], strict=True):
            conditional = "_IF_" in i.opname or i.opname == "FOR_ITER"
            if conditional and before not in _OF_HANDLERS:
                self.after[i.offset] = following.offset
                self.line_of[i.offset] = i.positions.lineno
            before = i.opname if i.opname != "TO_BOOL" else before
        self.missing = {(line, None) for _, _, line in code.co_lines() if line}
        self.missing |= {(jump, jumps) for jump in self.after for jumps in (True, False)}

    def names(self):
        """The lines and branches that were not reached, for people."""
        for place, jumps in self.missing:
            if jumps is None:
                yield f"{self.where}:{place}"
            else:
                yield f"{self.where}:{self.line_of[place]} one way only"


class Branches:
    """The functions in some files, and what of them has not been run yet.

    Args:
        paths: of the files.
        leave_out: names of functions and classes in them that are not looked at.
    """

    def __init__(self, paths, leave_out=()):
        self._by_place = {}
        unknown = set(leave_out)
        for path in map(str, paths):
            whole = compile(Path(path).read_text(), path, "exec")
            unknown -= self._add(whole, set(leave_out))
        if unknown:
            raise ValueError(f"to be left out, but not there: {sorted(unknown)}")
        self._by_code = {}
        self._open = list(self._by_place.values())

    def _add(self, code, leave_out):
        """Take over the functions in some code; gives which were left out."""
        left_out = set()
        for inner in filter(inspect.iscode, code.co_consts):
            if inner.co_qualname in leave_out:
                left_out.add(inner.co_qualname)
                continue
            in_function = code.co_flags & inspect.CO_NEWLOCALS
            is_function = inner.co_flags & inspect.CO_NEWLOCALS
            at_import = inner.co_name.startswith("<") and inner.co_name != "<lambda>"
            if is_function and (in_function or not at_import):
                self._by_place[self._place(inner)] = _Code(inner)
            left_out |= self._add(inner, leave_out)
        return left_out

    @staticmethod
    def _place(code):
        return code.co_filename, code.co_qualname, code.co_firstlineno, code.co_code

    def missing(self):
        """What has not been run."""
        return sorted(name for held in self._by_place.values() for name in held.names())

    def _waiting(self):
        """Whether anything is missing yet."""
        self._open = [held for held in self._open if held.missing]
        return bool(self._open)

    def _held(self, code):
        if id(code) not in self._by_code:  # with the code itself, so that its id stays its own
            self._by_code[id(code)] = code, self._by_place.get(self._place(code))
        return self._by_code[id(code)][1]

    def watch(self, act):
        """Run `act`; gives how much it reached that nothing reached before.

        Functions of which all is known are not looked at any more, which saves most of the time.
        """
        if not self._waiting():
            act()
            return 0
        new = 0

        def trace(frame, event, arg):
            held = self._held(frame.f_code)
            if held is None or not held.missing:
                return None
            missing, real, after, at = held.missing, held.real, held.after, None
            missing.discard((frame.f_code.co_firstlineno, None))

            def local(frame, event, arg):
                nonlocal at, new
                if event == "opcode":
                    here = real[frame.f_lasti]
                    if at in after:
                        found = at, here != after[at]
                        if found in missing:
                            missing.discard(found)
                            new += 1
                    at = here
                elif event == "line":
                    found = frame.f_lineno, None
                    if found in missing:
                        missing.discard(found)
                        new += 1
                elif event == "exception":
                    at = None
                return local

            frame.f_trace = local  # Python 3.13 wants it before it gives opcodes
            frame.f_trace_opcodes = True
            return local

        sys._getframe().f_trace_opcodes = True  # Python 3.12 asks when tracing starts
        sys.settrace(trace)
        try:
            act()
        finally:
            sys.settrace(None)
        return new
