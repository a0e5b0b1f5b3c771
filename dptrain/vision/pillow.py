"""Pillow, the optional library of image files: where everyone here gets it from.

Owns: the import and the error without it. Must not know: what is done with images.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any


def pillow(module: str = "Image", purpose: str = "this") -> Any:
    """The module `PIL.<module>`.

    Args:
        module: which one.
        purpose: what needs it, for the message.

    Raises:
        ImportError: pillow is not installed; the message names the extra.
    """
    try:
        return import_module(f"PIL.{module}")
    except ImportError:
        raise ImportError(
            f'{purpose} needs pillow, which is not installed: pip install "dptrain[vision]"'
        ) from None


def is_pil_image(image: Any) -> bool:
    """Whether `image` is one of pillow's; pillow is not imported to find out."""
    module = sys.modules.get("PIL.Image")
    return module is not None and isinstance(image, getattr(module, "Image", ()))
