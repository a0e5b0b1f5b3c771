"""Every operation that PyTorch's own database of samples (OpInfo) knows and dptrain exports.

For each: values, dtypes and shapes in five types, gradients in float64, the method and the in-place
form, and the kinds of errors. What is not compared is in the tables below, each line with its reason.
"""

import warnings
from itertools import islice
from operator import attrgetter

import numpy as np
import pytest

import dptrain
import dptrain.linalg
import dptrain.nn.functional

torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
pytest.importorskip("expecttest", reason="extra `oracle` is not installed")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torch.testing._internal import common_utils
    from torch.testing._internal.common_methods_invocations import op_db
    from torch.testing._internal.opinfo import core as opinfo

# For each sample it looks through the stack, sources included, for a unittest class, of which there is none here:
# that took three quarters of the time.
common_utils.extract_test_fn = opinfo.extract_test_fn = lambda: None

pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("ignore")]

#: Samples of one operation in one type.
COUNT = 4
DTYPES = ("float32", "float64", "int64", "bool", "uint8", "bfloat16")

#: What is not as in PyTorch: operation, or "operation:aspect" (a type, "gradient", "error") -> why.
EXCEPTIONS = {
    "linalg.eigh": "the sign of an eigenvector is free",
    "linalg.svd": "the sign of a singular vector is free",
    "sort": "the order of equal elements is free",
    "argsort": "the order of equal elements is free",
    "topk": "which of equal elements is found is free",
    "kthvalue": "which of equal elements is found is free",
    "mode": "which of equal elements is found is free",
    "as_strided_scatter:gradient": "PyTorch's reaches the overwritten elements, not the kept ones",
    "grid_sampler_2d:bfloat16": "PyTorch rounds the coordinates; here the result",
    "grid_sampler_3d:bfloat16": "PyTorch rounds the coordinates; here the result",
    "nn.functional.conv_transpose2d:bfloat16": "PyTorch rounds the sum before the bias; here once",
    "nn.functional.conv_transpose3d:bfloat16": "PyTorch rounds the sum before the bias; here once",
    "nn.functional.grid_sample:bfloat16": "PyTorch rounds the coordinates; here the result",
    "nn.functional.interpolate.trilinear:bfloat16": "PyTorch rounds the weights; here the result",
    "matrix_exp:bfloat16": "PyTorch's is NaN for large elements",
    "matrix_exp:float32": "PyTorch's error is 1e-3 where elements cancel; here it is 1e-7",
    "nn.functional.linear_cross_entropy.chunked": "logits are not computed in chunks",
    "nn.functional.linear_cross_entropy.chunked_none": "logits are not computed in chunks",
    "addbmm:bfloat16": "PyTorch rounds after every batch; here once",
    "addr:bfloat16": "PyTorch rounds the scaled vectors; here once",
    "__radd__:error": "an unbound method called with a number",
    "__rand__:error": "an unbound method called with a number",
    "__rdiv__:error": "an unbound method called with a number",
    "__rmul__:error": "an unbound method called with a number",
    "__ror__:error": "an unbound method called with a number",
    "__rxor__:error": "an unbound method called with a number",
    "arange:error": "creation functions take no out=",
    "gather:error": "an argument that is also out= is converted twice; see test_out.py",
    "kthvalue:error": "an argument that is also out= is converted twice; see test_out.py",
    "masked_select:error": "an argument that is also out= is converted twice; see test_out.py",
    "take:error": "an argument that is also out= is converted twice; see test_out.py",
    "cat:error": "memory that cannot be resized does not exist here",
}

TOLERANCE = {"float32": 2e-4, "float64": 1e-8, "bfloat16": 2e-2}


class Unsupported(Exception):
    """A sample that dptrain has no types for (complex numbers, sparse layouts, no storage)."""


def full_name(op):
    return op.name + (f".{op.variant_test_name}" if op.variant_test_name else "")


def find(name, package):
    for root in (package, package.Tensor):
        try:
            return attrgetter(name)(root)
        except AttributeError:
            continue
    return None


OPS = [
    pytest.param(op, id=full_name(op)) for op in op_db if find(op.name, dptrain) and op.name != "to"
]


def is_listed(op, aspect):
    """Whether this aspect is not compared; an entry without an aspect is about all but errors."""
    names = (op.name, full_name(op))
    keys = [f"{name}:{aspect}" for name in names] + (list(names) if aspect != "error" else [])
    return any(key in EXCEPTIONS for key in keys)


def compared(aspect, has):
    """The operations that have something to compare in this aspect and are not in the table."""
    return [p for p in OPS if has(p.values[0]) and not is_listed(p.values[0], aspect)]


def test_exceptions_are_about_operations_that_exist():
    known = {name for p in OPS for name in (p.values[0].name, p.id)}
    assert {key.partition(":")[0] for key in EXCEPTIONS} <= known


