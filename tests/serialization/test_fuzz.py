"""Changed files are loaded or refused: no crash, hang, large allocation or foreign code. See fuzz.py."""

import sys
from pathlib import Path

import pytest
from branches import Branches

import dptrain
from dptrain.serialization import save_file

FUZZ = Path(__file__).with_name("fuzz.py")
LEGACY = {"_use_new_zipfile_serialization": False}


def write_seeds(folder, library, everything):
    """Real files of every kind."""
    model = library.nn.Sequential(library.nn.Linear(3, 2), library.nn.BatchNorm1d(2))
    optimizer = library.optim.Adam(model.parameters())
    model(library.ones(4, 3)).sum().backward()
    optimizer.step()
    values = {
        "everything": {k: v for k, v in everything(library).items() if k != "device"},
        "checkpoint": {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "epoch": 3,
        },
        "tensor": library.arange(4),
        "views": [(x := library.arange(6.0)), x[2:], x.reshape(2, 3).t()],
    }
    for name, value in values.items():
        prefix = f"{library.__name__}-{name}"
        library.save(value, folder / f"{prefix}.pt")
        library.save(value, folder / f"{prefix}-legacy.pt", **LEGACY)
        if library is dptrain:
            library.save(value, folder / f"{prefix}-4.pt", pickle_protocol=4)
    if library is dptrain:
        state = {k: v for k, v in model.state_dict().items() if isinstance(v, dptrain.Tensor)}
        save_file(state, folder / "m.safetensors")


def run(job, folder, count, seed, timeout_s=100):
    done = job(
        [sys.executable, FUZZ, folder, count, seed],
        timeout_s=timeout_s,
        OMP_NUM_THREADS="1",
        DPTRAIN_HOST_DEVICES="2",
    )
    assert done.returncode == 0, done.stderr[-3000:]
    figures, *not_reached = done.stdout.splitlines()
    report = dict(part.split("=") for part in figures.split())
    assert int(report["files"]) == count
    # A fuzzer that only ever fails at once, or never, looks at nothing.
    assert 0.02 * count < int(report["loaded"]) < 0.95 * count
    assert int(report["kept"]) >= 20
    return not_reached


def test_changed_files_are_loaded_or_refused_in_every_branch_of_the_parser(
    job, tmp_path, everything
):
    write_seeds(tmp_path, dptrain, everything)
    assert run(job, tmp_path, 6_000, 1) == []


@pytest.mark.oracle
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_many_changed_files_of_both_libraries_are_loaded_or_refused(job, tmp_path, everything):
    torch = pytest.importorskip("torch", reason="its files are the seeds")
    write_seeds(tmp_path, dptrain, everything)
    write_seeds(tmp_path, torch, everything)
    assert run(job, tmp_path, 30_000, 2, timeout_s=800) == []


def test_branches_that_were_not_run_are_named(tmp_path):
    path = tmp_path / "looked_at.py"
    path.write_text(
        "def f(a, b):\n"
        "    if a and b:\n"
        "        return list(x for x in a if x)\n"
        "    return b\n"
        "def never():\n"
        "    return 1\n"
        "def writes():\n"
        "    return 2\n"
    )
    found = {}
    exec(compile(path.read_text(), str(path), "exec"), found)
    branches = Branches([path], ["writes"])
    assert branches.watch(lambda: found["f"]([1], 2)) > 0
    assert {m for m in branches.missing() if ":f" in m} == {
        "looked_at.py:f:2 one way only",  # a and b are two
        "looked_at.py:f:4",
        "looked_at.py:f.<locals>.<genexpr>:3 one way only",
    }
    for a, b in (([], 2), ([0], 0), ([0, 1], 2)):
        branches.watch(lambda a=a, b=b: found["f"](a, b))
    assert branches.missing() == ["looked_at.py:never:5", "looked_at.py:never:6"]
    assert branches.watch(lambda: found["f"]([1], 2)) == 0
    with pytest.raises(ValueError, match="not there"):
        Branches([path], ["reads"])
