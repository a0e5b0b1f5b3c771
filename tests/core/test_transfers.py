"""Operations compute where their arrays live: none of them copies a device's array to the host.

Shown on a virtual host device, whose arrays leave it only through `core.arrays.to_host` and through
Python's own conversions; both are watched.
"""

import numpy as np
import pytest
from op_samples import SAMPLES
from test_ops import as_list, build, flat, resolve

import dptrain
from dptrain.core import device as device_module
from dptrain.core.arrays import to_host
from dptrain.core.host_array import HostArray
from dptrain.core.settings import settings
from dptrain.core.tensor import wrap
from dptrain.core.transfers import Transfer, watch

#: Names whose job it is to bring values to the host.
LEAVES = {
    *("Tensor.cpu", "Tensor.numpy", "Tensor.item", "Tensor.tolist", "Tensor.to"),
    "poisson",  # the host draws, by a method whose number of draws depends on the rates
}


@pytest.fixture
def two_devices(monkeypatch):
    """The host as `cpu:0` and `cpu:1`."""
    monkeypatch.setenv("DPTRAIN_HOST_DEVICES", "2")
    caches = (settings, device_module.host_device, device_module.host_device_count)
    for cached in caches:
        cached.cache_clear()
    yield
    monkeypatch.undo()
    for cached in caches:
        cached.cache_clear()


def remote(array, arg, grad=False):
    tensor = wrap(HostArray(np.array(array), 1))
    return tensor.requires_grad_() if grad and arg.kind == "x" else tensor


def test_the_watch_sees_copies_and_reads(two_devices):
    x = dptrain.arange(6.0).reshape(2, 3).to("cpu:1")
    with watch() as seen:
        assert float(x.sum()) == 15.0
        assert bool((x[0] == 0).any())
        x.cpu()
        repr(x)
    assert {t.kind for t in seen} == {"copy", "read"}
    assert Transfer("copy", (2, 3)) in seen
    with watch() as seen:
        (x @ x.T).relu().sum()
    assert seen == []
    to_host(x._array)
    assert seen == []  # over


def test_no_operation_copies_an_array_to_the_host(two_devices):
    copies, ran = {}, 0
    for name, calls in SAMPLES.items():
        for n, call in enumerate(calls[:2]):  # the others differ in options
            args, kwargs = build(call, np.float32, lambda a, s: remote(a, s, grad=True))
            with watch() as seen:
                try:
                    outs = as_list(resolve(name, dptrain, dptrain.nn.functional)(*args, **kwargs))
                    wanted = [o for o in outs if getattr(o, "requires_grad", False)]
                    if wanted:
                        sum(o.sum() for o in wanted).backward()
                except (TypeError, RuntimeError, AttributeError):
                    continue  # does not run there (yet): nothing can be said
            ran += 1
            found = [t for t in seen if t.kind == "copy"]
            if found and name not in LEAVES:
                copies[f"{name}-{n}"] = found
            for leaf in flat(args):
                if getattr(leaf, "grad", None) is not None:
                    assert leaf.grad.device == leaf.device, name
    assert copies == {}
    assert ran > 0.5 * sum(len(calls[:2]) for calls in SAMPLES.values())
