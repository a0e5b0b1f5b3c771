"""Downloads from a server on this machine: mirrors, checksums, resumption, two at once."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from dptrain.download import Checksum, DownloadError, download_file

CONTENT = np.random.default_rng(0).integers(0, 256, 700_000, dtype=np.uint8).tobytes()
MD5 = hashlib.md5(CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Serves `CONTENT` at /good/, half of it at /breaks/, other bytes at /wrong/, all of it at /whole/."""

    def do_GET(self):
        server, folder = self.server, self.path.split("/")[1]
        asked = self.headers.get("Range")
        server.asked.append((folder, asked))
        if folder not in ("good", "breaks", "wrong", "whole"):
            self.send_error(404)
            return
        content = CONTENT if folder != "wrong" else CONTENT[::-1]
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and folder != "whole" else 0
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        end = len(content) // 2 if folder == "breaks" else len(content)
        self.wfile.write(content[start:end])

    def log_message(self, *args):
        """Nothing on standard error."""


@pytest.fixture
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.asked = []
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    server.url = f"http://127.0.0.1:{server.server_port}"
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_mirrors_are_tried_in_turn_and_what_came_is_kept(tmp_path, server):
    urls = [f"{server.url}/{folder}/file.bin" for folder in ("none", "breaks", "good")]
    path = download_file(urls, tmp_path / "new" / "file.bin", MD5)
    assert path.read_bytes() == CONTENT
    assert server.asked == [
        ("none", None),
        ("breaks", None),
        ("good", f"bytes={len(CONTENT) // 2}-"),
    ]
    assert [p.name for p in path.parent.iterdir()] == ["file.bin"]
    assert path.stat().st_mode & 0o444 == 0o444


def test_the_next_call_goes_on(tmp_path, server):
    half = f"{len(CONTENT) // 2:,} of {len(CONTENT):,} bytes"
    with pytest.raises(RuntimeError, match=f"connection ended after {half}"):
        download_file([f"{server.url}/breaks/file.bin"], tmp_path / "file.bin", MD5)
    assert not (tmp_path / "file.bin").exists()
    download_file([f"{server.url}/good/file.bin"], tmp_path / "file.bin", MD5)
    assert server.asked[-1] == ("good", f"bytes={len(CONTENT) // 2}-")
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_without_a_checksum_nothing_is_kept_of_a_broken_transfer(tmp_path, server):
    urls = [f"{server.url}/{folder}/file.bin" for folder in ("breaks", "good")]
    with pytest.raises(DownloadError, match="connection ended") as caught:
        download_file(urls[:1], tmp_path / "file.bin", None)
    assert [url for url, _ in caught.value.answers] == urls[:1]
    assert list(tmp_path.iterdir()) == []
    assert download_file(urls, tmp_path / "file.bin", None).read_bytes() == CONTENT
    assert [asked for _, asked in server.asked] == [None] * 3


def test_a_server_that_sends_everything_again_is_understood(tmp_path, server):
    urls = [f"{server.url}/breaks/file.bin", f"{server.url}/whole/file.bin"]
    assert download_file(urls, tmp_path / "file.bin", MD5).read_bytes() == CONTENT


def test_wrong_content_is_thrown_away(tmp_path, server):
    with pytest.raises(RuntimeError, match=f"expected MD5 {MD5}, found"):
        download_file([f"{server.url}/wrong/file.bin"], tmp_path / "file.bin", MD5)
    assert list(tmp_path.iterdir()) == []
    # Half of it is of the wrong content: the second mirror's answer is no better, the third is whole.
    urls = [f"{server.url}/{folder}/file.bin" for folder in ("wrong", "good")]
    assert download_file(urls, tmp_path / "file.bin", MD5).read_bytes() == CONTENT


def test_beginnings_of_other_checksums(tmp_path, server):
    digest = hashlib.sha256(CONTENT).hexdigest()
    urls = [f"{server.url}/good/file.bin"]
    download_file(urls, tmp_path / "file.bin", Checksum("sha256", digest[:8]))
    with pytest.raises(RuntimeError, match=r"put it at .*other\.bin"):
        download_file(urls, tmp_path / "other.bin", Checksum("sha256", "0" * 8))


def test_two_at_once_download_once(tmp_path, server):
    paths = []
    threads = [
        threading.Thread(
            target=lambda: paths.append(
                download_file([f"{server.url}/good/file.bin"], tmp_path / "file.bin", MD5)
            )
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(paths) == 4
    assert len(server.asked) == 1
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    assert [p.name for p in tmp_path.iterdir()] == ["file.bin"]


def test_what_is_there_by_the_time_of_the_lock_is_not_asked_for(tmp_path, server):
    target = tmp_path / "file.bin"
    for content, asked in ((b"something else", 1), (CONTENT, 1)):
        target.write_bytes(content)
        download_file([f"{server.url}/good/file.bin"], target, MD5)
        assert len(server.asked) == asked
        assert target.read_bytes() == CONTENT
    assert [p.name for p in tmp_path.iterdir()] == ["file.bin"]


def test_the_bar_shows_bytes_on_a_terminal_only(tmp_path, server, capsys, monkeypatch):
    download_file([f"{server.url}/good/a.bin"], tmp_path / "a.bin", MD5)
    assert capsys.readouterr().err == ""
    import sys

    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    download_file([f"{server.url}/good/b.bin"], tmp_path / "b.bin", MD5)
    assert "b.bin" in capsys.readouterr().err
    download_file([f"{server.url}/good/c.bin"], tmp_path / "c.bin", MD5, progress=False)
    assert capsys.readouterr().err == ""
