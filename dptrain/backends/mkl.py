"""Intel's MKL, which dptrain does not use."""


def is_available() -> bool:
    """False: matrix products come from the BLAS of NumPy."""
    return False
