"""Modules of PyTorch's from which scripts import names by path."""

from importlib import import_module

import pytest

import dptrain

PLACES = {
    "amp.autocast_mode": ["autocast", "custom_bwd", "custom_fwd"],
    "autograd.anomaly_mode": ["detect_anomaly", "set_detect_anomaly"],
    "autograd.forward_ad": ["dual_level", "make_dual", "unpack_dual"],
    "autograd.graph": ["GradientEdge", "Node", "increment_version", "save_on_cpu"],
    "autograd.grad_mode": ["enable_grad", "inference_mode", "no_grad", "set_grad_enabled"],
    "autograd.profiler": ["profile", "record_function"],
    "autograd.profiler_util": ["EventList", "FunctionEvent", "FunctionEventAvg"],
    "distributions.constraint_registry": ["biject_to", "transform_to"],
    "distributions.kl": ["kl_divergence", "register_kl"],
    "distributions.normal": ["Normal"],
    "distributions.categorical": ["Categorical"],
    "distributions.multivariate_normal": ["MultivariateNormal"],
    "distributions.transformed_distribution": ["TransformedDistribution"],
    "distributions.transforms": ["AffineTransform", "TanhTransform", "Transform"],
    "func": ["functional_call", "grad", "vmap"],
    "jit": ["export", "ignore", "is_scripting", "load", "save", "script", "trace", "unused"],
    "onnx": ["export", "is_in_onnx_export"],
    "profiler": ["profile", "record_function", "schedule", "tensorboard_trace_handler"],
    "utils.dlpack": ["from_dlpack", "to_dlpack"],
    "utils.hooks": ["RemovableHandle"],
    "utils.model_zoo": ["load_url"],
}


@pytest.mark.oracle
@pytest.mark.parametrize("place", PLACES)
def test_names_are_where_pytorch_has_them(place):
    pytest.importorskip("torch", reason="extra `oracle` is not installed")
    ours, theirs = (import_module(f"{lib}.{place}") for lib in ("dptrain", "torch"))
    for name in PLACES[place]:
        assert callable(getattr(theirs, name))
        assert callable(getattr(ours, name))


def test_memory_that_is_lent_as_a_capsule_is_shared():
    x = dptrain.ones(2)
    y = dptrain.utils.dlpack.from_dlpack(x)
    x[0] = 3
    assert y.tolist() == [3, 1]
    assert type(dptrain.utils.dlpack.to_dlpack(x)).__name__ == "PyCapsule"
