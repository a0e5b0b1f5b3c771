"""`dptrain.distributed` against `torch.distributed`: the same calls on two ranks, and every name."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest

import dptrain.distributed as dist

SCRIPT = Path(__file__).parent / "run_calls.py"


@pytest.fixture(scope="module")
def theirs():
    pytest.importorskip("torch", reason="PyTorch is not installed (extra `oracle`)")
    found = subprocess.run(
        [sys.executable, SCRIPT, "torch"], capture_output=True, text=True, timeout=220, check=False
    )
    assert found.returncode == 0, found.stderr
    return json.loads(found.stdout)


@pytest.mark.oracle
@pytest.mark.launch
@pytest.mark.timeout(300)  # PyTorch's ranks take a minute to start on a busy machine.
def test_two_ranks_get_what_pytorch_gives_over_gloo(theirs, dprun):
    done = dprun(2, SCRIPT, "dptrain", timeout_s=60)
    assert done.returncode == 0, done.stderr
    ours = json.loads(done.stdout)
    for rank in range(2):
        for call, expected in theirs[rank].items():
            assert ours[rank][call] == expected, (call, rank)


BINDINGS = "an options record or type of PyTorch's C++ layer"
MODULE = "a module that PyTorch's package happens to import"
DEBUG = "switches for checks and logs; the checks are always on here"
OUT_OF_SCOPE = {
    **dict.fromkeys(
        (
            "AllToAllOptions",
            "AllreduceCoalescedOptions",
            "AllreduceOptions",
            "BarrierOptions",
            "BroadcastOptions",
            "GatherOptions",
            "GroupName",
            "Logger",
            "ProcessGroupGloo",
            "RankType",
            "ReduceOptions",
            "ReduceScatterOptions",
            "Reducer",
            "ScatterOptions",
        ),
        BINDINGS,
    ),
    **dict.fromkeys(
        (
            "autograd",
            "c10d_logger",
            "config",
            "constants",
            "log",
            "logging",
            "logging_handlers",
            "sys",
            "timedelta",
            "torch",
            "traceback",
            "typing",
            "utils",
            "checkpoint",
            "elastic",
            "run",
            "argparse_util",
            "fsdp",
            "tensor",
            "remote_device",
        ),
        MODULE,
    ),
    **dict.fromkeys(
        ("DebugLevel", "get_debug_level", "set_debug_level", "set_debug_level_from_env"), DEBUG
    ),
    "rpc": "remote procedure calls",
    "breakpoint": "a debugger on one rank of several",
    "record_comm": "a hook of PyTorch's profiler",
    "shrink_group": "NCCL only; elastic recovery is the launcher's",
    "supports_complex": "there are no complex tensors here",
}


@pytest.mark.oracle
def test_every_public_name_of_pytorch_is_there_or_left_out_for_a_reason():
    torch_dist = pytest.importorskip("torch.distributed", reason="PyTorch is not installed")
    names = {name for name in dir(torch_dist) if not name.startswith("_") and name != "nn"}
    missing = {name for name in names - set(OUT_OF_SCOPE) if not hasattr(dist, name)}
    assert not missing
    assert not {name for name in OUT_OF_SCOPE if hasattr(dist, name)}


@pytest.mark.oracle
def test_calls_take_pytorchs_arguments_in_pytorchs_order():
    torch_dist = pytest.importorskip("torch.distributed", reason="PyTorch is not installed")
    for name in set(dist.__all__) - {"reduce_op"}:  # Deprecated; looking at it warns.
        theirs = getattr(torch_dist, name, None)
        if not inspect.isfunction(theirs) or not inspect.isfunction(getattr(dist, name)):
            continue
        expected = [p for p in inspect.signature(theirs).parameters if not p.startswith("_")]
        ours = inspect.signature(getattr(dist, name)).parameters
        assert list(ours)[: len(expected)] == expected, name
