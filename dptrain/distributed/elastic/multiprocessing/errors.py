"""What scripts for torchrun put around their main function."""

from collections.abc import Callable
from typing import Any, TypeVar

Main = TypeVar("Main", bound=Callable[..., Any])


def record(fn: Main, error_handler: Any = None) -> Main:
    """The function as it is: `dprun` reports the traceback of the first rank that fails without it."""
    return fn
