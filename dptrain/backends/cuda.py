"""Flags of the CUDA backend. They may be set as in PyTorch; on the CPU nothing reads them."""

from types import SimpleNamespace

from dptrain.core.cuda import probe

matmul = SimpleNamespace(
    allow_tf32=False,
    allow_fp16_reduced_precision_reduction=True,
    allow_bf16_reduced_precision_reduction=True,
)


def is_built() -> bool:
    """Whether CuPy is there to compute with."""
    return probe().cupy is not None
