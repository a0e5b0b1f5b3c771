"""What NCCL has begun and never ends is aborted, and the next call says why. See `test_nccl.py`."""

from __future__ import annotations

import io
import re
import sys
import threading
import time

import fake_cupy
import fake_nccl
import numpy as np
import pytest

from dptrain.comm import (
    CommunicatorError,
    flights,
    nccl,
    thread,
)
from dptrain.comm.collectives import TransportCommunicator
from dptrain.comm.errors import CollectiveTimeoutError
from dptrain.comm.nccl import NcclTransport
from dptrain.core.arrays import move
from dptrain.core.device import as_device


class Endless:
    done = False
    index = 0

    def __init__(self, disable_timing=False):
        pass


@pytest.fixture
def stuck(monkeypatch):
    """Two ranks' communicators whose GPU never finishes anything."""
    monkeypatch.setattr(flights, "_LOOK_S", 0.01)
    with fake_cupy.installed(monkeypatch, 2) as library:
        library.cupy.cuda.Event = Endless
        made = []
        fake = fake_nccl.Library()
        for rank, comm in enumerate(thread.connect(2)):
            made.append(TransportCommunicator(NcclTransport(comm._transport, rank, fake)))
        yield made, fake
        for comm in made:
            comm.close()


def together(comms, call):

    threads = [threading.Thread(target=call, args=(comm,)) for comm in comms]
    for one in threads:
        one.start()
    for one in threads:
        one.join(20)


def reduce_something(timeout):
    def call(comm):
        with fake_cupy.Device(comm.rank):
            array = move(np.ones(3), as_device(f"cuda:{comm.rank}"))
            comm.all_reduce(array, name="grads", timeout=timeout).wait()

    return call


def watcher_done(comm):
    """What looked after its GPU has given up: it has told why, and aborted."""
    watcher = comm._transport._flights._thread
    watcher.join(20)
    assert not watcher.is_alive()


def next_error(comm):
    begin_s = time.monotonic()
    while time.monotonic() - begin_s < 10:
        if comm._transport._error is not None:
            with pytest.raises(CommunicatorError) as caught:
                comm.all_reduce(np.ones(2), async_op=False)
            return caught.value
        time.sleep(0.01)
    pytest.fail("nobody noticed")
    return None


def test_a_gpu_that_does_not_finish_in_time_is_aborted_and_named(stuck, capfd):
    comms, fake = stuck
    together(comms, reduce_something(timeout=0.3))
    error = next_error(comms[0])
    assert isinstance(error, CollectiveTimeoutError)
    assert re.search(r"\[rank 0/2\] all_reduce\(.*name='grads'.*timed out after 0.3 s", str(error))
    watcher_done(comms[0])
    assert "NCCL was aborted" in capfd.readouterr().err
    assert "abort" in [call.name for call in fake_nccl.calls_of(fake, 0)]
    with pytest.raises(CommunicatorError, match="can no longer be used"):
        comms[0].all_reduce(np.ones(2))


def test_it_is_aborted_where_nobody_reads_the_message(stuck, monkeypatch):
    comms, fake = stuck
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr(sys, "stderr", closed)
    together(comms, reduce_something(timeout=0.1))
    assert isinstance(next_error(comms[0]), CollectiveTimeoutError)
    watcher_done(comms[0])
    assert "abort" in [call.name for call in fake_nccl.calls_of(fake, 0)]


def test_an_error_that_nccl_reports_later_is_raised_by_the_next_call(stuck):
    comms, fake = stuck
    together(comms, reduce_something(timeout=60))
    fake.trouble = "NCCL_ERROR_REMOTE_ERROR"
    assert "failed on the GPU: NCCL_ERROR_REMOTE_ERROR" in str(next_error(comms[1]))


def test_a_peer_that_left_is_not_waited_for_on_the_gpu(stuck, monkeypatch):
    monkeypatch.setattr(nccl, "_PARTING_S", 0.1)
    comms, _ = stuck
    together(comms, reduce_something(timeout=60))
    comms[1].close()
    assert "cannot end: rank 1 closed its communicator" in str(next_error(comms[0]))
