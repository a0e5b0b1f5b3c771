"""What operations ask of the array module exists in CuPy: a walk over their sources, no GPU needed."""

import ast
from pathlib import Path

import numpy as np
import pytest

import dptrain

ROOT = Path(dptrain.__file__).parent
#: Where raw arrays of any device are computed with.
FILES = sorted([*ROOT.glob("core/ops/*.py"), *ROOT.glob("core/*.py"), *ROOT.glob("optim/*.py")])

#: Names of NumPy that CuPy lacks, and why no GPU array meets them.
EXCEPTIONS = {
    "lib.mixins.NDArrayOperatorsMixin": "a base of the virtual devices' arrays",
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
            if not isinstance(node, ast.Attribute):
                continue
            parts, base = [node.attr], node.value
            while isinstance(base, ast.Attribute):
                parts.append(base.attr)
                base = base.value
            if not isinstance(base, ast.Name):
                continue
            parts = [base.id, *reversed(parts)]
            if parts[:2] == ["self", "xp"] and len(parts) > 2:
                parts = parts[1:]
            if parts[0] in ("np", "xp") and len(parts) > 1:
                yield ".".join(parts[1:]), f"{file.relative_to(ROOT)}:{node.lineno}"


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
