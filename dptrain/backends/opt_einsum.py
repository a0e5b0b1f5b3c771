"""Flags of the path search of `einsum`. They may be set as in PyTorch; nothing reads them."""

enabled = False
strategy: str | None = None


def is_available() -> bool:
    """False: `einsum` contracts from left to right."""
    return False
