"""Loads files that were changed at random and looks for one that is not refused as it should be.

Run as a program, in a process of its own: `python fuzz.py SEEDS COUNT SEED`. SEEDS is a folder of real
files. Changed files that reach lines of `dptrain.serialization` that no file reached before are kept and
changed further. The process has little memory, and each file little time; whatever is not loaded has to be
refused with an exception that `dptrain.load` documents; the values of what is loaded are read. Names of a
module that must never be called are mixed in, and the interpreter reports imports, programs and files that
are opened meanwhile.
"""

import encodings.cp437  # zipfile's, for names; loaded with the first archive that has one
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

import dptrain
import dptrain.nn.parameter
from dptrain.serialization import archive, load
from dptrain.serialization.safetensors_file import unpack

DOCUMENTED = (pickle.UnpicklingError, RuntimeError, EOFError)
TIME_S, MEMORY = 5.0, 256 << 20
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
    if WATCHING and (
        event
        in (
            "exec",
            "os.system",
            "os.exec",
            "os.posix_spawn",
            "subprocess.Popen",
            "socket.connect",
            "open",
        )
        or (event == "import" and args[0] not in EXPECTED)
    ):
        FOUND.append((event, str(args)[:200]))


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


def lines_reached(act, reached):
    """Run, and note the lines of `dptrain.serialization`; gives how many were new.

    Functions of which all lines were reached are not watched any more, which saves most of the time.
    """
    before = len(reached)

    def local(frame, event, arg):
        reached.add((frame.f_code, frame.f_lineno))
        return local

    def trace(frame, event, arg):
        code = frame.f_code
        if code not in LINES:
            inside = "/dptrain/serialization/" in code.co_filename
            LINES[code] = {(code, n) for _, _, n in code.co_lines() if n} if inside else set()
        waiting = LINES[code]
        waiting -= reached
        return local if waiting else None

    sys.settrace(trace)
    try:
        act()
    finally:
        sys.settrace(None)
    return len(reached) - before


LINES = {}


class TooLongError(BaseException):
    """A file took more than its time."""


def out_of_time(signum, frame):
    raise TooLongError


def attempt(data):
    """Load one file. Gives whether it was loaded, or raises what is no documented refusal."""
    global WATCHING
    WATCHING = True
    signal.setitimer(signal.ITIMER_REAL, TIME_S)
    try:
        found = unpack(data) if data[8:9] == b"{" else load(io.BytesIO(data))
    except DOCUMENTED:
        return False
    except ValueError as error:
        if "Unknown endianness" not in str(error):
            raise
        return False
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        WATCHING = False
    touch(found)
    return True


def main(folder, count, seed):
    rng = random.Random(seed)
    seeds = [p.read_bytes() for p in sorted(Path(folder).iterdir())]
    pickles = [records_of(s)[0][1] if s.startswith(archive.SIGNATURE) else s for s in seeds]
    reached, pool, loaded = set(), list(seeds), 0
    warnings.simplefilter("ignore")
    for data in seeds:
        assert attempt(data), "a seed does not load"
        lines_reached(lambda data=data: attempt(data), reached)
    sys.addaudithook(watch)
    canary()
    signal.signal(signal.SIGALRM, out_of_time)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    for number in range(count):
        base = rng.choice(pool if rng.random() < 0.7 else seeds)
        data = change(base, rng, seeds, pickles)
        outcome = []
        try:
            new = lines_reached(lambda data=data, o=outcome: o.append(attempt(data)), reached)
        except BaseException as error:
            Path(folder, "failure.bin").write_bytes(data)
            raise SystemExit(
                f"file {number}: {type(error).__name__}: {str(error)[:300]}"
            ) from error
        if FOUND:
            Path(folder, "failure.bin").write_bytes(data)
            raise SystemExit(f"file {number}: {FOUND}")
        loaded += outcome[0]
        if new and len(data) < 100_000:
            pool.append(data)
    assert "torch" not in sys.modules
    print(f"files={count} loaded={loaded} kept={len(pool) - len(seeds)} lines={len(reached)}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
