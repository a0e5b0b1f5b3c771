"""Intel's oneDNN, which dptrain does not use. The flags may be set as in PyTorch; nothing reads them."""

enabled = True
deterministic = False
allow_tf32 = True


def is_available() -> bool:
    """False: convolutions come from dptrain's own kernels."""
    return False
