"""`dptrain bench comm`: nccl-tests' table, right results counted, and the fit."""

import re
import sys

import numpy as np
import pytest

from dptrain.cli import bench
from dptrain.cli.main import main
from dptrain.comm import ReduceOp, run_ranks

TINY = ["--min-bytes", "1K", "--max-bytes", "64K", "--step-factor", "8", "--iterations", "2"]


def table(text):
    """The rows of numbers, and the lines of text."""
    lines = text.splitlines()
    assert re.fullmatch(r" +size +count +type +redop +time +algbw +busbw +#wrong", lines[1])
    remarks = [line for line in lines if line.startswith("#")]
    return [line.split() for line in lines[3:] if line not in remarks], remarks


def test_alone_it_starts_ranks_and_prints_the_columns(job):
    done = job([sys.executable, "-m", "dptrain.cli", "bench", "comm", "-n", 2, *TINY])
    assert done.returncode == 0, done.stderr
    assert "# all_reduce over 2 ranks (mpi), memory of allocate" in done.stdout
    rows, remarks = table(done.stdout)
    assert [row[:4] for row in rows] == [
        [str(1024 * 8**i), str(256 * 8**i), "float32", "sum"] for i in range(3)
    ]
    for row in rows:
        size, _, _, _, time_us, algbw, busbw, wrong = row
        assert wrong == "0"
        assert float(algbw) == pytest.approx(int(size) / float(time_us) / 1e3, abs=0.02, rel=0.02)
        assert busbw == algbw  # 2 (n - 1) / n is 1 for two ranks.
    # Times of two calls on a busy machine need not grow with the size; then there is no fit.
    assert any(line.startswith("# fit: latency ") for line in remarks) or len(remarks) == 1


def test_one_rank_needs_no_launcher(capsys):
    assert main(["bench", "comm", "all_gather", "-n", "1", "--private", *TINY]) == 0
    rows, remarks = table(capsys.readouterr().out)
    assert {row[3] for row in rows} == {"none"}
    assert "1 ranks (serial), private arrays" in remarks[0]


@pytest.mark.parametrize("name", bench.COLLECTIVES)
@pytest.mark.parametrize(
    ("dtype", "op"),
    [("float32", "avg"), ("int16", "bxor"), ("float16", "product"), ("bool", "max")],
)
def test_results_are_checked_on_every_rank(name, dtype, op):
    def rank(comm):
        buffer = np.zeros(3 * 50, dtype)
        right = bench.measure(comm, bench.COLLECTIVES[name], buffer, ReduceOp.of(op), 1)
        what = bench.COLLECTIVES[name]

        def spoiled(comm, whole, row, op):
            what.call(comm, whole, row, op)
            if comm.rank == 1:
                what.result(whole, row)[:2] ^= True  # two wrong elements

        if dtype == "bool":
            wrong = bench.measure(comm, what._replace(call=spoiled), buffer, ReduceOp.of(op), 1)
            assert wrong.wrong == 2
        return right.wrong

    assert run_ranks(3, rank) == [0, 0, 0]


def test_the_fit_finds_latency_and_bandwidth():
    rows = [bench.Row(n, n, 20e-6 + n / 5e9, 0, 0, 0) for n in (1024, 65536, 1 << 20, 1 << 26)]
    latency_s, bandwidth = bench.fit(rows)
    assert latency_s == pytest.approx(20e-6)
    assert bandwidth == pytest.approx(5e9)
    assert bench.fit(rows[:1]) is None
    assert bench.fit([rows[1], rows[0]._replace(time_s=1.0)]) is None


def test_sizes_are_read_and_bad_ones_refused(capsys):
    assert [bench.nbytes_of(text) for text in ("7", "1K", "25m", "2G")] == [
        7,
        1024,
        25 << 20,
        2 << 30,
    ]
    for arguments in (["--min-bytes", "0"], ["--min-bytes", "x"], ["--op", "median"]):
        with pytest.raises(SystemExit):
            main(["bench", "comm", *arguments])
    with pytest.raises(SystemExit):
        main(["bench", "comm", "--private", "--window"])
    assert main(["bench", "comm", "--step-factor", "1"]) == 2
