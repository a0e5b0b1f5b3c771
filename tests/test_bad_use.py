"""Mistakes of several ranks, under the real launcher: one clear error that names both sides, soon."""

import re
import sys
import textwrap

import pytest

SETUP = """
import dptrain, dptrain.distributed as dist, sys
from dptrain import nn
from dptrain.data import DataLoader, TensorDataset
dist.init_process_group()
rank = dist.get_rank()
DDP = nn.parallel.DistributedDataParallel
x = dptrain.ones(3, 4)
"""

MISTAKES = [
    (
        "models_differ",
        "DDP(nn.Linear(4, 2 + rank))",
        r"models differ: rank 0 has parameter 'weight' float32\[2, 4\].*rank 1 has parameter 'weight' float32\[3, 4\]",
    ),
    (
        "another_collective",
        """
        model = DDP(nn.Linear(4, 2))
        for step in range(4):
            if step == 2 and rank == 1:
                dist.all_reduce(dptrain.ones(2))
            model(x).sum().backward()
        """,
        r"called different collectives",
        r"all_reduce\(op=sum, dtype=float32, shape=\(2,\)\).*another_collective\.py:12",
        r"DDP\(Linear\) bucket 0.*another_collective\.py:13",
    ),
    (
        "other_shape",
        "dist.all_reduce(dptrain.ones(2 + rank))",
        r"shape=\(2,\)",
        r"shape=\(3,\)",
    ),
    (
        "one_call_fewer",
        """
        if rank == 0:
            dist.all_reduce(x)
        """,
        r"rank 1 closed its communicator while this rank waits for it in all_reduce",
    ),
    ("batch_size", "DataLoader(TensorDataset(x), batch_size=0)", r"batch_size.*0"),
    (
        "dies_before_a_collective",
        "dist.all_reduce(x) if rank else sys.exit('no data on rank 0')",
        r"rank 0 of 2 failed first",
        r"no data on rank 0",
    ),
]


@pytest.mark.parametrize("mistake", MISTAKES, ids=[m[0] for m in MISTAKES])
def test_mistake_ends_the_job_with_one_clear_error(dprun, tmp_path, mistake):
    name, code, *words = mistake
    script = tmp_path / f"{name}.py"
    script.write_text(SETUP + textwrap.dedent(code).strip("\n") + "\n")
    done = dprun(2, script, timeout_s=30)
    assert done.returncode == 1, done.stderr
    for pattern in words:
        assert re.search(pattern, done.stderr), done.stderr
    assert done.stderr.count("failed first") == 1


def test_ranks_that_run_out_of_batches_end_well_with_equal_models(dprun, tmp_path):
    script = tmp_path / "uneven.py"
    script.write_text(
        SETUP
        + textwrap.dedent(
            """
            from dptrain import optim
            dptrain.manual_seed(0)
            model = DDP(nn.Linear(4, 2))
            optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
            loader = DataLoader(TensorDataset(dptrain.randn(8, 4)[: 2 + 3 * rank]), batch_size=1)
            for epoch in range(3):
                for (batch,) in loader:
                    optimizer.zero_grad()
                    model(batch).square().sum().backward()
                    optimizer.step()
            found = [None] * 2
            dist.all_gather_object(found, model.module.weight.tolist())
            assert found[0] == found[1], found
            print("equal") if rank == 0 else None
            """
        )
    )
    done = dprun(2, script, timeout_s=30)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "equal\n"


def test_a_launcher_that_is_not_mpis_is_named_with_both_sides(job, tmp_path):
    script = tmp_path / "alone.py"
    script.write_text(SETUP)
    done = job([sys.executable, script], RANK="0", WORLD_SIZE="2")
    assert done.returncode == 1
    assert re.search(
        r"rank 0 of 2 \(RANK, WORLD_SIZE\), but MPI says rank 0 of 1.*MPI", done.stderr
    )
