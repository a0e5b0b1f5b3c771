"""Loads files that were changed at random and looks for one that is not refused as it should be.

Run as a program, in a process of its own: `python fuzz.py SEEDS COUNT SEED`. SEEDS is a folder of real
files; those of `crafted_files` are changed too. Changed files that reach a branch of the parser that no file
reached before, or are refused in another place or load as another kind of value, are kept and changed further.
The process has little memory, and each file little time; whatever is not loaded has to be refused with an
exception that `dptrain.load` documents; the values of what is loaded are read. Names of a module that must
never be called are mixed in, and the interpreter reports imports, programs and files that are opened
meanwhile. At the end the lines and branches of the parser that no file reached are printed.
"""

import encodings.cp437  # zipfile's, for names; loaded with the first archive that has one
import encodings.raw_unicode_escape  # pickletools', for texts
import io
import pickle
import random
import resource
import signal
import sys
import types
import warnings
import zipfile
import zlib
from pathlib import Path

from branches import Branches
from crafted_files import crafted_files
from crafted_pickles import OWN_CLASSES

import dptrain
import dptrain.nn.parameter
from dptrain.serialization import (
    add_safe_globals,
    archive,
    get_unsafe_globals_in_checkpoint,
    load,
    load_file,
)
from dptrain.serialization.safetensors_file import unpack

DOCUMENTED = (pickle.UnpicklingError, RuntimeError, EOFError)
TIME_S, MEMORY = 5.0, 256 << 20
ROOM = Path(archive.__file__).parent
#: What a file is read by. The rest of the room writes files, or keeps settings.
PARSER = [
    ROOM / f"{name}.py"
    for name in (
        "archive", "files", "legacy", "names", "placing", "rebuild", "safe_globals", "safetensors_file",
        "scan", "source", "unpickler",
    )
]  # fmt: skip
#: What in these no file can reach, and why.
NOT_THE_PARSER = {
    "ArchiveWriter": "writes",
    "_zip64": "writes",
    "save": "writes",
    "_folder_name": "writes",
    "legacy_parts": "writes",
    "storage_global": "writes",
    "TorchGlobal": "writes",
    "torch_global": "writes",
    "__getattr__": "for the pickler, which writes",
    "state_of": "writes",
    "pack": "writes",
    "save_file": "writes",
    "_refuse_sharing": "writes",
    "load": "arguments",
    "_is_path": "arguments",
    "_opened": "arguments",
    "_check_readable": "arguments",
    "_load_safetensors": "arguments",
    "placing": "arguments; the functions that it gives are looked at by their own names",
    "_trusting_reader": "weights_only=False runs what the file says",
    "memory_formats": "for weights_only=False",
    "add_safe_globals": "settings",
    "_named": "settings",
    "get_safe_globals": "settings",
    "clear_safe_globals": "settings",
    "safe_globals": "settings",
    "built_in": "a table, made once",
    "value_globals": "a table, made once",
    "parameter_class": "found once",
    "StorageType": "in a table, made once",
    "_with": "of the table of opcodes",
    "_pushing": "of the table of opcodes",
}
#: What is put into pickles: names, calls of them, lengths and numbers at the edges.
PIECES = [
    b"ccanary\ncall\n)R",
    b"ccanary\nCalled\n)\x81",
    b"cos\nsystem\nU\x04true\x85R",
    b"cposix\nsystem\nU\x04true\x85R",
    b"c__builtin__\neval\nU\x0e__import__('canary')\x85R",
    b"cbuiltins\nexec\nU\x0dimport canary\x85R",
    b"cbuiltins\nbytearray\n\x8a\x05\x00\x00\x00\x00\x10\x85R",
    b"ctorch\nSize\n",
    b"ccollections\nOrderedDict\n)R",
    b"c__builtin__\nset\n",
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ctorch._utils\n_rebuild_parameter\n",
    b"ctorch\nDoubleStorage\n",
    b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f",
    b"\x8a\x08\x00\x00\x00\x00\x00\x00\x00\x80",
    b"J\xff\xff\xff\xff",
    b"X\xff\xff\xff\x7f",
    b"\x8b\xff\xff\xff\x7f",
    b")" + b"q\x00h\x00\x86" * 60,  # a tuple of itself twice, sixty times over
    b"(", b")", b"]", b"}", b"\x85", b"\x86", b"\x87", b"t", b"l", b"d", b"R", b"b", b"\x81", b"Q", b"s",
    b"u", b"a", b"e", b"0", b"2", b"h\x00", b"h\x01", b"h\x05", b"q\x00", b"N", b"\x88", b".",
    b"\x94", b"\x93", b"\x8f", b"\x90", b"\x91",
]  # fmt: skip


