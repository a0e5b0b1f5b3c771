"""Every public class and function of `torch.nn` is here, with PyTorch's names, order and defaults.

What differs is in `EXCEPTIONS`, with the reason; an exception that is none any more fails too.
"""

import importlib
import inspect

import pytest

pytestmark = pytest.mark.oracle
torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")

NO_SUCH_DEVICE = "a device that is not supported"
TRACING = "part of PyTorch's tracing and override machinery"
LOW_PRECISION = "scaled 8-bit products of GPUs"
DEPRECATED = "a deprecated name that has no other use"
LAYOUT = "the layout of images is the kernels' business"
CHECKS = "a check of arguments before the call of PyTorch's C++ code"
PRIVATE = "a base class or function for PyTorch's own use"
FUSED = "a fused kernel that trades time for memory"
OLD_STATE = "reads state saved by PyTorch before 1.0"
FLASH = "registers implementations for GPUs"

EXCEPTIONS = {
    "nn.Container": DEPRECATED,
    "nn.Module.ipu": NO_SUCH_DEVICE,
    "nn.Module.mtia": NO_SUCH_DEVICE,
    "nn.Module.xpu": NO_SUCH_DEVICE,
    "nn.LinearCrossEntropyLoss": FUSED,
    "nn.LinearCrossEntropyOptions": FUSED,
    "nn.functional.ScalingType": LOW_PRECISION,
    "nn.functional.SwizzleType": LOW_PRECISION,
    "nn.functional.scaled_mm": LOW_PRECISION,
    "nn.functional.scaled_grouped_mm": LOW_PRECISION,
    "nn.functional.grouped_mm": LOW_PRECISION,
    "nn.functional.assert_int_or_pair": TRACING,
    **{f"nn.functional.has_torch_function{kind}": TRACING for kind in ("", "_unary", "_variadic")},
    **{
        f"nn.{layer}.{check}": CHECKS
        for layer in ("RNNBase", "RNN", "LSTM", "GRU")
        for check in (
            "check_forward_args",
            "check_hidden_size",
            "check_input",
            "get_expected_hidden_size",
            "permute_hidden",
        )
    },
    "nn.LSTM.get_expected_cell_size": CHECKS,
    "nn.MultiheadAttention.merge_masks": CHECKS,
    "nn.factory_kwargs": PRIVATE,
    "nn.parameter.UninitializedTensorMixin": PRIVATE,
    "nn.attention.SDPBackend.name": "an attribute of the members of Python's enumerations",
    "nn.attention.SDPBackend.value": "an attribute of the members of Python's enumerations",
    "nn.attention.activate_flash_attention_impl": FLASH,
    "nn.attention.current_flash_attention_impl": FLASH,
    "nn.attention.list_flash_attention_impls": FLASH,
    "nn.attention.register_flash_attention_impl": FLASH,
    "nn.attention.restore_flash_attention_impl": FLASH,
    "nn.utils.convert_conv2d_weight_memory_format": LAYOUT,
    "nn.utils.convert_conv3d_weight_memory_format": LAYOUT,
    "nn.utils.rnn.PackedSequence_": PRIVATE,
    "nn.utils.rnn.bind": PRIVATE,
    "nn.utils.spectral_norm.SpectralNormLoadStateDictPreHook": OLD_STATE,
    "nn.utils.spectral_norm.SpectralNormStateDictHook": OLD_STATE,
}
#: They live in the room of data parallelism, and are tested there.
ELSEWHERE = {"DataParallel", "SyncBatchNorm"}

PLACES = [
    "nn",
    "nn.functional",
    "nn.init",
    "nn.grad",
    "nn.attention",
    "nn.parameter",
    "nn.utils",
    "nn.utils.rnn",
    "nn.utils.parametrize",
    "nn.utils.parametrizations",
    "nn.utils.clip_grad",
    "nn.utils.convert_parameters",
    "nn.utils.fusion",
    "nn.utils.init",
    "nn.utils.stateless",
    "nn.utils.weight_norm",
    "nn.utils.spectral_norm",
    "nn.modules.lazy",
    "nn.modules.utils",
    "func",
]
TENSORS = {"Parameter", "Buffer", "UninitializedParameter", "UninitializedBuffer"}


def _module(package, place):
    return importlib.import_module(f"{package}.{place}")


def _own(place, module):
    """The public names that a file of PyTorch's defines, or that the package `nn` and its kin show."""
    for name in sorted(vars(module) if place != "func" else ()):
        value = getattr(module, name)
        home = getattr(value, "__module__", None) or ""
        listed = place in ("nn", "nn.utils", "nn.functional") and home.startswith("torch.nn")
        builtin = place == "nn.functional" and inspect.isbuiltin(value)
        if (
            name[0] != "_"
            and name not in ELSEWHERE
            and callable(value)
            and (home == module.__name__ or listed or builtin)
        ):
            yield name, value
    for name in ("functional_call", "stack_module_state") if place == "func" else ():
        yield name, getattr(module, name)


def _describe(value):
    """Names, kinds and defaults; None where Python cannot tell, or where anything is taken."""
    try:
        parameters = inspect.signature(value).parameters.values()
    except (TypeError, ValueError):
        return None
    kinds = {p.kind for p in parameters}
    if kinds == {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}:
        return None
    return [(p.name, p.kind.name, _default(p.default)) for p in parameters]


def _default(value):
    return getattr(value, "__name__", None) or repr(value).replace("torch", "dptrain")


def _differences(place):
    ours = _module("dptrain", place)
    for name, theirs in _own(place, _module("torch", place)):
        path = f"{place}.{name}"
        if not hasattr(ours, name):
            yield path, "missing"
            continue
        yield from _compare(path, getattr(ours, name), theirs)
        if inspect.isclass(theirs) and name not in TENSORS:
            for member, value in inspect.getmembers(theirs):
                inherited = theirs is not torch.nn.Module and value is getattr(
                    torch.nn.Module, member, None
                )
                if member[0] == "_" or member == "T_destination" or inherited:
                    continue
                if not hasattr(getattr(ours, name), member):
                    yield f"{path}.{member}", "missing"
                elif callable(value):
                    yield from _compare(
                        f"{path}.{member}", getattr(getattr(ours, name), member), value
                    )


def _compare(path, ours, theirs):
    wanted, found = _describe(theirs), _describe(ours)
    if wanted is not None and wanted != found:
        yield path, f"{found} instead of {wanted}"


@pytest.mark.parametrize("place", PLACES)
def test_names_order_and_defaults_are_pytorchs(place):
    found = dict(_differences(place))
    assert {path: what for path, what in found.items() if path not in EXCEPTIONS} == {}
    outdated = [
        path
        for path in EXCEPTIONS
        if path.startswith(f"{place}.")
        and path not in found
        and max((p for p in PLACES if path.startswith(f"{p}.")), key=len) == place
    ]
    assert outdated == []
