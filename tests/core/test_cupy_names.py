"""What operations ask of the array module exists in CuPy: a walk over their sources, no GPU needed.

Names, keywords, and methods of ufuncs. The parameters of CuPy's functions are those of `cupy_signatures`.
"""

import ast
import inspect
import re
from pathlib import Path

import numpy as np
import pytest
from cupy_signatures import FUNCTIONS, METHODS
from fake_cupy import UFUNC_METHODS

import dptrain
from dptrain.core import cupy_functions

ROOT = Path(dptrain.__file__).parent
#: Where raw arrays of any device are computed with.
ANY_DEVICE = (
    *("core/*.py", "core/ops/*.py", "core/kernels/reference*.py", "core/kernels/cuda/*.py"),
    *("optim/**/*.py", "nn/**/*.py", "distributions/*.py", "amp/*.py", "autograd/*.py"),
)
FILES = sorted(file for pattern in ANY_DEVICE for file in ROOT.glob(pattern))

#: Names of NumPy that CuPy lacks, and why no GPU array meets them.
EXCEPTIONS = {
    "lib.mixins.NDArrayOperatorsMixin": "a base of the virtual devices' arrays",
    "polynomial.legendre": "the place of what follows",
    "polynomial.legendre.leggauss": "numbers of a rule, made once on the host",
}

#: What is asked of NumPy on the host alone: types, errors, single values.
HOST_ONLY = {
    "errstate",
    "random",
    "typing",
    "integer",
    "number",
    "intp",
}


def names_used():
    """(dotted name, place) of every `np.name`, `xp.name`, `self.xp.name` and import from NumPy."""
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("numpy."):
                module = node.module.removeprefix("numpy.")
                for alias in node.names:
                    yield f"{module}.{alias.name}", f"{file.relative_to(ROOT)}:{node.lineno}"
            if isinstance(node, ast.Attribute) and (name := dotted(node)):
                yield name.partition(".")[2], f"{file.relative_to(ROOT)}:{node.lineno}"


def dotted(node):
    """`np.a.b` or `xp.a.b` of an attribute of an array module, however that is come by; else None."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.insert(0, node.attr)
        node = node.value
    if isinstance(node, ast.Call) and re.match(r"namespace_|common_n", ast.unparse(node.func)):
        parts.insert(0, "xp")
    elif isinstance(node, ast.Name):
        parts.insert(0, node.id)
    if parts[:2] == ["self", "xp"]:
        parts = parts[1:]
    return ".".join(parts) if len(parts) > 1 and parts[0] in ("np", "xp") else None


def calls():
    """(the node of a call of an attribute, its keywords, file, place) of every source."""
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                keywords = {k.arg for k in node.keywords if k.arg}
                name = str(file.relative_to(ROOT))
                yield node.func, keywords, name, f"{name}:{node.lineno}"


def find(module, dotted):
    for part in dotted.split("."):
        module = getattr(module, part, None)
    return module


def test_the_walk_finds_names_and_sees_what_is_missing():
    found = {name for name, _ in names_used()}
    assert {"where", "zeros", "ascontiguousarray", "linalg.inv"} <= found
    assert find(np, "linalg.inv") is np.linalg.inv
    assert find(np, "no.such") is None


def test_cupy_has_every_name_that_operations_use():
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
    missing = {}
    for name, where in names_used():
        if name.split(".")[0] not in HOST_ONLY and find(cupy, name) is None:
            missing.setdefault(name, []).append(where)
    unknown = {k: v for k, v in missing.items() if k not in EXCEPTIONS}
    assert unknown == {}
    stale = EXCEPTIONS.keys() - missing.keys()
    assert not stale, "no longer missing or no longer used"


#: (file, name) of calls to which NumPy's arrays alone come: `linear` asks first, `add_rows` has a CUDA twin.
HOST_CALLS = {("core/kernels/reference.py", "add")}

#: Keywords of array methods that NumPy's have and CuPy's lack.
NUMPYS_ALONE = {"initial", "where"}


def supplied(name):
    """Parameters that a function has on a GPU: CuPy's, and those of what stands in for it."""
    ours = cupy_functions.FUNCTIONS.get(name)
    return {*FUNCTIONS[name].split(), *(inspect.signature(ours).parameters if ours else ())}


def test_every_keyword_is_one_of_cupys():
    unknown, seen = {}, set()
    for function, keywords, file, where in calls():
        name = (dotted(function) or "").partition(".")[2]
        if name in FUNCTIONS and "**" not in FUNCTIONS[name]:
            # Standing in only for those who ask the array's own module.
            ours = dotted(function).startswith("xp.")
            wrong = keywords - (supplied(name) if ours else set(FUNCTIONS[name].split()))
        elif isinstance(find(np, name) if name else None, np.ufunc):
            wrong = keywords - {"out", "where", "dtype", "casting"}
        elif not name and function.attr in METHODS:
            wrong = keywords & NUMPYS_ALONE
        else:
            continue
        seen |= keywords
        if wrong and (file, name) not in HOST_CALLS:
            unknown[where] = name or function.attr, wrong
    assert {"axis", "dtype", "hermitian", "writeable"} <= seen
    assert unknown == {}


def test_methods_of_ufuncs_are_asked_of_the_arrays_module_and_are_there():
    found, wrong = set(), {}
    for function, _, file, where in calls():
        module, name, method = (*(dotted(function) or "").split("."), "", "")[:3]
        if not isinstance(getattr(np, name, None), np.ufunc) or not method:
            continue
        found.add((name, method))
        there = method in ("at", "accumulate") and name in cupy_functions.UFUNCS
        if (file, name) not in HOST_CALLS and not (module == "xp" and there):
            wrong[where] = f"{module}.{name}.{method}"
    assert {("add", "at"), ("logaddexp", "accumulate")} <= found
    assert wrong == {}


def test_the_parameters_that_are_known_are_cupys():
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
    marks = {inspect.Parameter.VAR_KEYWORD: "**", inspect.Parameter.VAR_POSITIONAL: ""}
    for name, parameters in FUNCTIONS.items():
        function = find(cupy, name)
        assert function is not None, name
        if type(function).__name__ != "ufunc":
            given = inspect.signature(function).parameters.values()
            names = " ".join(marks.get(p.kind, p.name) for p in given)
            assert names.split() == parameters.split(), name
    for name, parameters in METHODS.items():
        method = getattr(cupy.ndarray, name)
        first = (method.__doc__ or "").partition("\n")[0]  # where Cython writes the signature
        written = re.search(rf"\.{name}\(self(.*)\)", first)
        if written is not None:
            words = [
                re.sub("=.*", "", w).split()[-1].strip("*") for w in written[1].split(", ")[1:]
            ]
            assert words == parameters.split(), name


def test_the_methods_of_ufuncs_that_the_stand_in_has_are_cupys():
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
    ufuncs = {n for n in dir(cupy) if type(getattr(cupy, n)) is type(cupy.add) and n in dir(np)}
    assert {n for n in ufuncs if getattr(cupy, n)._scatter_op} == UFUNC_METHODS["at"]
    for method in ("accumulate", "reduce"):
        for name in ufuncs & {"add", "multiply", "maximum", "minimum", "logaddexp"}:
            try:
                getattr(getattr(cupy, name), method)(None)
            except NotImplementedError:
                assert name not in UFUNC_METHODS[method]
            except AttributeError:  # it goes on to look at the array
                assert name in UFUNC_METHODS[method]
