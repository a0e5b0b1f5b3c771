"""OpenMP, which dptrain does not use."""


def is_available() -> bool:
    """False: the threads are dptrain's own and those of the BLAS library."""
    return False
