"""Apple's Metal backend, which dptrain does not have."""


def is_available() -> bool:
    """False: tensors cannot live on an Apple GPU."""
    return False


def is_built() -> bool:
    """False: dptrain has no Metal backend."""
    return False
