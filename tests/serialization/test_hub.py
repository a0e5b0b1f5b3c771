"""Weights from a URL, over a server on this machine."""

import hashlib
import http.server
import io
import os
import stat
import threading
import urllib.error
import zipfile

import pytest

import dptrain


def file_of(value):
    file = io.BytesIO()
    dptrain.save(value, file)
    return file.getvalue()


WEIGHTS = file_of({"w": dptrain.arange(3)})
DIGEST = hashlib.sha256(WEIGHTS).hexdigest()


@pytest.fixture
def served():
    """URL of a server, and the list of paths that were asked for."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            if "missing" in self.path:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(WEIGHTS)))
            self.end_headers()
            self.wfile.write(WEIGHTS[:100] if "cut" in self.path else WEIGHTS)

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("dptrain.hub._dir", None)
    return tmp_path / "home"


def test_a_file_is_brought_once_into_pytorchs_folder(served, home, capfd):
    url, asked = served
    for _ in range(2):
        found = dptrain.hub.load_state_dict_from_url(f"{url}/a/model.pth?x=1")
        assert found["w"].tolist() == [0, 1, 2]
    assert asked == ["/a/model.pth?x=1"]
    cached = home / "hub" / "checkpoints" / "model.pth"
    assert cached.read_bytes() == WEIGHTS
    assert stat.S_IMODE(cached.stat().st_mode) == 0o644
    assert os.listdir(cached.parent) == ["model.pth"]
    out, err = capfd.readouterr()
    assert out == f'Downloading: "{url}/a/model.pth?x=1" to {cached}\n'
    assert err == ""  # no terminal, no bar


def test_folder_and_name_can_be_given(served, tmp_path, capfd):
    url, _ = served
    dptrain.hub.load_state_dict_from_url(
        f"{url}/model.pth", str(tmp_path / "mine"), progress=False, file_name="other.pth"
    )
    assert (tmp_path / "mine" / "other.pth").is_file()
    assert capfd.readouterr().err == ""
    dptrain.hub.set_dir(tmp_path / "hub2")
    assert dptrain.hub.get_dir() == str(tmp_path / "hub2")
    dptrain.hub.load_state_dict_from_url(f"{url}/model.pth", progress=False)
    assert (tmp_path / "hub2" / "checkpoints" / "model.pth").is_file()


def test_the_hash_in_the_name_is_checked(served, home):
    url, _ = served
    right, wrong = f"m-{DIGEST[:8]}.pth", "m-0123456789.pth"
    load = dptrain.hub.load_state_dict_from_url
    assert load(f"{url}/{right}", check_hash=True, progress=False)["w"].tolist() == [0, 1, 2]
    with pytest.raises(
        RuntimeError, match=f'invalid hash value .expected "0123456789", got "{DIGEST}"'
    ):
        load(f"{url}/{wrong}", check_hash=True, progress=False)
    assert os.listdir(home / "hub" / "checkpoints") == [right]
    assert load(f"{url}/{wrong}", progress=False)["w"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("name", ["missing.pth", "cut.pth"])
def test_what_cannot_be_brought_is_named_and_leaves_nothing(served, home, name):
    url, _ = served
    target = home / "hub" / "checkpoints" / name
    with pytest.raises(
        urllib.error.URLError, match=f"bring the file {name} from elsewhere"
    ) as caught:
        dptrain.hub.load_state_dict_from_url(f"{url}/{name}", progress=False)
    assert str(target) in str(caught.value)
    assert os.listdir(target.parent) == []


def test_without_a_network_a_file_brought_by_hand_serves(home):
    url = "http://127.0.0.1:9/model.pth"  # the port of the discard service: nobody listens
    with pytest.raises(urllib.error.URLError, match="Without a network") as caught:
        dptrain.hub.load_state_dict_from_url(url, progress=False)
    target = home / "hub" / "checkpoints" / "model.pth"
    assert str(target) in str(caught.value)
    target.write_bytes(WEIGHTS)
    assert dptrain.hub.load_state_dict_from_url(url)["w"].tolist() == [0, 1, 2]


def test_a_file_that_was_packed_by_hand_is_unpacked(home):
    folder = home / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    with zipfile.ZipFile(folder / "m.pth", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("inner.pth", WEIGHTS)
    assert dptrain.hub.load_state_dict_from_url("http://x/m.pth")["w"].tolist() == [0, 1, 2]


def test_nothing_from_a_file_on_the_network_is_run(home):
    folder = home / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "m.pth").write_bytes(file_of(dptrain.nn.Linear(1, 1)))
    with pytest.raises(Exception, match="was not an allowed global"):
        dptrain.hub.load_state_dict_from_url("http://x/m.pth")
    found = dptrain.hub.load_state_dict_from_url("http://x/m.pth", weights_only=False)
    assert isinstance(found, dptrain.nn.Linear)


@pytest.mark.oracle
def test_the_cache_is_pytorchs(served, home, monkeypatch, tmp_path):
    torch = pytest.importorskip("torch", reason="compares with PyTorch")
    assert dptrain.hub.get_dir() == torch.hub.get_dir()
    monkeypatch.delenv("TORCH_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert dptrain.hub.get_dir() == torch.hub.get_dir()
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert dptrain.hub.get_dir() == torch.hub.get_dir()
    monkeypatch.setenv("TORCH_HOME", str(home))
    url, asked = served
    dptrain.hub.load_state_dict_from_url(f"{url}/model.pth", progress=False)
    found = torch.hub.load_state_dict_from_url(f"{url}/model.pth", weights_only=True)
    assert found["w"].tolist() == [0, 1, 2]
    assert len(asked) == 1
