"""The places where PyTorch has these names hold them too."""

import inspect
import subprocess
import sys

import pytest

import dptrain
import dptrain.distributed as dist
import dptrain.distributed.distributed_c10d as distributed_c10d
from dptrain import parallel
from dptrain.distributed.algorithms import Join, Joinable, JoinHook
from dptrain.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from dptrain.distributed.optim import ZeroRedundancyOptimizer
from dptrain.parallel import comm_hooks, grad_bucket, join, power_sgd


def test_names_lead_to_their_homes():
    assert ZeroRedundancyOptimizer is parallel.ZeroRedundancyOptimizer
    assert (Join, Joinable, JoinHook) == (join.Join, join.Joinable, join.JoinHook)
    assert dist.algorithms.join.Join is join.Join
    assert dist.optim.ZeroRedundancyOptimizer is ZeroRedundancyOptimizer
    assert default_hooks.fp16_compress_hook is comm_hooks.fp16_compress_hook
    assert powerSGD_hook.powerSGD_hook is power_sgd.powerSGD_hook
    assert dist.GradBucket is grad_bucket.GradBucket
    assert distributed_c10d.all_reduce is dist.all_reduce
    with pytest.raises(ValueError, match="has not been initialized"):
        distributed_c10d._get_default_group()
    assert dptrain.nn.SyncBatchNorm is parallel.SyncBatchNorm
    assert dptrain.futures.Future is not None
    for place in (dist, dist.algorithms, default_hooks, dptrain.nn.parallel):
        with pytest.raises(AttributeError, match="no_such_name"):
            _ = place.no_such_name


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # of PyTorch's own imports
def test_arguments_are_pytorchs():
    pytest.importorskip("torch", reason="compares with PyTorch")
    from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook as their_power
    from torch.distributed.optim import ZeroRedundancyOptimizer as TheirZero
    from torch.nn import SyncBatchNorm as TheirNorm
    from torch.nn.parallel import DistributedDataParallel as TheirDDP

    def arguments(call):
        return {n: p.default for n, p in inspect.signature(call).parameters.items()}

    pairs = [
        (parallel.DistributedDataParallel, TheirDDP),
        (parallel.DistributedDataParallel.join, TheirDDP.join),
        (parallel.DistributedDataParallel.register_comm_hook, TheirDDP.register_comm_hook),
        (parallel.SyncBatchNorm, TheirNorm),
        (parallel.SyncBatchNorm.convert_sync_batchnorm, TheirNorm.convert_sync_batchnorm),
        (ZeroRedundancyOptimizer, TheirZero),
        (ZeroRedundancyOptimizer.consolidate_state_dict, TheirZero.consolidate_state_dict),
        (power_sgd.PowerSGDState, their_power.PowerSGDState),
        (power_sgd.powerSGD_hook, their_power.powerSGD_hook),
    ]
    for ours, theirs in pairs:
        found, wanted = arguments(ours), arguments(theirs)
        assert list(found)[: len(wanted)] == list(wanted), ours
        assert all(found[n] == d for n, d in wanted.items()), ours


def test_importing_the_places_loads_no_room_above_them():
    code = (
        "import sys, dptrain.distributed.optim, dptrain.distributed.algorithms.join;"
        "print('dptrain.parallel' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "False", done.stderr
