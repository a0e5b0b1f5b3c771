"""Bringing a dataset's file from a mirror, whole and verified, or not at all.

Owns: download, checksum, atomic placement. Must not know: what the files contain, ranks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from dptrain.hub import fetch


def download_file(mirrors: Sequence[str], filename: str, md5: str, folder: Path) -> Path:
    """Fetch `filename` from the first mirror that gives the right content.

    The file appears in `folder` under its name only when it is complete and its checksum is right.

    Args:
        mirrors: URLs of folders, each ending in "/", tried in turn.
        filename: the file's name there and here.
        md5: hexadecimal MD5 of its content.
        folder: where to put it; created if necessary.

    Returns:
        The path of the file.

    Raises:
        RuntimeError: no mirror gave it; the message says what each answered, and which file to bring.
    """
    from http.client import HTTPException  # imported late: slow, and needed by few

    folder.mkdir(parents=True, exist_ok=True)
    target = folder / filename
    answers = []
    for mirror in mirrors:
        url = mirror + filename
        try:
            _download(url, md5, target)
            return target
        except (OSError, ValueError, HTTPException) as error:  # URLError is an OSError
            answers.append(f"{url}: {error}")
    raise RuntimeError(
        f"could not download {filename} ({'; '.join(answers)}). Without a network, bring the file "
        f"{filename} (MD5 {md5}) from elsewhere and put it at {target}"
    )


def _download(url: str, md5: str, target: Path) -> None:
    def check(path: Path) -> None:
        with path.open("rb") as file:
            found = hashlib.file_digest(
                file, lambda: hashlib.md5(usedforsecurity=False)
            ).hexdigest()
        if found != md5:
            raise ValueError(f"expected MD5 {md5}, found {found} ({path.stat().st_size:,} bytes)")

    fetch(url, target, check)
