"""Archives that datasets are published in: bringing and unpacking them.

Owns: unpacking. Must not know: what is inside.
"""

from __future__ import annotations

import tarfile
import zipfile
from pathlib import Path

from dptrain.download import download_file


def download_and_extract(
    mirrors: list[str], filename: str, md5: str, folder: Path, into: Path | None = None
) -> None:
    """Fetch an archive into `folder`, unless it lies there, and unpack it into `into` (or `folder`).

    Raises:
        RuntimeError: it could not be downloaded.
        ValueError: it is damaged, or is no archive.
    """
    archive = folder / filename
    if not archive.is_file():
        download_file([mirror + filename for mirror in mirrors], archive, md5)
    extract_archive(archive, into or folder)


def extract_archive(archive: Path, folder: Path) -> None:
    """Unpack a tar (compressed or not) or zip file; nothing is written outside of `folder`.

    Raises:
        ValueError: it is damaged, is no archive, or has members that lead outside.
    """
    try:
        if archive.suffix == ".zip":
            with zipfile.ZipFile(archive) as content:  # which cuts names that lead outside
                content.extractall(folder)
        else:
            with tarfile.open(archive) as tar:
                tar.extractall(folder, filter="data")
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError) as error:
        raise ValueError(f"{archive} does not unpack: {error}") from error
