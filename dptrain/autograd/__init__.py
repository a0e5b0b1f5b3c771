"""`torch.autograd`'s names: the reverse pass and what belongs to it, which live in `dptrain.core`."""

from dptrain.autograd import forward_ad, functional, graph, profiler, profiler_util
from dptrain.autograd.variable import Variable
from dptrain.core.anomaly import detect_anomaly, set_detect_anomaly
from dptrain.core.engine import backward, grad
from dptrain.core.function import Function, FunctionCtx, once_differentiable
from dptrain.core.grad_mode import (
    enable_grad,
    inference_mode,
    no_grad,
    set_grad_enabled,
)
from dptrain.core.gradcheck import GradcheckError, gradcheck, gradgradcheck

__all__ = [
    "Function",
    "FunctionCtx",
    "GradcheckError",
    "Variable",
    "backward",
    "detect_anomaly",
    "enable_grad",
    "forward_ad",
    "functional",
    "grad",
    "gradcheck",
    "gradgradcheck",
    "graph",
    "inference_mode",
    "no_grad",
    "once_differentiable",
    "profiler",
    "profiler_util",
    "set_detect_anomaly",
    "set_grad_enabled",
]
