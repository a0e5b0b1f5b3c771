"""Key-value stores: PyTorch's answers, several clients at once, and servers that are not there."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from datetime import timedelta

import pytest

import dptrain.distributed as dist

KINDS = ["hash", "file", "tcp", "prefix"]
SHORT = timedelta(milliseconds=60)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def made(lib, kind, folder):
    if kind == "hash":
        return lib.HashStore()
    if kind == "file":
        return lib.FileStore(str(folder / lib.__name__), 1)
    if kind == "tcp":
        return lib.TCPStore("localhost", 0, 1, True, timeout=timedelta(seconds=20))
    return lib.PrefixStore("before", lib.HashStore())


def answers(lib, store, queues):
    """What a store answers; an error as the names of the kinds it has in both libraries."""

    def tried(call, *args):
        try:
            return call(*args)
        except lib.QueueEmptyError:
            return "QueueEmptyError"
        except lib.DistError:
            return "DistStoreError"
        except (TypeError, ValueError) as error:
            return type(error).__name__
        except RuntimeError as error:  # FileStore of PyTorch
            return "DistStoreError" if "imeout" in str(error) else str(error)

    store.set_timeout(SHORT)
    found = [store.timeout, store.num_keys()]
    for name, *args in (
        ("set", "a", "text"),
        ("get", "a"),
        ("set", "b", b"\x00\xff\n"),
        ("get", "b"),
        ("set", "a", "other"),
        ("get", "a"),
        ("set", "c", 3),
        ("set", 4, "x"),
        ("get", "missing"),
        ("add", "n", 5),
        ("add", "n", -7),
        ("get", "n"),
        ("add", "zero", 0),
        ("set", "number", "10"),
        ("add", "number", 2),
        ("get", "number"),
        ("num_keys",),
        ("check", ["a"]),
        ("check", ["a", "missing"]),
        ("check", []),
        ("wait", ["a", "b"]),
        ("wait", ["a", "missing"]),
        ("wait", ["missing"], SHORT),
        ("compare_set", "new", "", "one"),
        ("compare_set", "new", "wrong", "two"),
        ("compare_set", "new", "one", "two"),
        ("compare_set", "new", "", "three"),
        ("compare_set", "absent", "one", "two"),
        ("check", ["absent"]),
        ("delete_key", "a"),
        ("check", ["a"]),
        ("append", "long", "x"),
        ("append", "long", "y"),
        ("get", "long"),
        ("multi_set", ["m1", "m2"], ["1", "2"]),
        ("multi_get", ["m2", "m1"]),
        ("multi_get", ["m2", "missing"]),
        ("num_keys",),
    ):
        found.append([name, tried(getattr(store, name), *args)])
    if queues:
        for name, *args in (
            ("queue_push", "q", "first"),
            ("queue_push", "q", "second"),
            ("queue_len", "q"),
            ("queue_pop", "q"),
            ("queue_pop", "q", False),
            ("queue_len", "q"),
            ("queue_pop", "q", False),
            ("queue_pop", "q"),
            ("num_keys",),
        ):
            found.append([name, tried(getattr(store, name), *args)])
        found.append(sorted(store.list_keys()))
    for name, *args in (
        ("barrier", "here", 1),
        ("barrier", "here", 1),
        ("barrier", "there", 2, SHORT),
    ):
        found.append([name, tried(getattr(store, name), *args)])
    store.set("shared", "1")
    return [*found, store.clone().get("shared"), type(store.clone()) is type(store)]


@pytest.mark.oracle
@pytest.mark.parametrize("kind", KINDS)
def test_stores_answer_as_pytorchs(kind, tmp_path):
    theirs = pytest.importorskip("torch.distributed", reason="PyTorch is not installed")
    queues = kind != "file"  # PyTorch's FileStore has none.
    ours = answers(dist, made(dist, kind, tmp_path), queues)
    assert ours == answers(theirs, made(theirs, kind, tmp_path), queues)


@pytest.mark.parametrize("kind", KINDS)
def test_a_reader_waits_for_the_writer_while_others_go_on(kind, tmp_path):
    store = made(dist, kind, tmp_path)
    got, counts = [], []
    # On the same object: a waiting read must not keep this store's other callers out.
    readers = [
        threading.Thread(target=lambda: got.append(store.get("late"))),
        threading.Thread(target=lambda: got.append(store.queue_pop("queue"))),
    ]
    counters = [
        threading.Thread(target=lambda: counts.extend(store.add("n", 1) for _ in range(25)))
        for _ in range(3)
    ]
    for thread in (*readers, *counters):
        thread.start()
    for thread in counters:
        thread.join(20)
    assert sorted(counts) == list(range(1, 76))
    assert got == []
    store.set("late", "now")
    store.queue_push("queue", "then")
    for thread in readers:
        thread.join(20)
    assert sorted(got) == [b"now", b"then"]


CLIENT = """
import sys
from datetime import timedelta
import dptrain.distributed as dist
kind, place = sys.argv[1:]
store = (dist.FileStore(place, 2) if kind == "file"
         else dist.TCPStore("127.0.0.1", int(place), 2, timeout=timedelta(seconds=20)))
