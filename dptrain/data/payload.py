"""What a pass gives to all its workers at once: the dataset, written into shared memory one time.

Owns: `Payload`. Must not know: what is in it.

Every worker maps the memory privately: its large arrays are the same pages in all workers, and in the
process that made it, until one of them writes, which the others do not see.
"""

from __future__ import annotations

import mmap
import os
import pickle
import struct
from typing import Any

import numpy as np

from dptrain.comm.segment import Segment
from dptrain.data.backing import PAGE, move
from dptrain.data.channel import Content, dumps

#: Bytes of the pickle, number of buffers. What follows begins with a page.
_HEADER = struct.Struct(f"<QQ{PAGE - 16}x")


class Payload:
    """An object in memory that processes can be handed.

    Args:
        obj: what only exists in the script (`__main__`) travels by value, arrays without being pickled.
    """

    def __init__(self, obj: Any) -> None:
        buffers: list[pickle.PickleBuffer] = []
        content = Content(dumps(obj, buffers.append), buffers)
        self._segment = segment = Segment.create(_HEADER.size + content.nbytes)
        _HEADER.pack_into(segment.bytes.data, 0, len(content.body), len(content.raw))
        target = segment.bytes[_HEADER.size :]

        def share(source: np.ndarray, start: int, end: int) -> None:
            move(source, segment.fileno(), target[start:end], _HEADER.size + start)

        content.write(target, share)

    def descriptors(self) -> list[int]:
        """The open files to hand over."""
        return [self._segment.fileno()]

    def close(self) -> None:
        """Let go of the memory; it lives on where it was handed over."""
        self._segment.seal()
        del self._segment


def load(descriptors: list[int]) -> Any:
    """The object of a `Payload` whose descriptors were handed over; closes them."""
    (descriptor,) = descriptors
    memory = mmap.mmap(
        descriptor, os.fstat(descriptor).st_size, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE
    )
    os.close(descriptor)
    body_bytes, count = _HEADER.unpack_from(memory)
    content = np.frombuffer(memory, np.uint8, offset=_HEADER.size)
    return Content.read(content.data, body_bytes, count)
