"""Under autocast every operation gives PyTorch's types (and values): the lists, asked of PyTorch itself."""

from itertools import product

import numpy as np
import pytest
from op_samples import SAMPLES
from test_op_dtypes import UNDETERMINED, attempt, to_ours
from test_ops import build

import dptrain
from dptrain import nn
from dptrain.core import autocast, autocast_policy
from dptrain.core.autocast_policy import policies
from dptrain.core.export import FUNCTIONS

torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
lists = pytest.importorskip("torch.testing._internal.autocast_test_lists")
pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("ignore::UserWarning")]

KINDS = ("float32", "bfloat16", "float16", "float64", "mixed")
TOLERANCE = {"bfloat16": 4e-2, "float16": 5e-3, "float32": 4e-2, "float64": 1e-4}
#: PyTorch rounds the last product of the one, and leaves a weighted form of the other out: float32 here.
IN_FLOAT32 = {"linalg.pinv", "nn.functional.l1_loss"}
#: Drawn anew by each library.
RANDOM = {"bernoulli", "multinomial", "normal", "poisson"}


def typed(kind):
    """A function that brings PyTorch's tensors to a type; "mixed" alternates between two."""
    alternate = iter([torch.float32, torch.bfloat16] * 50)

    def convert(tensor):
        if not tensor.is_floating_point():
            return tensor
        return tensor.to(next(alternate) if kind == "mixed" else getattr(torch, kind))

    return convert


def agree(found, reference, values=True):
    assert len(found) == len(reference)
    for a, r in zip(found, reference, strict=True):
        if not isinstance(r, torch.Tensor):
            assert a == r
            continue
        name = str(r.dtype).removeprefix("torch.")
        assert a.dtype.name == name
        assert tuple(a.shape) == tuple(r.shape)
        if values and r.is_floating_point():
            mine, theirs = a.detach().double().numpy(), r.detach().double().numpy()
            largest = np.abs(theirs[np.isfinite(theirs)]).max(initial=1.0)
            np.testing.assert_allclose(
                mine, theirs, rtol=TOLERANCE[name], atol=TOLERANCE[name] * largest
            )


def compare(name, kind, theirs, mine, kwargs, values):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        reference, refused = attempt(torch, torch.nn.functional, name, theirs, kwargs)
    with dptrain.autocast("cpu", dtype=dptrain.bfloat16):
        found, error = attempt(dptrain, nn.functional, name, mine, kwargs)
    if refused is not None:
        # Refused here too, or served: PyTorch leaves out many types for lack of a kernel.
        assert error is not None or "prioritize" not in str(refused) or not policies(name)
        return
    if name in IN_FLOAT32:
        assert [f.dtype for f in found] == [
            dptrain.float64 if kind == "float64" else dptrain.float32
        ]
        return
    if error is not None:
        assert kind == "mixed", error  # where both refuse other pairs of types than one
        with dptrain.autocast("cpu", enabled=False):
            assert attempt(dptrain, nn.functional, name, mine, kwargs)[1] is not None
        return
    agree(found, reference, values)


@pytest.mark.parametrize("name", SAMPLES)
def test_every_operation_has_pytorchs_types(name):
    # In one type alone, what no list has is tested without autocast already.
    kinds = KINDS if "cpu" in policies(name) else ("float32", "mixed")
    for call, kind in product(SAMPLES[name], kinds):
        to_type, to_type_again = typed(kind), typed(kind)

        def make(array):
            return torch.from_numpy(np.ascontiguousarray(array).reshape(array.shape).copy())

        theirs, kwargs = build(call, np.float64, lambda a, s, f=to_type: f(make(a)))
        mine, _ = build(call, np.float64, lambda a, s, f=to_type_again: to_ours(f(make(a)), torch))
        compare(name, kind, theirs, mine, kwargs, name not in UNDETERMINED | RANDOM)


def mapped(function, value):
    """`function` of every tensor in a (nested) value."""
    if isinstance(value, torch.Tensor):
        return function(value)
    if isinstance(value, dict):
        return {k: mapped(function, v) for k, v in value.items()}
    return (
        type(value)(mapped(function, v) for v in value) if type(value) in (list, tuple) else value
    )