store.set("from", b"client \\xff")
assert store.get("answer") == b"\\x00" * 100_000
assert [store.add("n", 1) for _ in range(3)][-1] <= 6
store.barrier("end", 2)
"""


@pytest.mark.parametrize("kind", ["file", "tcp"])
def test_two_processes_share_a_store(kind, tmp_path):
    path, port = tmp_path / "store", free_port()
    place = str(path) if kind == "file" else str(port)
    other = subprocess.Popen([sys.executable, "-c", CLIENT, kind, place], stderr=subprocess.PIPE)
    # The client is there first as often as not: it waits for the server, and the server for it.
    limit = timedelta(seconds=20)
    store = (
        dist.FileStore(str(path), 2)
        if kind == "file"
        else dist.TCPStore("127.0.0.1", port, 2, True, timeout=limit)
    )
    store.set_timeout(limit)
    assert store.get("from") == b"client \xff"
    store.set("answer", b"\x00" * 100_000)
    for _ in range(3):
        store.add("n", 1)
    store.barrier("end", 2)
    _, said = other.communicate(timeout=20)
    assert other.returncode == 0, said
    assert store.get("n") == b"6"
    del store
    assert not path.exists()  # as both users have gone


def test_a_server_that_is_not_there_is_named():
    begun_s = time.monotonic()
    with pytest.raises(
        dist.DistNetworkError, match=r"no server answers on localhost:1 within 100ms"
    ):
        dist.TCPStore("localhost", 1, timeout=timedelta(milliseconds=100))
    assert time.monotonic() - begun_s < 5
    with pytest.raises(dist.DistStoreError, match=r"localhost:\d+ .* 1/2 clients joined"):
        dist.TCPStore("localhost", 0, 2, True, timeout=timedelta(milliseconds=100))
    assert dist.TCPStore("localhost", 0, 2, True, SHORT, wait_for_workers=False).num_keys() == 0
    with pytest.raises(ValueError, match="0 to 65535, got 99999"):
        dist.TCPStore("localhost", 99999, 1, True)


def test_a_port_in_use_is_named_and_tenants_share_one():
    first = dist.TCPStore("localhost", 0, is_master=True, multi_tenant=True)
    where = ("localhost", first.port)
    with pytest.raises(dist.DistNetworkError, match=rf"cannot listen on localhost:{first.port}"):
        dist.TCPStore(*where, is_master=True)
    second = dist.TCPStore(*where, is_master=True, multi_tenant=True)
    first.set("a", "1")
    del first
    assert second.get("a") == b"1"
    del second
    again = dist.TCPStore(*where, is_master=True)  # The port is free again.
    assert not again.check(["a"])


def test_clients_of_a_server_that_has_gone_are_told_so():
    server = dist.TCPStore("localhost", 0, is_master=True, timeout=timedelta(seconds=20))
    client, errors = dist.TCPStore("localhost", server.port), []

    def wait():
        try:
            client.get("never")
        except dist.DistNetworkError as error:
            errors.append(str(error))

    waiting = threading.Thread(target=wait)
    waiting.start()
    while client._idle:  # until the request is on its way
        time.sleep(0.001)
    port = server.port
    del server
    waiting.join(10)
    assert f"the server on localhost:{port} is gone" in errors[0]


def test_a_listening_socket_can_be_handed_over():
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    store = dist.TCPStore("localhost", port, is_master=True, master_listen_fd=listener.detach())
    assert store.port == port
    store.set("a", "1")
    assert dist.TCPStore("localhost", port).get("a") == b"1"


def test_numbers_texts_and_lists_are_told_apart(tmp_path):
    for kind in KINDS:
        store = made(dist, kind, tmp_path)
        store.set("text", "x")
        with pytest.raises(ValueError, match=r"the value of '.*text' is no number: b'x'"):
            store.add("text", 1)
        with pytest.raises(TypeError, match="expected a list of keys, got str"):
            store._store.wait("text") if kind == "prefix" else store.wait("text")
        with pytest.raises(ValueError, match="2 keys and 1 values"):
            store.multi_set(["a", "b"], ["1"])
        assert store.get("text") == b"x"


def test_a_store_of_the_users_serves_behind_a_prefix():
    class Mine(dist.Store):
        def __init__(self):
            super().__init__()
            self.held = {}

        def set(self, key, value):
            self.held[key] = value

        def get(self, key):
            return self.held[key]

    mine = Mine()
    store = dist.PrefixStore("x", dist.PrefixStore("y", mine))
    store.set("k", "v")
    assert mine.held == {"y/x/k": b"v"}
    assert store.get("k") == b"v"
    assert store.underlying_store.underlying_store is mine
    with pytest.raises(NotImplementedError, match=r"Mine\.add"):
        store.add("k", 1)
    with pytest.raises(ValueError, match="cannot be None"):
        dist.PrefixStore("x", None)


def test_an_address_stands_for_a_store(tmp_path, monkeypatch):
    port = free_port()
    limit = timedelta(seconds=20)
    first = dist.rendezvous(f"tcp://localhost:{port}?rank=0&world_size=2", timeout=limit)
    found = []
    server = threading.Thread(target=lambda: found.append(next(first)))
    server.start()
    other, *ranks = next(dist.rendezvous(f"tcp://localhost:{port}", 1, 2, timeout=limit))
    server.join(20)
    store, *mine = found[0]
    assert (ranks, mine) == ([1, 2], [0, 2])
    other.set("a", "1")
    assert store.get("a") == b"1"
    path = tmp_path / "store"
    file, *ranks = next(dist.rendezvous(f"file://{path}?rank=0", world_size=1))
    assert (file.path, ranks) == (str(path), [0, 1])
    port = free_port()
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", str(port))
    alone, *ranks = next(dist.rendezvous("env://"))
    assert (alone.port, ranks) == (port, [0, 1])


@pytest.mark.oracle
def test_addresses_that_name_nothing_are_refused_as_by_pytorch(monkeypatch):
    theirs = pytest.importorskip("torch.distributed", reason="PyTorch is not installed")
    for name in ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for url, words in (
        (3, "must be a string"),
        ("foo://x", "No rendezvous handler for foo://"),
        ("tcp://localhost:1", "rank parameter missing"),
        ("tcp://localhost:1?rank=0", "world size parameter missing"),
        ("file:///tmp/x?world_size=1", "rank parameter missing"),
        ("file://", "path missing"),
        ("env://?rank=0&world_size=1", "MASTER_ADDR"),
    ):
        with pytest.raises((RuntimeError, ValueError)) as wanted:
            next(theirs.rendezvous(url))
        with pytest.raises(type(wanted.value), match=words):
            next(dist.rendezvous(url))
    with pytest.raises(RuntimeError, match="already registered"):
        dist.register_rendezvous_handler("tcp", print)
