"""What a DistributedDataParallel tells about its run, for logs.

Owns: `logging_data`. Must not know: how gradients are averaged.
"""

from __future__ import annotations

from typing import Any

from dptrain.parallel.reducer import Reducer
from dptrain.parallel.sync_batchnorm import SyncBatchNorm


def logging_data(ddp: Any, reducer: Reducer) -> dict[str, Any]:
    """PyTorch's entries, then `times` with the figures of `StepTimes` and `buckets` with names."""
    trained = [p for s in reducer.sections for p in s.params()]
    last = reducer.times.last
    found = {
        "module_name": type(ddp.module).__name__,
        "backend_name": ddp.communicator.backend,
        "rank": ddp.communicator.rank,
        "world_size": ddp.communicator.world_size,
        "iteration": reducer.times.steps,
        "num_parameter_tensors": len(trained),
        "total_parameter_size_bytes": sum(p._array.nbytes for p in trained),
        "dtypes": ", ".join(sorted({p.dtype.name for p in trained})),
        "bucket_sizes": ", ".join(str(n) for n in reducer.bucket_nbytes),
        "broadcast_buffers": int(bool(ddp.forward_sync_buffers)),
        "find_unused_parameters": int(ddp.find_unused_parameters),
        "gradient_as_bucket_view": 1,
        "has_sync_bn": int(any(isinstance(m, SyncBatchNorm) for m in ddp.module.modules())),
        "comm_hook": getattr(reducer.hook[1], "__qualname__", "") if reducer.hook else "",
        "buckets": reducer.layout,
        "times": reducer.times.figures(),
    }
    if last is not None:
        found["backward_comm_time"] = last.communication_ns
        found["backward_compute_time"] = last.waited_from_ns - last.backward_from_ns
        found["backward_compute_comm_overlap_time"] = max(
            0, last.communication_ns - last.exposed_ns
        )
        found["forward_compute_time"] = last.forward_ns[1] - last.forward_ns[0]
    return found
