"""Flags of the CUDA backend. They may be set as in PyTorch; on the CPU nothing reads them."""

from dptrain.core.cuda import probe
from dptrain.core.kernels.cuda import cudnn_attention as _attention
from dptrain.core.kernels.cuda.gemm import flags as matmul

__all__ = ["cudnn_sdp_enabled", "enable_cudnn_sdp", "is_built", "matmul"]


def enable_cudnn_sdp(enabled: bool) -> None:
    """Whether attention over 16-bit tensors on a GPU may run by cuDNN's fused graphs.

    Off at first, unlike in PyTorch: they were never run on a GPU.
    """
    _attention.enabled = bool(enabled)


def cudnn_sdp_enabled() -> bool:
    """See `enable_cudnn_sdp`."""
    return _attention.enabled


def is_built() -> bool:
    """Whether CuPy is there to compute with."""
    return probe().cupy is not None