def convert(value):
    """A sample's argument for dptrain."""
    if isinstance(value, torch.Tensor):
        if value.dtype.is_complex or value.layout != torch.strided or value.is_meta:
            raise Unsupported
        detached = value.detach()
        if value.dtype is torch.bfloat16:
            made = dptrain.from_numpy(detached.float().numpy()).to(dptrain.bfloat16)
        else:
            expanded = 0 in detached.stride()
            made = dptrain.from_numpy(detached.numpy() if expanded else detached.numpy().copy("K"))
        return made.detach().requires_grad_() if value.requires_grad else made
    if isinstance(value, (torch.dtype, torch.memory_format, torch.layout)):
        found = getattr(dptrain, str(value).removeprefix("torch."), None)
        if found is None:
            raise Unsupported
        return found
    if isinstance(value, torch.device):
        return str(value)
    if isinstance(value, (complex, torch.Generator)):
        raise Unsupported
    if isinstance(value, torch.Size):
        return dptrain.Size(value)
    if type(value) in (list, tuple):
        return type(value)(convert(v) for v in value)
    if isinstance(value, dict):
        return {k: convert(v) for k, v in value.items()}
    if callable(value):
        raise Unsupported
    return value


def copied(value):
    """A sample's argument for PyTorch, so that in-place forms do not reach the next call."""
    if isinstance(value, torch.Tensor) and not (value._base is not None and 0 in value.stride()):
        fresh = value.detach().clone(memory_format=torch.preserve_format)
        return fresh.requires_grad_(value.requires_grad)
    if type(value) in (list, tuple):
        return type(value)(copied(v) for v in value)
    if isinstance(value, dict):
        return {k: copied(v) for k, v in value.items()}
    return value


def tensors(value, kind):
    if isinstance(value, kind):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [t for v in value for t in tensors(v, kind)] if isinstance(value, (list, tuple)) else []


def as_numpy(tensor, package):
    if tensor.dtype is package.int64:
        return tensor.detach().numpy()
    wide = tensor.detach().to(package.float64)
    return wide.numpy(force=True) if package is torch else wide.numpy()


def difference(found, expected, name, dtype):
    """What differs, in words, or None."""
    if isinstance(expected, torch.Tensor):
        if expected.dtype.is_complex:
            return None
        if not isinstance(found, dptrain.Tensor):
            return f"got a {type(found).__name__}"
        for what in ("shape", "dtype", "requires_grad"):
            a, b = (str(getattr(t, what)).split(".")[-1] for t in (found, expected))
            if a != b:
                return f"{what} {a}, expected {b}"
        if "empty" in name:
            return None
        kinds = {dtype, str(expected.dtype).split(".")[-1]}
        near = max(TOLERANCE.get(k, 0) for k in kinds)
        a, b = as_numpy(found, dptrain), as_numpy(expected, torch)
        with np.errstate(all="ignore"):
            if np.allclose(a, b, rtol=near, atol=near, equal_nan=True):
                return None
        return f"values {a.ravel()[:4]}, expected {b.ravel()[:4]}"
    if isinstance(expected, (list, tuple)):
        if len(found) != len(expected):
            return f"{len(found)} results, expected {len(expected)}"
        parts = (difference(*pair, name, dtype) for pair in zip(found, expected, strict=True))
        return next((p for p in parts if p), None)
    if isinstance(expected, float):
        return None if np.isclose(found, expected, rtol=1e-3, equal_nan=True) else f"got {found}"
    return None if str(found).split(".")[-1] == str(expected).split(".")[-1] else f"got {found}"


def is_random(call):
    """Whether PyTorch draws from its random state."""
    before = torch.get_rng_state()
    call()
    return not torch.equal(before, torch.get_rng_state())


def samples(op, dtype, gradients=False):
    """(arguments, keywords) of the first samples, or nothing where PyTorch has not this type."""
    kind = getattr(torch, dtype)
    kinds = op.supported_backward_dtypes("cpu") if gradients else op.supported_dtypes("cpu")
    if kind not in kinds:
        return
    torch.manual_seed(0)
    for s in islice(op.sample_inputs("cpu", kind, requires_grad=gradients), COUNT):
        yield [s.input, *s.args], s.kwargs, s


def theirs(op):
    """PyTorch's public function where the database has a wrapper with an own meaning, else its own."""
    module = getattr(op.op, "__module__", "") or ""
    wrapped = getattr(op.op, "__name__", "") == "<lambda>" or "common_methods" in module
    return (find(op.name, torch) if wrapped else None) or op.op


