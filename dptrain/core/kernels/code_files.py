"""Machine code of kernels on disk: found, loaded, and made where it is not there, by one process at a time.

Owns: `address`, the places and names of the files, and who compiles when several processes start together.
Must not know: what is compiled.

A file holds a compiled object, which llvmlite loads in the tenth of a millisecond; numba is not even imported. Its
name holds a hash of everything that the code depends on: the sources of this folder, the compilers' versions, the
processor. Files lie in `NUMBA_CACHE_DIR`, else beside the source, else in the user's cache folder; where nothing
can be written, they are still read.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib.util import find_spec
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple

import llvmlite
import llvmlite.binding as llvm

from dptrain.core.settings import kernel_folders, settings

_HERE = Path(__file__).parent
#: What numba's code calls where a kernel raises an error or frees memory, which none does.
_NEVER_CALLED = ("numba_", "NRT_")


class Code(NamedTuple):
    """A compiled function.

    Attributes:
        entry: its name among the symbols of the object.
        needs: the symbols that are looked up in the process.
        object: the object file's contents.
    """

    entry: str
    needs: tuple[str, ...]
    object: bytes


def code_of(compiled: Any) -> Code:
    """What numba has made of a function (`numba.cfunc`)."""
    library = compiled._library
    module = library._final_module
    symbols = (*module.functions, *module.global_variables)
    needs = (s.name for s in symbols if s.is_declaration and not s.name.startswith("llvm."))
    return Code(compiled.native_name, tuple(needs), bytes(library._get_compiled_object()))


_lock = threading.RLock()


def _forget() -> None:
    """In a forked child: whoever held the lock stayed with the parent."""
    global _lock
    _lock = threading.RLock()


os.register_at_fork(after_in_child=_forget)


def address(name: str, make: Callable[[], Code]) -> int:
    """Where a function lies in this process.

    Args:
        name: under which its file is known; no other function of this folder has it.
        make: compiles it.
    """
    with _lock:
        file = f"{name}-{_key()}.code"
        folders = kernel_folders(_HERE)
        for folder in folders:
            found = _loaded(folder / file)
            if found is not None:
                return found
        for folder in folders:
            with _one_process(folder / file) as part:
                if part is not None:
                    # Another process may have made it since.
                    return _loaded(folder / file) or _compiled(make, part, folder / file)
        return _compiled(make)


def _loaded(path: Path) -> int | None:
    code = read(path)
    return None if code is None else link(code)


def _compiled(
    make: Callable[[], Code], part: FileIO | None = None, path: Path | None = None
) -> int:
    _announce(path and path.parent)
    code = make()
    if part is not None and path is not None:
        write(code, part, path)
    found = link(code)
    if found is None:
        raise RuntimeError(f"the code of {code.entry} needs what is not there: {code.needs}")
    return found


def read(path: Path) -> Code | None:
    """The code in a file; None if there is no such file, or what it holds is not what was written."""
    try:
        digest, _, body = path.read_bytes().partition(b"\n")
    except OSError:
        return None
    if digest.decode("ascii", "replace") != hashlib.sha256(body).hexdigest():
        return None
    symbols, _, content = body.partition(b"\n")
    entry, *needs = symbols.decode().split()
    return Code(entry, tuple(needs), content)


def write(code: Code, part: FileIO, path: Path) -> None:
    """Put code into a file, by way of `part`: all of it or, where the disk is full, nothing."""
    body = " ".join((code.entry, *code.needs)).encode() + b"\n" + code.object
    data = hashlib.sha256(body).hexdigest().encode() + b"\n" + body
    with suppress(OSError):
        part.truncate(0)
        if part.write(data) == len(data):
            os.replace(part.name, path)


def link(code: Code) -> int | None:
    """The address of loaded code; None if the process lacks what it needs."""
    engine = _engine()
    for name in code.needs:
        if llvm.address_of_symbol(name) is None:
            if not name.startswith(_NEVER_CALLED):
                return None
            llvm.add_symbol(name, llvm.address_of_symbol("abort"))
    engine.add_object_file(llvm.object_file.ObjectFileRef.from_data(code.object))
    engine.finalize_object()
    return engine.get_function_address(code.entry)


@cache
def _engine() -> Any:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine(
        codemodel="jitdefault", jit=True
    )
    return llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)


@cache
def _key() -> str:
    """Names everything that compiled code depends on, but its function."""
    digest = hashlib.sha256()
    for path in sorted(_HERE.glob("*.py")):
        digest.update(path.read_bytes())
    compiler: Any = find_spec("numba")
    digest.update(Path(compiler.origin).with_name("_version.py").read_bytes())
    processor = llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()
    facts = llvmlite.__version__, llvm.get_default_triple(), *processor, settings().compiler
    digest.update(repr(facts).encode())
    return digest.hexdigest()[:16]


@contextmanager
def _one_process(path: Path) -> Iterator[FileIO | None]:
    """Lets one process at a time make a file: gives what to write it into, None if nothing can be written there."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = FileIO(path.with_suffix(".part"), "a")
    except OSError:
        yield None
        return
    with part:
        with suppress(OSError):
            # On a file system without locks all compile, and the last one's file stays.
            fcntl.flock(part, fcntl.LOCK_EX)
        yield part


_announced: list[FileIO] = []  # open, and so locked, as long as this process


@cache
def _announce(folder: Path | None) -> None:
    """Tell people what they wait for; of processes that compile into a folder together, one does."""
    if folder is not None:
        try:
            _announced.append(FileIO(folder / "dptrain.lock", "a"))
            fcntl.flock(_announced[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        except OSError:
            pass  # a file system without locks
    print(
        "dptrain: compiling CPU kernels for this machine (once; some seconds per kind of layer)",
        file=sys.stderr,
        flush=True,
    )
