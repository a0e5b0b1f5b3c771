"""No driver of a kernel reads memory at a traced array: every way to an address leads to the recording's."""

import sys
from functools import partial
from importlib import import_module
from pkgutil import iter_modules
from types import FunctionType, MethodType, ModuleType, SimpleNamespace

import numpy as np
import pytest

import dptrain
from dptrain.compiler.arrays import Address
from dptrain.compiler.kernels import _Module, kernels_of
from dptrain.compiler.trace import Trace
from dptrain.core import kernels
from dptrain.core.capturing import recorders
from dptrain.core.kernels import memory, pool, reference

PACKAGE = kernels.__name__
MODULES = [f"{PACKAGE}.{m.name}" for m in iter_modules(kernels.__path__) if m.name != "cuda"]
#: What reads addresses, or takes them from an array that it is not given.
RAW = [memory.address, memory.addresses, memory.scratch, pool.run, pool.run_packed]


def names_of(module):
    """All names of what stands for a module, which makes each when it is asked for."""
    return {*vars(module._original), *getattr(module._original, "__all__", ())}


def globals_of(function):
    """Likewise a function's global names."""
    space = function.__globals__
    return [space[name] for name in list(getattr(space, "_originals", space))]


def inside(value):
    """What a value reaches without being called; functions of the pool are given no arrays."""
    if isinstance(value, FunctionType):
        yield from (value.__defaults__ or ())
        yield from (value.__kwdefaults__ or {}).values()
        yield from (cell.cell_contents for cell in value.__closure__ or ())
        if value.__module__.startswith(PACKAGE) and value.__module__ != pool.__name__:
            yield from globals_of(value)
    elif isinstance(value, partial):
        if getattr(value.func, "__module__", "") != kernels_of.__module__:
            yield from (value.func, *value.args, *value.keywords.values())
    elif isinstance(value, (staticmethod, classmethod, MethodType)):
        yield value.__func__
    elif isinstance(value, property):
        yield from (value.fget, value.fset, value.fdel)
    elif isinstance(value, _Module):
        yield from (getattr(value, name) for name in names_of(value))
    elif isinstance(value, SimpleNamespace):
        yield from vars(value).values()
    elif isinstance(value, type) and value.__bases__ == (object,):
        if value.__module__.startswith(PACKAGE):
            yield from vars(value).values()
    elif isinstance(value, (tuple, list)):
        yield from value
    elif hasattr(value, "cache_info"):
        yield value.__wrapped__


def reached(value):
    found, stack = {}, [value]
    while stack:
        value = stack.pop()
        if id(value) not in found:
            found[id(value)] = value
            stack += inside(value)
    return list(found.values())


def test_the_walk_reaches_the_drivers_of_every_family():
    native = import_module(f"{PACKAGE}.native")
    found = reached(kernels_of(Trace(kernels_of), native))
    names = {v.__name__ for v in found if isinstance(v, FunctionType)}
    assert {"conv", "im2col", "relu", "matmul", "_multiply", "recurrent", "describe"} <= names


@pytest.mark.parametrize("name", MODULES)
def test_every_way_to_an_address_is_the_recordings(name):
    module = import_module(name)
    for value in reached(kernels_of(Trace(kernels_of), module)):
        assert not any(value is raw for raw in RAW)
        if isinstance(value, FunctionType) and value.__module__.startswith(PACKAGE):
            of_pool = value.__module__ == pool.__name__
            assert of_pool or value.__globals__ is not vars(sys.modules[value.__module__])


def test_the_walk_finds_what_is_not_replaced():
    for raw in RAW:
        assert any(v is raw for v in reached(SimpleNamespace(**vars(kernels.gemm), raw=raw)))
    assert any(v is memory.address for v in reached(kernels.gemm.matmul))