def compare(call, mine, args, kwargs, op, dtype):
    """Run both; PyTorch's result and ours, or None where PyTorch refuses or the sample is not for us."""
    try:
        ours, keywords = convert(args), convert(kwargs)
        given, given_keywords = copied(args), copied(kwargs)
    except Unsupported:
        return None
    try:
        random = is_random(lambda: call(*copied(args), **copied(kwargs)))
        expected = call(*given, **given_keywords)
    except Exception:
        return None
    found = mine(*ours, **keywords)
    problem = None if random else difference(found, expected, op.name, dtype)
    assert problem is None, f"{dtype} {describe(args)} {describe(kwargs)}: {problem}"
    return found, expected, (ours, keywords), (given, given_keywords), random


def describe(value):
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype)[6:]}{list(value.shape)}"
    if isinstance(value, (list, tuple)):
        return "(" + ", ".join(describe(v) for v in value) + ")"
    if isinstance(value, dict):
        return ", ".join(f"{k}={describe(v)}" for k, v in value.items())
    return repr(value)[:40]


@pytest.mark.parametrize("op", OPS)
def test_values_dtypes_and_shapes(op):
    mine = find(op.name, dptrain)
    for dtype in DTYPES:
        if is_listed(op, dtype):
            continue
        for args, kwargs, _ in samples(op, dtype):
            compare(theirs(op), mine, args, kwargs, op, dtype)


@pytest.mark.parametrize("op", compared("gradient", lambda op: op.supports_autograd))
def test_gradients(op):
    mine = find(op.name, dptrain)
    for args, kwargs, _ in samples(op, "float64", gradients=True):
        run = compare(theirs(op), mine, args, kwargs, op, "float64")
        if run is None or run[-1]:
            continue
        found, expected, ours, given, _ = run
        pairs = []
        for result, leaves, package in ((expected, given, torch), (found, ours, dptrain)):
            outs = [t for t in tensors([result], package.Tensor) if t.requires_grad]
            wanted = [t for t in tensors([leaves], package.Tensor) if t.requires_grad]
            if not outs or not wanted:
                break
            grads = package.autograd.grad([o.sum() for o in outs], wanted, allow_unused=True)
            pairs.append(
                [
                    as_numpy(package.zeros_like(w) if g is None else g, package)
                    for g, w in zip(grads, wanted, strict=True)
                ]
            )
        for b, a in zip(*pairs, strict=True) if len(pairs) == 2 else ():
            np.testing.assert_allclose(
                a, b, rtol=1e-7, atol=1e-7, err_msg=f"{describe(args)} {describe(kwargs)}"
            )


def forms(op):
    """(name, PyTorch's method, ours) of the method and of the in-place method."""
    last = op.name.split(".")[-1]
    inplace = getattr(op.inplace_variant, "__name__", f"{last}_")
    for variant, name in ((op.method_variant, last), (op.inplace_variant, inplace)):
        if variant is not None and hasattr(torch.Tensor, name):
            yield name, getattr(torch.Tensor, name), getattr(dptrain.Tensor, name, None)


@pytest.mark.parametrize("op", OPS)
def test_methods_and_in_place_forms(op):
    for name, method, mine in forms(op):
        assert mine is not None, f"Tensor.{name} is missing"
        for dtype in ("float32", "int64"):
            if is_listed(op, dtype):
                continue
            for args, kwargs, sample in samples(op, dtype):
                if not isinstance(args[0], torch.Tensor):
                    continue
                if name.endswith("_") and sample.broadcasts_input:
                    continue
                run = compare(method, mine, args, kwargs, op, dtype)
                if run and name.endswith("_") and not name.startswith("__"):
                    assert run[0] is run[2][0][0], f"{name} does not return its tensor"


@pytest.mark.parametrize("op", compared("error", lambda op: op.error_inputs_func is not None))
def test_kinds_of_errors(op):
    mine, call = find(op.name, dptrain), find(op.name, torch)
    for error in islice(op.error_inputs("cpu"), 40):
        sample = error.sample_input
        args, kwargs = [sample.input, *sample.args], sample.kwargs
        try:
            ours, keywords = convert(args), convert(kwargs)
        except (Unsupported, ValueError):  # NumPy has at most 64 dimensions
            continue
        expected, found = (
            raised(f, a, k) for f, a, k in ((call, args, kwargs), (mine, ours, keywords))
        )
        if expected is not None:
            assert isinstance(found, type(expected)), (
                f"{describe(args)} {describe(kwargs)}: {found!r}, expected {expected!r}"
            )


def raised(function, args, kwargs):
    try:
        function(*args, **kwargs)
    except Exception as error:
        return error
    return None


def test_the_tables_name_operations():
    known = {n for p in OPS for n in (p.values[0].name, full_name(p.values[0]))}
    assert {key.partition(":")[0] for key in EXCEPTIONS} <= known
    assert len(OPS) > 400
