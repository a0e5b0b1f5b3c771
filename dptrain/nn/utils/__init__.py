"""PyTorch's `torch.nn.utils`: working on the gradients of many parameters at once."""

from dptrain.nn.utils import rnn
from dptrain.nn.utils.clip_grad import clip_grad_norm_, clip_grad_value_

__all__ = ["clip_grad_norm_", "clip_grad_value_", "rnn"]