SOURCE = """
from functools import cache, lru_cache, partial
import numpy as np
from dptrain.core.kernels import memory
from dptrain.core.kernels.memory import address, address as where

bound = partial(address)
def alias(x): return where(x)
def by_module(x): return memory.address(x)
def by_partial(x): return bound(x)
def by_default(x, of=address): return of(x)
def by_keyword(x, *, of=address): return of(x)
def _enclosed(of):
    def inner(x): return of(x)
    return inner
by_closure = _enclosed(address)
class _Plan:
    def __init__(self, size): self.table = np.zeros(size)
    def run(self, x): return address(x), address(self.table)
    @staticmethod
    def still(x): return address(x)
    @property
    def place(self): return address(self.table)
_of_class = lru_cache(8)(_Plan)
@cache
def _of_function(size): return (_Plan(size), [np.ones(size)])
def by_class(x): return _of_class(3).run(x)
def by_function(x):
    plan, (ones,) = _of_function(3)
    return plan.run(x), address(ones), plan.still(x), plan.place
"""


def flat(value):
    return [v for e in value for v in flat(e)] if isinstance(value, tuple) else [value]


def test_aliases_closures_defaults_and_cached_plans():
    made = ModuleType(f"{PACKAGE}.made_for_a_test")
    sys.modules[made.__name__] = made
    try:
        exec(SOURCE, vars(made))
        trace = Trace(kernels_of)
        twins = kernels_of(trace, made)
        x = trace.constant(np.arange(3.0))
        start = x.host.__array_interface__["data"][0]
        ways = [n for n in vars(made) if n == "alias" or n.startswith("by_")]
        assert len(ways) == 8
        for name in ways:
            found = flat(getattr(twins, name)(x))
            assert all(type(a) is Address for a in found), name
            assert found[0] == start
        assert twins.by_class(x) == twins.by_class(x)
        with pytest.raises(TypeError, match="is given an array"):
            twins._of_function(x)
    finally:
        del sys.modules[made.__name__]


def test_an_address_is_that_of_an_array():
    trace = Trace(kernels_of)
    for value in (trace.constant(np.zeros(3)), 3, None, [1.0]):
        with pytest.raises((AttributeError, TypeError)):
            memory.address(value)
    part = np.arange(6.0).view(np.recarray)[2:]
    assert memory.address(part) == part.__array_interface__["data"][0]


@pytest.mark.parametrize("is_open", [True, False])
def test_kernels_that_are_given_arrays_of_both_kinds(is_open):
    a, b = np.ones((16, 64), np.float32), np.ones((64, 64), np.float32)
    trace = Trace(kernels_of)
    traced = trace.constant(b)
    trace.open = is_open
    recorders[-1] = None  # of another thread
    try:
        product = kernels.kernels_for(a).matmul(a, traced)
        plain = kernels.kernels_for(a).matmul(a, b)
    finally:
        del recorders[-1]
    assert np.array_equal(product.host if is_open else product, plain)
    assert kernels.kernels_for(a) is kernels._kernels(a.dtype)


def attend(q, k, v):
    attention = dptrain.nn.functional.scaled_dot_product_attention
    return attention(q, k, v, is_causal=True).sum(0)


def test_attention_is_replayed():
    step = dptrain.compile(attend)
    for seed in range(6):
        draws = np.random.default_rng(seed).normal(size=(3, 2, 2, 48, 16)).astype(np.float32)
        given = [dptrain.tensor(d) for d in draws]
        assert dptrain.equal(step(*given), attend(*given))
    assert dptrain.compiler.explain(step).replays == 3


def test_functions_of_numpy_that_know_no_protocol_and_those_that_look_at_values():
    trace = Trace(kernels_of)
    twins = kernels_of(trace, reference)
    image = np.arange(50, dtype=np.float32).reshape(1, 5, 5, 2)
    rows, index = image.reshape(-1, 2), np.arange(25) % 4
    geometry = (3, 3, 1, 1, 1, 1, 1, 1)
    columns = twins.im2col(trace.constant(image), 5, 5, geometry)
    summed = twins.add_rows(trace.constant(rows), trace.constant(index), 6)
    assert np.array_equal(columns.host, reference.im2col(image, 5, 5, geometry))
    assert np.array_equal(summed.host, reference.add_rows(rows, index, 6))
    assert trace.reason is None
    assert trace.nodes[-1].form == "store"
