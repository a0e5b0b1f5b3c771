"""Scripts in PyTorch's words: with the imports changed and nothing else, two ranks print PyTorch's figures."""

from __future__ import annotations

import json
import re
import socket
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).with_name("ported")
pytestmark = [pytest.mark.oracle, pytest.mark.launch, pytest.mark.timeout(300)]


def ported(name, folder):
    """The script with `dptrain` in the place of `torch` in its imports."""
    text = (FOLDER / name).read_text()
    text = re.sub(r"^import torch$", "import dptrain as torch", text, flags=re.M)
    text = re.sub(r"^(import|from) torch\.", r"\1 dptrain.", text, flags=re.M)
    path = folder / name
    path.write_text(text)
    return path


def figures(job, *command):
    done = job([sys.executable, "-W", "ignore", *command], timeout_s=140)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def assert_same(ours, theirs, tolerance, where=()):
    """Numbers within the tolerance, everything else equal, all the way down."""
    if isinstance(theirs, float):
        assert ours == pytest.approx(theirs, rel=tolerance, abs=tolerance), where
    elif isinstance(theirs, list):
        assert len(ours) == len(theirs), where
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            assert_same(a, b, tolerance, (*where, i))
    elif isinstance(theirs, dict):
        assert list(ours) == list(theirs), where
        for key in theirs:
            assert_same(ours[key], theirs[key], tolerance, (*where, key))
    else:
        assert ours == theirs, where


def test_tutorial_and_imagenet_scripts_with_spawn(job, tmp_path):
    pytest.importorskip("torch", reason="compares with PyTorch")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
    theirs = figures(job, FOLDER / "spawned.py", "--port", port)
    ours = figures(job, ported("spawned.py", tmp_path), "--port", port)
    # In float64; what is averaged by `all_reduce` of float32 is rounded to it.
    assert_same(ours, theirs, 1e-7)


def test_hooks_joins_and_optimizers_under_the_launcher(job, tmp_path):
    pytest.importorskip("torch", reason="compares with PyTorch")
    options = ("--standalone", "--nnodes=1", "--nproc_per_node=2")
    script = ported("launched.py", tmp_path)
    theirs = figures(job, "-m", "torch.distributed.run", *options, FOLDER / "launched.py")
    ours = figures(job, "-m", "dptrain.distributed.run", *options, script)
    assert_same(ours, theirs, 1e-6)
