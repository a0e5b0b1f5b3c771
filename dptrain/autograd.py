"""`torch.autograd`'s names: the reverse pass and the grad modes, which live in `dptrain.core`."""

from dptrain.core.engine import backward, grad
from dptrain.core.grad_mode import enable_grad, no_grad, set_grad_enabled
from dptrain.core.gradcheck import GradcheckError, gradcheck, gradgradcheck

__all__ = [
    "GradcheckError",
    "backward",
    "enable_grad",
    "grad",
    "gradcheck",
    "gradgradcheck",
    "no_grad",
    "set_grad_enabled",
]
