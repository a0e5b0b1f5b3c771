"""Compiled kernels on disk: what is loaded, when it is compiled again, and who compiles."""

import ctypes
import itertools
import os
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("numba", reason="numba not installed")

from dptrain.core.kernels import code_files
from dptrain.core.kernels.compiled import kernel
from dptrain.core.kernels.pool import _write
from dptrain.core.kernels.python_calls import python_function
from dptrain.core.settings import kernel_folders

_counter = itertools.count()


@kernel
def _seven(args, share, shares, worker):
    args[0] = 7


def make():
    """Code under a name of its own: a process loads each name once."""
    return _seven.compile(f"seven{next(_counter)}-{os.getpid()}", {"real": None})


def keep(file, code):
    with code_files._one_process(file) as part:
        code_files.write(code, part, file)


def runs(address):
    memory = np.zeros(1, np.int64)
    form = ctypes.CFUNCTYPE(None, ctypes.c_int64, *[ctypes.c_int64] * 3)
    form(address)(memory.ctypes.data, 0, 1, 0)
    return memory[0] == 7


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Sets the folders of compiled code, which is one that is empty."""

    def use(*chosen):
        monkeypatch.setattr(code_files, "kernel_folders", lambda source: list(chosen))

    use(tmp_path)
    return use


def never():
    raise AssertionError("compiled again")


def test_code_is_compiled_once_and_found_from_then_on(folders, tmp_path):
    assert runs(code_files.address("seven", make))
    (file,) = tmp_path.glob("seven-*.code")
    keep(file, make())  # which this process has not loaded yet
    assert runs(code_files.address("seven", never))


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:-1],
        lambda data: data[:200],
        lambda data: data[:-100] + bytes([data[-100] ^ 1]) + data[-99:],
        lambda data: b"\xff" + data[1:],
    ],
    ids=["empty", "a byte short", "the beginning", "a bit turned", "no text"],
)
def test_a_damaged_file_is_not_loaded_and_made_again(folders, tmp_path, damage):
    code_files.address("seven", make)
    (file,) = tmp_path.glob("seven-*.code")
    file.write_bytes(damage(file.read_bytes()))
    assert code_files.read(file) is None
    assert runs(code_files.address("seven", make))
    assert code_files.read(file) is not None


def test_what_is_in_a_later_folder_is_found_before_anything_is_compiled(folders, tmp_path):
    folders(tmp_path / "shared")
    code_files.address("seven", make)
    (file,) = (tmp_path / "shared").glob("seven-*.code")
    code = make()
    keep(file, code)  # not loaded here yet
    folders(tmp_path / "own", tmp_path / "shared")
    assert runs(code_files.address("seven", never))


def test_code_goes_to_the_first_folder_that_takes_it_or_stays_in_memory(folders, tmp_path):
    (tmp_path / "file").write_text("in the place of a folder")
    folders(tmp_path / "file" / "a", tmp_path / "b")
    assert runs(code_files.address("seven", make))
    assert len(list((tmp_path / "b").glob("seven-*.code"))) == 1
    folders(tmp_path / "file" / "a")
    assert runs(code_files.address("seven", make))


def test_the_key_follows_sources_processor_and_compiler(tmp_path, monkeypatch):
    def key():
        code_files._key.cache_clear()
        return code_files._key()

    (tmp_path / "a.py").write_text("x = 1")
    (tmp_path / "b.py").write_text("y = 1")
    with monkeypatch.context() as patch:
        patch.setattr(code_files, "_HERE", tmp_path)
        keys = [key()]
        assert key() == keys[0]
        (tmp_path / "b.py").write_text("y = 2")
        keys.append(key())
        patch.setattr(code_files.llvm, "get_host_cpu_name", lambda: "another")
        keys.append(key())
        patch.setattr(code_files.llvmlite, "__version__", "0.0")
        keys.append(key())
        (tmp_path / "_version.py").write_text("compiler = 1")
        patch.setattr(
            code_files, "find_spec", lambda name: type("S", (), {"origin": tmp_path / "a.py"})
        )
        keys.append(key())
        assert len(set(keys)) == len(keys)
    code_files._key.cache_clear()


def test_code_that_needs_what_is_not_there_is_not_loaded():
    code = make()
    assert code_files.link(code._replace(needs=("dptrain_has_no_such_symbol",))) is None


def test_functions_that_python_calls_refuse_other_arguments(folders):
    def put(place, value):
        _write(place, value)

    put.__name__ = f"put{os.getpid()}"
    put = python_function(put)
    memory = np.zeros(1, np.int64)
    assert put(memory.ctypes.data, -5) is None
    assert memory[0] == -5
    with pytest.raises(TypeError):
        put("here", 1)
    with pytest.raises(OverflowError):
        put(memory.ctypes.data, 1 << 64)
    with pytest.raises(SystemError):
        put(memory.ctypes.data)
    assert memory[0] == -5


_STEP = """
import sys
import numpy as np
from dptrain.core.kernels import kernels_for, reference
from dptrain.core.kernels.compiled import Kernel

compile = Kernel.compile
def noted(self, name, names):
    print("compiled", name)
    return compile(self, name, names)
Kernel.compile = noted

x = np.linspace(-1, 1, 8192, dtype=np.float32)
assert np.array_equal(kernels_for(x).relu(x), reference.relu(x))
print("modules", *(m for m in sys.modules if m in ("numba", "scipy.linalg")))
print("families", *(m for m in sys.modules if m.startswith("dptrain.core.kernels.")))
"""


def start(folder):
    return subprocess.Popen(
        [sys.executable, "-c", _STEP],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "NUMBA_CACHE_DIR": str(folder)},
    )


def lines_of(process):
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    return out.splitlines()


def test_processes_that_start_together_compile_once_and_the_next_needs_no_compiler(tmp_path):
    together = [start(tmp_path) for _ in range(3)]
    lines = [line for process in together for line in lines_of(process)]
    compiled = [line for line in lines if line.startswith("compiled")]
    assert len(compiled) == len(set(compiled)) >= 2
    assert "modules numba" in lines  # and not SciPy
    modules, families = lines_of(start(tmp_path))
    assert modules == "modules"
    for other in ("convolution", "recurrent", "volume", "attention"):
        assert f"dptrain.core.kernels.{other}" not in families.split()


def test_folders_of_compiled_code(tmp_path, monkeypatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    assert kernel_folders(tmp_path) == [tmp_path / "dptrain"]
    monkeypatch.delenv("NUMBA_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    beside = tmp_path / "__pycache__"
    assert kernel_folders(tmp_path) == [beside, tmp_path / "cache" / "dptrain"]
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # who has no home
    assert kernel_folders(tmp_path) == [beside]
