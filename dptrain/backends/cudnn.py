"""Flags of cuDNN. They may be set as in PyTorch; on the CPU nothing reads them."""

enabled = True
benchmark = False
deterministic = False
allow_tf32 = True


def is_available() -> bool:
    """False: this version computes on the CPU only."""
    return False


def version() -> int | None:
    """None: there is no cuDNN."""
    return None
