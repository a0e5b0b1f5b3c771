"""PyTorch's `torch.func`, as far as it concerns modules."""

from dptrain.nn.functional_call import functional_call, stack_module_state

__all__ = ["functional_call", "stack_module_state"]
