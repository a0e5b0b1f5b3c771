"""Bringing published weights: `load_state_dict_from_url` and its cache, which is PyTorch's own.

Owns: the cache folder. Must not know: models, how a file is brought.

Files that PyTorch has downloaded are found, and PyTorch finds those that came through here.
"""

from __future__ import annotations

import io
import os
import re
import sys
import zipfile
from pathlib import Path
from typing import Any

from dptrain.core.settings import torch_home
from dptrain.download import Checksum, DownloadError, WrongContentError, download_file
from dptrain.serialization.files import load

#: `resnet18-bf5a0c4c.pth`: the first digits of the file's SHA-256.
_HASH_IN_NAME = re.compile(r"-([a-f0-9]*)\.")

_dir: str | None = None


def get_dir() -> str:
    """The folder of downloaded files: as `set_dir` said, else `hub` in `$TORCH_HOME` or `~/.cache/torch`."""
    return _dir if _dir is not None else str(torch_home() / "hub")


def set_dir(d: str | os.PathLike[str]) -> None:
    """Set the folder of downloaded files."""
    global _dir
    _dir = os.path.expanduser(d)


def download_url_to_file(
    url: str, dst: str, hash_prefix: str | None = None, progress: bool = True
) -> None:
    """Bring a file. It is at `dst` when it is complete and its hash is right, and not there before.

    Args:
        url: where it is.
        dst: where to put it.
        hash_prefix: the first digits of its SHA-256.
        progress: show a bar where standard error is a terminal.

    Raises:
        RuntimeError: it has another hash.
        URLError: it cannot be brought; the message names the file to bring by hand.
    """

    from urllib.error import URLError  # imported late: slow, and needed by few

    target = Path(os.path.expanduser(dst))
    checksum = None if hash_prefix is None else Checksum("sha256", hash_prefix)
    try:
        download_file([url], target, checksum, progress)
    except DownloadError as error:
        (_, cause), *_ = error.answers
        if isinstance(cause, WrongContentError):
            raise RuntimeError(
                f'invalid hash value (expected "{hash_prefix}", got "{cause.digest}")'
            ) from error
        raise URLError(str(error)) from cause


def load_state_dict_from_url(
    url: str,
    model_dir: str | None = None,
    map_location: Any = None,
    progress: bool = True,
    check_hash: bool = False,
    file_name: str | None = None,
    weights_only: bool = True,
) -> Any:
    """What a file of PyTorch's at a URL holds; it is downloaded if it is not in the cache.

    Args:
        url: where it is.
        model_dir: folder of the cache; `checkpoints` in `get_dir()` by default.
        map_location: see `dptrain.load`.
        progress: show a bar where standard error is a terminal.
        check_hash: the file's name ends with the first digits of its SHA-256 (`name-<sha256>.pth`), and
            what is downloaded has to have them.
        file_name: its name in the cache; that in the URL by default.
        weights_only: see `dptrain.load`. True by default, which PyTorch's function does not have: nothing
            from a file on the network is run unless one asks for it.

    Raises:
        RuntimeError: the file is not the right one; it is not kept.
        URLError: it cannot be brought; the message names the file to bring by hand.
    """
    from urllib.parse import urlparse

    folder = os.path.join(get_dir(), "checkpoints") if model_dir is None else model_dir
    os.makedirs(folder, exist_ok=True)
    name = os.path.basename(urlparse(url).path) if file_name is None else file_name
    cached = os.path.join(folder, name)
    if not os.path.exists(cached):
        sys.stdout.write(f'Downloading: "{url}" to {cached}\n')
        found = _HASH_IN_NAME.search(name) if check_hash else None
        download_url_to_file(url, cached, found[1] if found else None, progress)
    return load(_unwrapped(cached), map_location, weights_only=weights_only)


def _unwrapped(path: str) -> Any:
    """The file itself, or the only member of a zip file that someone put it into."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if len(members) == 1 and not members[0].is_dir():
                return io.BytesIO(archive.read(members[0]))
    return path
