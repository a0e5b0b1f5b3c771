"""Bringing a file from a mirror, whole and verified, or not at all.

Owns: download, resumption, checksum, atomic placement. Must not know: what the files contain, ranks.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

_CONNECT_TIMEOUT_S = 30.0
_CHUNK_NBYTES = 1 << 18


@dataclass(frozen=True)
class Checksum:
    """What the content of a file must hash to.

    Attributes:
        algorithm: a name that `hashlib` knows.
        digits: the digest in hexadecimal, or the first digits of it.
    """

    algorithm: str
    digits: str

    def check(self, path: Path) -> None:
        """Raise ValueError if the content of `path` is another."""
        with path.open("rb") as file:
            found = hashlib.file_digest(
                file, lambda: hashlib.new(self.algorithm, usedforsecurity=False)
            ).hexdigest()
        if not found.startswith(self.digits):
            raise ValueError(
                f"expected {self}, found {found[: len(self.digits)]} ({path.stat().st_size:,} bytes)"
            )

    def __str__(self) -> str:
        return f"{self.algorithm.upper()} {self.digits}"


def download_file(
    mirrors: Sequence[str],
    filename: str,
    checksum: str | Checksum,
    folder: Path,
    progress: bool = True,
) -> Path:
    """Fetch `filename` from the first mirror that gives the right content.

    The file appears in `folder` under its name only when it is complete and its checksum is right. What
    came before a connection broke is kept beside it and not asked for again, by the next mirror or by
    the next call.

    Args:
        mirrors: URLs of folders, each ending in "/", tried in turn.
        filename: the file's name there and here.
        checksum: of its content; a text is an MD5 in hexadecimal.
        folder: where to put it; created if necessary.
        progress: show a bar where standard error is a terminal.

    Returns:
        The path of the file.

    Raises:
        RuntimeError: no mirror gave it; the message says what each answered, and which file to bring.
    """
    from http.client import HTTPException  # imported late: slow, and needed by few

    if isinstance(checksum, str):
        checksum = Checksum("md5", checksum)
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / filename
    answers = []
    with _partial_file(target) as (partial, file):
        if file is None:  # another process brought it meanwhile
            return target
        for mirror in mirrors:
            url = mirror + filename
            try:
                _fetch(url, file, progress)
                _check(checksum, partial, file)
                os.replace(partial, target)
                return target
            except (OSError, ValueError, HTTPException) as error:  # URLError is an OSError
                answers.append(f"{url}: {error}")
    raise RuntimeError(
        f"could not download {filename} ({'; '.join(answers)}). Without a network, bring the file "
        f"{filename} ({checksum}) from elsewhere and put it at {target}"
    )


@contextmanager
def _partial_file(target: Path) -> Iterator[tuple[Path, IO[bytes] | None]]:
    """The file that collects what came of `target` so far, for one process at a time.

    It lies in the target's folder, because a rename is atomic only within one file system. The file is
    None if `target` appeared while another process had it.
    """
    partial = target.with_name(f".{target.name}.part")
    while True:
        file = partial.open("a+b")
        fcntl.flock(file, fcntl.LOCK_EX)
        # Who had the lock before may have renamed or removed the file that was opened here.
        if partial.exists() and os.path.samestat(os.fstat(file.fileno()), partial.stat()):
            break
        file.close()
        if target.is_file():
            yield partial, None
            return
    with file:
        try:
            yield partial, file
        finally:
            if partial.exists() and partial.stat().st_size == 0:
                partial.unlink()


def _fetch(url: str, file: IO[bytes], progress: bool) -> None:
    """Append what `file` lacks of the content of `url`."""
    from urllib.error import HTTPError
    from urllib.request import Request, urlopen

    file.seek(0, os.SEEK_END)
    have = file.tell()
    request = Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        opened = urlopen(request, timeout=_CONNECT_TIMEOUT_S)
    except HTTPError as error:
        error.close()  # it is an open response, too
        raise
    with opened as response:
        if have and getattr(response, "status", None) != 206:
            # The server (or file:) sends everything again.
            file.truncate(0)
            have = 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length is not None else None
        with _bar(url, have, total, progress) as bar:
            while chunk := response.read(_CHUNK_NBYTES):
                file.write(chunk)
                bar.update(len(chunk))
    file.flush()
    os.fsync(file.fileno())
    found = file.tell()
    if total is not None and found < total:
        raise OSError(f"the connection ended after {found:,} of {total:,} bytes")


def _check(checksum: Checksum, partial: Path, file: IO[bytes]) -> None:
    try:
        checksum.check(partial)
    except ValueError:
        file.truncate(0)  # nothing of it can be trusted
        raise


def _bar(url: str, have: int, total: int | None, progress: bool) -> Any:
    from tqdm import tqdm

    return tqdm(
        desc=url.rpartition("/")[2],
        initial=have,
        total=total,
        unit="B",
        unit_scale=True,
        disable=None if progress else True,  # None: where standard error is no terminal
    )
