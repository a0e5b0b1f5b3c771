"""`torch.autograd.function`'s names."""

from dptrain.core.function import Function, FunctionCtx, once_differentiable

__all__ = ["Function", "FunctionCtx", "once_differentiable"]
