"""Changed files are loaded or refused: no crash, hang, large allocation or foreign code. See fuzz.py."""

import sys
from pathlib import Path

import pytest

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
        [sys.executable, FUZZ, folder, count, seed], timeout_s=timeout_s, OMP_NUM_THREADS="1"
    )
    assert done.returncode == 0, done.stderr[-3000:]
    report = dict(part.split("=") for part in done.stdout.split())
    assert int(report["files"]) == count
    # A fuzzer that only ever fails at once, or never, looks at nothing.
    assert 0.02 * count < int(report["loaded"]) < 0.95 * count
    assert int(report["kept"]) >= 5
    return report


def test_changed_files_are_loaded_or_refused(job, tmp_path, everything):
    write_seeds(tmp_path, dptrain, everything)
    run(job, tmp_path, 1000, 1)


@pytest.mark.oracle
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_many_changed_files_of_both_libraries_are_loaded_or_refused(job, tmp_path, everything):
    torch = pytest.importorskip("torch", reason="its files are the seeds")
    write_seeds(tmp_path, dptrain, everything)
    write_seeds(tmp_path, torch, everything)
    run(job, tmp_path, 10_000, 2, timeout_s=800)