def canary():
    """A module whose functions must not be called."""
    module = types.ModuleType("canary")

    def call(*args):
        raise SystemExit("code from a file was run")

    module.call = module.Called = call
    sys.modules["canary"] = module


def watch(event, args):
    """Whatever a file could make the interpreter do that loading does not."""
    if WATCHING and event in WATCHED and args[0] not in EXPECTED:
        FOUND.append((event, str(args)[:200]))


WATCHED = {
    "exec", "import", "open", "os.exec", "os.posix_spawn", "os.system", "socket.connect",
    "subprocess.Popen",
}  # fmt: skip
WATCHING, FOUND = False, []
EXPECTED = {encodings.cp437.__name__}


def change_bytes(data, rng, others):
    """Some of: flipped and replaced bytes, cuts, repeats, pieces put in, an end of another file."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        at, kind = rng.randrange(len(out) + 1), rng.randrange(8)
        if kind == 0 and out:
            out[at - 1] ^= 1 << rng.randrange(8)
        elif kind == 1 and out:
            out[at - 1] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        elif kind == 2:
            del out[at : at + rng.choice((1, 2, 4, 8, 40))]
        elif kind == 3:
            out[at:at] = out[at : at + rng.choice((1, 4, 16, 200))] * rng.choice((1, 1, 2, 50))
        elif kind == 4:
            out[at:at] = rng.choice(PIECES)
        elif kind == 5:
            out[at : at + 4] = rng.choice(
                (bytes(4), b"\xff" * 4, b"\xff\xff\xff\x7f", b"\0\0\0\x80")
            )
        elif kind == 6:
            other = rng.choice(others)
            start = rng.randrange(len(other) + 1)
            out[at : at + rng.choice((0, 20))] = other[start : start + rng.choice((5, 40, 400))]
        else:
            del out[at:]
            out += rng.choice(others)[at:]
    return bytes(out)


def records_of(data):
    with zipfile.ZipFile(io.BytesIO(data)) as old:
        return [(e.filename.partition("/")[2], old.read(e)) for e in old.infolist()]


def pack_again(records):
    """The records as a true archive, so that changes inside are met by more than a checksum."""
    out = io.BytesIO()
    writer = archive.ArchiveWriter(out, "archive")
    for name, content in records:
        if name not in ("version", ".data/serialization_id"):
            writer.write(name, content)
    writer.finish()
    return out.getvalue()


def change_archive(data, rng, others):
    records = records_of(data)
    at = rng.randrange(len(records)) if rng.random() < 0.15 else 0
    name, content = records[at]
    records[at] = name, change_bytes(content, rng, others)
    if rng.random() < 0.05:
        records.append(rng.choice(records))
    return pack_again(records)


def change(data, rng, seeds, pickles):
    """One changed file."""
    if data.startswith(archive.SIGNATURE) and rng.random() < 0.8:
        try:
            return change_archive(data, rng, pickles)
        except (
            zipfile.BadZipFile,
            NotImplementedError,
            ValueError,
            EOFError,
            OSError,
            zlib.error,
            RuntimeError,
            IndexError,
        ):
            pass  # no archive any more
    return change_bytes(data, rng, seeds)


def touch(value):
    """Read all that was loaded: a tensor over foreign memory would crash here."""
    waiting, seen = [value], set()
    while waiting:
        part = waiting.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        if isinstance(part, dptrain.Tensor):
            if part.numel() <= 1 << 16:
                part.numpy(force=True).tobytes()
            elif min(part.shape):
                part[(-1,) * part.dim()].item()
        elif isinstance(part, dict):
            waiting += part.values()
        elif isinstance(part, (list, tuple, set)):
            waiting += part


class TooLongError(BaseException):
    """A file took more than its time."""


def out_of_time(signum, frame):
    raise TooLongError


class WithoutReadinto:
    """A file that has only what `load` asks for."""

    def __init__(self, data):
        file = io.BytesIO(data)
        self.read, self.readline, self.seek, self.tell = (
            file.read,
            file.readline,
            file.seek,
            file.tell,
        )


def on_disk(data, ending):
    path = SCRATCH / f"now{ending}"
    EXPECTED.add(str(path))
    path.write_bytes(data)
    return str(path)


#: The ways in which a file is read.
WAYS = {
    "plain": lambda data: load(io.BytesIO(data)),
    "trickling": lambda data: load(WithoutReadinto(data)),
    "placed": lambda data: load(
        io.BytesIO(data), map_location=lambda held, tag: held if tag == "cpu" else None
    ),
    "placed by a table": lambda data: load(io.BytesIO(data), map_location={"cpu": "cpu:1"}),
    "bytes": lambda data: load(io.BytesIO(data), encoding="bytes"),
    "mapped": lambda data: load(on_disk(data, ".pt"), mmap=True),
    "names": lambda data: get_unsafe_globals_in_checkpoint(io.BytesIO(data)),
}
SAFETENSORS_WAYS = {
    "safetensors": unpack,
    "safetensors file": lambda data: load_file(on_disk(data, ".safetensors")),
}


def ways(data):
    return SAFETENSORS_WAYS if data[8:9] == b"{" else WAYS


def attempt(read, data):
    """Load one file. Gives whether it was loaded, and how it went; raises what is no documented refusal."""
    global WATCHING
    WATCHING = True
    signal.setitimer(signal.ITIMER_REAL, TIME_S)
    try:
        found = read(data)
    except (*DOCUMENTED, ValueError) as error:
        if isinstance(error, ValueError) and not str(error).startswith(KNOWN_VALUE_ERRORS):
            raise
        return False, places_of(error)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        WATCHING = False
    touch(found)
    return True, kinds_of(found)


KNOWN_VALUE_ERRORS = "Unknown endianness", "Expected input to be a checkpoint"


def places_of(error):
    """Where a file was refused, and what that was answer to."""
    places = []
    while error is not None:
        trace = error.__traceback__
        while trace is not None:
            places.append((trace.tb_frame.f_code.co_name, trace.tb_lineno))
            trace = trace.tb_next
        error = error.__cause__
    return tuple(places)


def kinds_of(value):
    """The types in a value, two levels deep."""
    inside = value.values() if isinstance(value, dict) else value
    many = isinstance(value, (dict, list, tuple, set))
    return type(value), frozenset(map(type, inside)) if many else None


class Trial:
    """Loads files, and remembers what was seen.

    Attributes:
        branches: what of the parser was run.
        loaded: how many files were.
    """

    def __init__(self):
        self.branches = Branches(PARSER, NOT_THE_PARSER)
        self.seen, self.loaded = set(), 0

    def __call__(self, read, data, number):
        """Load one file; gives whether it did something new."""
        outcome = []
        try:
            new = self.branches.watch(lambda: outcome.append(attempt(read, data)))
        except BaseException as error:
            self.fail(data, f"{number}: {type(error).__name__}: {str(error)[:300]}", error)
        if FOUND:
            self.fail(data, f"{number}: {FOUND}", None)
        [(loaded, how)] = outcome
        self.loaded += loaded
        new = new or how not in self.seen
        self.seen.add(how)
        return new

    def fail(self, data, text, error):
        (SCRATCH / "failure.bin").write_bytes(data)
        raise SystemExit(f"file {text}") from error


def main(folder, count, seed):
    global SCRATCH
    rng = random.Random(seed)
    real = [p.read_bytes() for p in sorted(Path(folder).glob("*.*"))]
    SCRATCH = Path(folder, "scratch")
    SCRATCH.mkdir(exist_ok=True)
    crafted = crafted_files()
    pickles = [records_of(s)[0][1] if s.startswith(archive.SIGNATURE) else s for s in real]
    warnings.simplefilter("ignore")
    add_safe_globals(OWN_CLASSES)
    sys.addaudithook(watch)
    canary()
    signal.signal(signal.SIGALRM, out_of_time)
    trial = Trial()
    for data in real:
        next(iter(ways(data).values()))(data)  # has to load
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    for name, data in [*crafted.items(), *(("real", data) for data in real)]:
        for way, read in ways(data).items():
            trial(read, data, f"{name}, {way}")
    trial.loaded = 0
    pool = [*real, *crafted.values()]
    kept = []
    for number in range(count):
        base = rng.choice(rng.choice((real, pool, kept or pool)))
        data = change(base, rng, real, pickles)
        read = rng.choice([*ways(data).values()])
        if trial(read, data, number) and len(data) < 100_000:
            kept.append(data)
    assert "torch" not in sys.modules
    print(f"files={count} loaded={trial.loaded} kept={len(kept)}")
    for missing in trial.branches.missing():
        print(missing)


SCRATCH = Path()

if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
