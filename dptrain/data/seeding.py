"""Random numbers of the samples: which draws belong to which sample.

Owns: `SampleGenerator`, `seed_others`. Must not know: datasets, samplers, processes.

A sample's draws from dptrain's generator are a function of (base seed, epoch, place of the sample in the
epoch's order). They are therefore the same whoever fetches the sample: this process or any of any
number of workers, this rank or another one, before or after a resume.
"""

from __future__ import annotations

import hashlib
import random
import struct

import numpy as np

from dptrain.core.random import DRAWS, Generator

_SAMPLE, _OTHERS = b"sample", b"others"
_ZEROS = np.zeros(4, np.uint64)


def _digest(purpose: bytes, words: tuple[int, ...]) -> bytes:
    """16 bytes that differ for different words; several times faster than a SeedSequence."""
    packed = struct.pack(f"<{len(words)}q", *words)
    return hashlib.blake2b(packed, digest_size=16, person=purpose).digest()


class SampleGenerator(Generator):
    """A generator whose streams start anew at every sample, until someone seeds it.

    Args:
        seed: what `initial_seed()` gives.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        super().manual_seed(seed)
        self._key: tuple[int, ...] | None = (0,)
        self._keyed: set[int] = set()

    def manual_seed(self, seed: int) -> Generator:
        """An ordinary generator from here on: who seeds it wants its own numbers."""
        self._key = None
        return super().manual_seed(seed)

    def at(
        self, base_seed: int, epoch: int, place: int, shard: int, of_batch: bool = False
    ) -> None:
        """The next draws belong to the sample at that place, or to the batch that begins there."""
        if self._key is not None:
            self._key = (base_seed, epoch, place, shard, of_batch)
            self._keyed.clear()

    def stream(self, purpose: int = DRAWS) -> np.random.Generator:
        """The sample's stream for a purpose."""
        if self._key is None:
            return super().stream(purpose)
        found = self._streams.get((purpose, 0))
        if found is None:
            found = self._streams[purpose, 0] = np.random.Generator(np.random.Philox(key=0))
        if purpose not in self._keyed:
            self._keyed.add(purpose)
            # A new key for the Philox that is there takes a tenth of the time of another one.
            key = np.frombuffer(_digest(_SAMPLE, (*self._key, purpose)), np.uint64)
            found.bit_generator.state = {
                "bit_generator": "Philox",
                "state": {"counter": _ZEROS, "key": key},
                "buffer": _ZEROS,
                "buffer_pos": 4,
                "has_uint32": 0,
                "uinteger": 0,
            }
        return found


def seed_others(*key: int) -> None:
    """Seed Python's `random` and NumPy's global state from a key."""
    python, numpy, _ = struct.unpack("<QII", _digest(_OTHERS, key))
    random.seed(python)
    np.random.seed(numpy)
