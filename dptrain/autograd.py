"""`torch.autograd`'s names: the reverse pass and the grad modes, which live in `dptrain.core`."""

from dptrain.core.engine import backward, grad
from dptrain.core.grad_mode import enable_grad, no_grad, set_grad_enabled

__all__ = ["backward", "enable_grad", "grad", "no_grad", "set_grad_enabled"]
