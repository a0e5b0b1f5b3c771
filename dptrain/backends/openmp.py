"""OpenMP, which dptrain does not use."""


def is_available() -> bool:
    """False: the threads are those of the BLAS library."""
    return False
