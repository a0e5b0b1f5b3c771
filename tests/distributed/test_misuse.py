"""Bad use of `dptrain.distributed` under the real launcher: an error on the ranks concerned, at once."""

from __future__ import annotations

import re
import textwrap

import pytest

pytestmark = pytest.mark.launch

SETUP = """
import dptrain, dptrain.distributed as dist
dist.init_process_group()
rank = dist.get_rank()
x = dptrain.ones(2, 3)
"""

CASES = {
    "sizes of a list": (
        "dist.all_gather([dptrain.ones(2), dptrain.ones(3 + (rank < 1))], dptrain.ones(2 + rank))",
        r"rank 1 sends 12 bytes to rank 0, which has room for 16",
        r"all_gather\(dtype=float32, sizes by rank\)",
    ),
    "splits": (
        "dist.all_to_all_single(dptrain.ones(3 + rank), dptrain.ones(3), [1, 2 + rank], [2, 1])",
        r"rank \d sends \d+ bytes to rank \d, which has room for \d+",
        r"script\.py:6",
    ),
    "another dtype": (
        "dist.broadcast(x if rank else x.double(), 0)",
        r"dtype=float32.*\n?.*dtype=float64|dtype=float64[\s\S]*dtype=float32",
        r"script\.py:6",
    ),
    "another root": ("dist.reduce(x, rank)", r"root=0", r"root=1"),
    "another list": (
        "dist.gather(x, [x.clone(), x.clone()] if rank == 0 else None, 0) if rank == 0 else dist.barrier()",
        r"gather\(dtype=float32, shape=\(2, 3\), root=0\)",
        r"barrier\(\)",
    ),
    "elements that share memory": (
        "dist.all_reduce(dptrain.ones(1).expand(3))",
        r"RuntimeError: collective: unsupported operation: more than one element",
    ),
    "no whole rank": (
        "dist.broadcast(x, src=0.5)",
        r"TypeError: broadcast: expected a rank as an int, got 0\.5",
    ),
    "no list of objects": (
        "dist.broadcast_object_list('abc', src=0)",
        r"TypeError: broadcast_object_list: expected object_list to be a list, got str",
    ),
    "no such backend": (
        "dist.new_group([0], backend='foo')",
        r"ValueError: backend 'foo' is not available .* expected one of mpi, gloo",
    ),
    "after destroy": (
        "dist.destroy_process_group()\ndist.all_reduce(x)",
        r"Default process group has not been initialized",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_use_ends_the_job_with_both_sides_named(dprun, tmp_path, name):
    code, *words = CASES[name]
    script = tmp_path / "script.py"
    script.write_text(SETUP + textwrap.dedent(code) + "\n")
    done = dprun(2, script, timeout_s=40)
    assert done.returncode == 1, done.stderr
    for word in words:
        assert re.search(word, done.stderr), done.stderr
    assert done.stderr.count("failed first") == 1


ENVIRONMENTS = {
    "half": ({"RANK": "0"}, "WORLD_SIZE missing"),
    "no number": ({"RANK": "x", "WORLD_SIZE": "2"}, "is no whole number"),
    "beyond": ({"RANK": "2", "WORLD_SIZE": "2"}, "contradicts itself"),
    "local beyond": (
        {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "3", "LOCAL_WORLD_SIZE": "2"},
        "contradicts itself",
    ),
}


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_a_wrong_environment_is_named(monkeypatch, name):
    import dptrain.distributed as dist

    variables, words = ENVIRONMENTS[name]
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    with pytest.raises(RuntimeError, match=words) as caught:
        dist.init_process_group()
    assert "RANK=" in str(caught.value)
    assert not dist.is_initialized()
