"""Shared segments and futexes, between real processes."""

from __future__ import annotations

import subprocess
import sys
import threading

import numpy as np
import pytest

from dptrain.comm import futex
from dptrain.comm.segment import Segment


def test_another_process_sees_and_changes_the_same_memory():
    segment = Segment.create(8192)
    assert segment.bytes.shape == (8192,)
    assert not segment.bytes.any()
    segment.bytes[5000] = 41
    code = (
        "import sys; from dptrain.comm.segment import Segment\n"
        "memory = Segment.attach(sys.argv[1], 8192).bytes\n"
        "memory[5000] += 1\n"
    )
    subprocess.run([sys.executable, "-c", code, segment.path], check=True, timeout=30)
    assert segment.bytes[5000] == 42


def test_a_sealed_segment_lets_nobody_in_and_stays_usable():
    segment = Segment.create(4096)
    array = segment.bytes
    segment.seal()
    segment.seal()
    with pytest.raises(OSError, match="No such file"):
        Segment.attach(segment.path, 4096)
    del segment
    array[:] = 1
    assert array.sum() == 4096


def test_more_memory_than_there_is_is_refused():
    with pytest.raises(OSError, match="bytes of memory asked for"):
        Segment.create(1 << 60)


def test_wait_returns_when_the_word_is_woken_or_differs():
    words = np.zeros(16, np.uint32)
    address = words.__array_interface__["data"][0]
    futex.wait(address, 1, 60.0)  # Differs: returns at once, or the test's timeout ends it.

    def sleep():
        while words[0] == 0:
            futex.wait(address, 0, 60.0)

    thread = threading.Thread(target=sleep)
    thread.start()
    words[0] = 1
    futex.wake(address)
    thread.join(timeout=30)
    assert not thread.is_alive()
