"""Bringing a file from the network, whole and verified, or not at all.

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
        """Raise WrongContentError if the content of `path` is another."""
        with path.open("rb") as file:
            found = hashlib.file_digest(
                file, lambda: hashlib.new(self.algorithm, usedforsecurity=False)
            ).hexdigest()
        if not found.startswith(self.digits):
            raise WrongContentError(self, found, path.stat().st_size)

    def __str__(self) -> str:
        return f"{self.algorithm.upper()} {self.digits}"


class WrongContentError(ValueError):
    """A file hashes to something else than its checksum.

    Attributes:
        digest: what it hashes to, in hexadecimal.
    """

    def __init__(self, expected: Checksum, digest: str, nbytes: int) -> None:
        found = digest[: len(expected.digits)]
        super().__init__(f"expected {expected}, found {found} ({nbytes:,} bytes)")
        self.digest = digest


class DownloadError(RuntimeError):
    """No address gave a file.

    Attributes:
        answers: the addresses, and what each answered.
    """

    def __init__(
        self, target: Path, checksum: Checksum | None, answers: list[tuple[str, Exception]]
    ) -> None:
        shown = target.name if checksum is None else f"{target.name} ({checksum})"
        said = "; ".join(f"{url}: {error}" for url, error in answers)
        super().__init__(
            f"could not download {target.name} ({said}). Without a network, bring "
            f"the file {shown} from elsewhere and put it at {target}"
        )
        self.answers = answers


def download_file(
    urls: Sequence[str], target: Path, checksum: str | Checksum | None, progress: bool = True
) -> Path:
    """Bring a file from the first of several addresses that gives the right content.

    The file appears under its name only when it is complete and its checksum is right. What came before
    a connection broke is kept beside it and not asked for again, by the next address or by the next call;
    without a checksum nothing is kept, since nothing would tell two halves of different files.

    Args:
        urls: addresses, tried in turn.
        target: where to put it; its folder is created if necessary.
        checksum: of its content; a text is an MD5 in hexadecimal.
        progress: show a bar where standard error is a terminal.

    Returns:
        `target`.

    Raises:
        DownloadError: no address gave it; the message says what each answered, and which file to bring.
    """
    from http.client import HTTPException  # imported late: slow, and needed by few

    if isinstance(checksum, str):
        checksum = Checksum("md5", checksum)
    target.parent.mkdir(parents=True, exist_ok=True)
    answers: list[tuple[str, Exception]] = []
    with _partial_file(target) as (partial, file):
        # Another process brought it meanwhile, or just before this one asked for the lock.
        if file is None or (checksum is not None and _holds(target, checksum)):
            return target
        for url in urls:
            try:
                _fetch(url, file, progress)
                if checksum is not None:
                    checksum.check(partial)
                os.replace(partial, target)
                return target
            except (OSError, ValueError, HTTPException) as error:  # URLError is an OSError
                if checksum is None or isinstance(error, WrongContentError):
                    file.truncate(0)  # nothing of it can be trusted
                answers.append((url, error))
    raise DownloadError(target, checksum, answers)


def _holds(target: Path, checksum: Checksum) -> bool:
    try:
        checksum.check(target)
    except (FileNotFoundError, WrongContentError):
        return False
    return True


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
