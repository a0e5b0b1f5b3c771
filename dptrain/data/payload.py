"""What a pass gives to all its workers at once: the dataset, written into shared memory one time.

Owns: `Payload`. Must not know: what is in it.

Every worker maps the memory privately: its large arrays are the same pages in all workers until one of
them writes, which the others do not see.
"""

from __future__ import annotations

import mmap
import os
import pickle
import struct
from typing import Any

import numpy as np

from dptrain.comm.segment import Segment
from dptrain.data.channel import Content, dumps

_HEADER = struct.Struct(
    "<QQ48x"
)  # bytes of the pickle, number of buffers; then aligned as they are


class Payload:
    """An object in memory that processes can be handed.

    Args:
        obj: what only exists in the script (`__main__`) travels by value, arrays without being pickled.
    """

    def __init__(self, obj: Any) -> None:
        buffers: list[pickle.PickleBuffer] = []
        content = Content(dumps(obj, buffers.append), buffers)
        self._segment = Segment.create(_HEADER.size + content.nbytes)
        _HEADER.pack_into(self._segment.bytes.data, 0, len(content.body), len(content.raw))
        content.write(self._segment.bytes[_HEADER.size :])

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
