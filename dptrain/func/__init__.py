"""PyTorch's `torch.func`: derivatives and batching as functions of functions, and modules as functions."""

from dptrain.func.batching import vmap
from dptrain.func.jacobians import hessian, jacfwd, jacrev
from dptrain.func.norms import replace_all_batch_norm_modules_
from dptrain.func.transforms import grad, grad_and_value, jvp, linearize, vjp
from dptrain.nn.functional_call import functional_call, stack_module_state

__all__ = [
    "functional_call",
    "grad",
    "grad_and_value",
    "hessian",
    "jacfwd",
    "jacrev",
    "jvp",
    "linearize",
    "replace_all_batch_norm_modules_",
    "stack_module_state",
    "vjp",
    "vmap",
]