def owner(root, functional, name):
    return functional if callable(getattr(functional, name, None)) else root


def listed(samples, group):
    """PyTorch's own calls for one of its lists that are possible here: (name, arguments, keyword arguments)."""
    for name, args, *more in getattr(samples, group):
        if hasattr(owner(dptrain, nn.functional, name), name):
            kwargs = more[0] if more and isinstance(more[0], dict) else {}
            yield name, args if isinstance(args, tuple) else (args,), kwargs


@pytest.mark.parametrize(
    "group",
    [
        "torch_16",
        "torch_fp32",
        "nn_16",
        "nn_fp32",
        "torch_need_autocast_promote",
        "torch_expect_builtin_promote",
    ],
)
def test_pytorchs_own_lists_give_its_types(group):
    compared = set()
    samples = lists.AutocastCPUTestLists(torch.device("cpu"))
    for (name, *call), kind in product(listed(samples, group), KINDS):
        args, kwargs = mapped(typed(kind), call)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            try:
                reference = getattr(owner(torch, torch.nn.functional, name), name)(*args, **kwargs)
            except RuntimeError:
                continue
        args, kwargs = mapped(lambda t: to_ours(t, torch), [args, kwargs])
        with dptrain.autocast("cpu", dtype=dptrain.bfloat16):
            found = getattr(owner(dptrain, nn.functional, name), name)(*args, **kwargs)
        agree([found], [reference])
        compared.add((name, kind))
    assert {kind for _, kind in compared} >= {"float32", "bfloat16"}


@pytest.mark.parametrize(
    "group", ["torch_fp16", "torch_fp32", "torch_need_autocast_promote", "nn_fp16", "nn_fp32"]
)
def test_the_list_for_cuda_gives_pytorchs_types(group, monkeypatch):
    """PyTorch computes the types alone, of tensors without memory; here the host plays the GPU."""
    fake = pytest.importorskip("torch._subclasses.fake_tensor")
    for module in (autocast, autocast_policy):
        monkeypatch.setattr(module, "device_type_of", lambda tensor: "cuda")
    compared = set()
    samples = lists.AutocastTestLists(torch.device("cpu"))
    for (name, *call), kind in product(listed(samples, group), ("float32", "float16", "float64")):
        args, kwargs = mapped(typed(kind), call)
        reference = None
        with fake.FakeTensorMode(allow_non_fake_inputs=True):
            torch.set_autocast_enabled("cuda", True)
            try:
                there = mapped(
                    lambda t: torch.empty(t.shape, dtype=t.dtype, device="cuda"), [args, kwargs]
                )
                reference = getattr(owner(torch, torch.nn.functional, name), name)(
                    *there[0], **there[1]
                )
            except (RuntimeError, NotImplementedError, TypeError, ValueError):
                continue
            finally:
                torch.set_autocast_enabled("cuda", False)
                torch.clear_autocast_cache()
        args, kwargs = mapped(lambda t: to_ours(t, torch), [args, kwargs])
        dptrain.set_autocast_enabled("cuda", True)
        try:
            found = getattr(owner(dptrain, nn.functional, name), name)(*args, **kwargs)
        finally:
            dptrain.set_autocast_enabled("cuda", False)
        agree([found], [reference], values=False)
        compared.add((name, kind))
    assert {kind for _, kind in compared} >= {"float32", "float16"}


@pytest.mark.parametrize("place", ["cpu", "cuda"])
def test_everything_that_pytorch_casts_and_that_is_here_is_in_the_table(place):
    have = {n.removeprefix("nn.functional.").replace(".", "_") for n in FUNCTIONS}
    have |= set(nn.functional.__all__)
    key = f"Autocast{place.upper()}"
    for full in torch._C._dispatch_get_all_op_names():
        if torch._C._dispatch_has_kernel_for_dispatch_key(full, key):
            name = full.removeprefix("aten::").partition(".")[0]
            assert name not in have or place in policies(name), name
