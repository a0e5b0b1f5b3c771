"""Several MPI ranks on one GPU, through the host's memory; NCCL for them as an experiment. `pytest -m gpu`.

The jobs are started by dprun, which finds mpirun beside this Python or on PATH.
"""

import json
from pathlib import Path

import numpy as np
import pytest

import dptrain
from dptrain import nn
from dptrain.comm.default import nccl_trouble
from dptrain.core.cuda import probe, trouble

JOB = Path(__file__).with_name("shared_gpu_job.py")
REASON = trouble(probe())
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(REASON is not None, reason=f"no GPU: {REASON}")]
#: From this version on NCCL may be told to let ranks share a GPU.
SHARES_FROM = 23000


def told_of_sharing(done):
    return [line for line in done.stderr.splitlines() if "share one GPU" in line]


@pytest.mark.launch
@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_that_share_a_gpu_train_as_one_process_on_the_whole_batch(dprun, ranks):
    done = dprun(ranks, JOB, "mpi", "cuda:0", timeout_s=150)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert list(found) == ["collectives", "ddp", "zero"]
    (line,) = told_of_sharing(done)
    assert f"ranks {', '.join(map(str, range(ranks)))} share one GPU, cuda:0 (" in line


@pytest.mark.launch
def test_nccl_refuses_ranks_that_share_a_gpu_by_name(dprun):
    if nccl_trouble() is not None:
        pytest.skip(f"no NCCL: {nccl_trouble()}")
    done = dprun(2, JOB, "nccl", "cuda:0", timeout_s=60, NCCL_MULTI_RANK_GPU_ENABLE="0")
    assert done.returncode != 0
    assert "ranks 0 and 1 share cuda:0 of" in done.stderr
    assert "dprun -n 1" in done.stderr


@pytest.mark.launch
def test_nccl_between_ranks_that_share_a_gpu_where_it_can(dprun):
    if nccl_trouble() is not None:
        pytest.skip(f"no NCCL: {nccl_trouble()}")
    from dptrain.comm.nccl import binding

    allowed = {"NCCL_MULTI_RANK_GPU_ENABLE": "1", "NCCL_DEBUG": "WARN"}
    version = binding().get_version()
    try:
        done = dprun(2, JOB, "nccl", "cuda:0", timeout_s=80, **allowed)
    except pytest.fail.Exception as error:
        pytest.xfail(f"NCCL {version} hangs: {str(error).splitlines()[0]}")
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if "NCCL" in line or "share" in line]
        why = f"NCCL {version} refuses: {lines[0] if lines else done.stderr[-300:]}"
        (pytest.xfail if version >= SHARES_FROM else pytest.skip)(why)
    assert list(json.loads(done.stdout.splitlines()[-1])) == ["collectives", "ddp", "zero"]
    assert len(told_of_sharing(done)) == 1


def test_data_parallel_over_one_gpu_is_the_module():
    dptrain.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3)).double().cuda()
    x = dptrain.randn(11, 8, dtype=dptrain.float64)
    found = []
    for model in (net, nn.DataParallel(net), nn.DataParallel(net, device_ids=[0])):
        net.zero_grad()
        out = model(x.cuda())
        out.square().sum().backward()
        found.append([t.detach().cpu().numpy() for t in (out, *(p.grad for p in net.parameters()))])
    for others in found[1:]:
        for a, b in zip(others, found[0], strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12)
