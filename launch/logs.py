"""Files of what every rank wrote, as torchrun's ``--log-dir`` keeps them.

Owns: ``LogFiles``: the folders ``<rank>/stdout.log`` and ``<rank>/stderr.log``. Must not know: what is
shown, what the bytes mean.
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

#: torchrun's numbers for streams.
STREAM_BITS = {"stdout": 1, "stderr": 2}


class LogFiles:
    """Keeps each rank's bytes as they are, in a file for each stream; made when first written to.

    Args:
        folder: takes a folder for each rank.
        streams: sum of the `STREAM_BITS` that are kept.
    """

    def __init__(self, folder: str, streams: int) -> None:
        self._folder = Path(folder)
        self._streams = streams
        self._files: dict[tuple[int, str], BinaryIO] = {}

    def write(self, rank: int, stream: str, data: bytes) -> None:
        """Appends what a rank wrote.

        Raises:
            OSError: the disk does not take it; nothing is kept from then on.
        """
        if not STREAM_BITS[stream] & self._streams:
            return
        try:
            file = self._files.get((rank, stream))
            if file is None:
                path = self._folder / str(rank) / f"{stream}.log"
                path.parent.mkdir(parents=True, exist_ok=True)
                # Unbuffered: who follows the file sees it at once, and nothing is lost by a crash.
                file = self._files[rank, stream] = path.open("ab", buffering=0)
            file.write(data)
        except OSError:
            self._streams = 0
            raise

    def close(self) -> None:
        """Closes the files."""
        for file in self._files.values():
            file.close()
        self._files.clear()
