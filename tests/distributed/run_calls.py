"""Runs `calls.py` on two ranks and prints what they return: `run_calls.py torch | dptrain`."""

from __future__ import annotations

import json
import os
import socket
import sys
import tempfile
import warnings
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import calls


def results(lib, dist, rank):
    warnings.simplefilter("ignore")
    return {call.__name__: call(lib, dist, rank) for call in calls.CALLS}


def torch_rank(rank, port, folder):
    import torch
    import torch.distributed as dist
    import torch.distributed.nn

    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    Path(folder, f"{rank}.json").write_text(json.dumps(results(torch, dist, rank)))
    with suppress(RuntimeError):  # a call that was refused on purpose may be told here once more
        dist.barrier()
    dist.destroy_process_group()


def main():
    if sys.argv[1] == "torch":
        import torch.multiprocessing as mp

        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        with tempfile.TemporaryDirectory() as folder:
            mp.spawn(torch_rank, (port, folder), nprocs=2)
            found = [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(2)]
    else:
        import dptrain
        import dptrain.distributed as dist
        import dptrain.distributed.nn

        dist.init_process_group("gloo")
        rank = dist.get_rank()
        everyone = [None, None]
        dist.all_gather_object(everyone, results(dptrain, dist, rank))
        found = everyone
        if rank:
            return
    print(json.dumps(found))


if __name__ == "__main__":
    main()
