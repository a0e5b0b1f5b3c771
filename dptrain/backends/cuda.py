"""Flags of the CUDA backend. They may be set as in PyTorch; on the CPU nothing reads them."""

from types import SimpleNamespace

matmul = SimpleNamespace(
    allow_tf32=False,
    allow_fp16_reduced_precision_reduction=True,
    allow_bf16_reduced_precision_reduction=True,
)


def is_built() -> bool:
    """False: this version computes on the CPU only."""
    return False
