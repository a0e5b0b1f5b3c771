"""`torch.onnx`'s names, for scripts that mention them: models are not exported."""

from __future__ import annotations

from typing import Any, NoReturn

__all__ = ["export", "is_in_onnx_export"]


def export(*args: Any, **kwargs: Any) -> NoReturn:
    """Refused.

    Raises:
        NotImplementedError: always.
    """
    raise NotImplementedError(
        "onnx.export: dptrain writes no ONNX files; write the weights with dptrain.save(model.state_dict(), path), load "
        "them into the same model in PyTorch and export it there, or run the model under dptrain.compile"
    )


def is_in_onnx_export() -> bool:
    """False."""
    return False
