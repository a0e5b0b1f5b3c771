"""The projector's files: points, labels and thumbnails beside the event file.

Owns: their form. Must not know: events.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dptrain.tensorboard.pictures import make_grid
from dptrain.vision.pillow import pillow

Array = np.ndarray[Any, Any]


def encode(tag: str) -> str:
    """A tag as the name of a folder."""
    for character in "%/\\":
        tag = tag.replace(character, f"%{ord(character):02x}")
    return tag


def write_embedding(
    folder: Path,
    mat: Array,
    metadata: Sequence[Any] | None,
    label_img: Array | None,
    metadata_header: Sequence[str] | None,
) -> None:
    """Write `tensors.tsv`, and where given `metadata.tsv` and `sprite.png`.

    Args:
        mat: (N, D).
        metadata: N labels, or N rows of them under `metadata_header`.
        label_img: (N, C, H, W), values in [0, 1].

    Raises:
        AssertionError: numbers of rows or columns differ.
    """
    if mat.ndim != 2:
        raise AssertionError(
            f"mat should be 2D, where mat.size(0) is the number of data points; got shape {list(mat.shape)}"
        )
    if metadata is not None:
        if len(metadata) != len(mat):
            raise AssertionError(
                f"#labels should equal with #data points: {len(metadata)} labels, {len(mat)} points"
            )
        if metadata_header and len(metadata_header) != len(metadata[0]):
            raise AssertionError("len of header must be equal to the number of columns in metadata")
    if label_img is not None and len(label_img) != len(mat):
        raise AssertionError(
            f"#images should equal with #data points: {len(label_img)} images, {len(mat)} points"
        )
    folder.mkdir(parents=True, exist_ok=True)
    _write_rows(folder / "tensors.tsv", mat.tolist())
    if metadata is not None:
        rows = [metadata_header, *metadata] if metadata_header else [[label] for label in metadata]
        _write_rows(folder / "metadata.tsv", rows)
    if label_img is not None:
        _write_sprite(folder / "sprite.png", label_img)


def _write_rows(path: Path, rows: Sequence[Any]) -> None:
    lines = ("\t".join(map(str, row)) for row in rows)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _write_sprite(path: Path, images: Array) -> None:
    """All thumbnails in a square, whose side tells the projector how many stand in a row."""
    count, (height, width) = len(images), images.shape[2:]
    columns = math.ceil(count**0.5)
    while math.ceil(count / columns) * height > columns * width:
        columns += 1
    grid = make_grid(images, columns).transpose(1, 2, 0)
    square = np.zeros((columns * width, columns * width, 3))
    square[: grid.shape[0], : grid.shape[1]] = grid
    pixels = (square * 255).clip(0, 255).astype(np.uint8)
    pillow("Image", "add_embedding with label_img").fromarray(pixels).save(path, format="PNG")


def entry(
    subdir: str, tag: str, global_step: int, metadata: bool, image_shape: Sequence[int] | None
) -> str:
    """The lines of `projector_config.pbtxt` about one embedding.

    Args:
        subdir: its folder, seen from that file.
        metadata: whether it has labels.
        image_shape: (H, W) of its thumbnails, if it has any.
    """
    lines = [
        f"tensor_name: {json.dumps(f'{tag}:{global_step:05d}')}",
        f"tensor_path: {json.dumps(f'{subdir}/tensors.tsv')}",
    ]
    if metadata:
        lines.append(f"metadata_path: {json.dumps(f'{subdir}/metadata.tsv')}")
    if image_shape is not None:
        height, width = image_shape
        lines.append(
            f"sprite {{ image_path: {json.dumps(f'{subdir}/sprite.png')} "
            f"single_image_dim: {width} single_image_dim: {height} }}"
        )
    return "embeddings {\n" + "".join(f"  {line}\n" for line in lines) + "}\n"
