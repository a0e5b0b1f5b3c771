"""`torch.distributed`'s names over tensors, on top of `dptrain.comm`.

Owns: the translation between tensors and arrays, names and defaults. Must not know: backends.

========== ==================================================================================
backends   names of backends, the start and end of the default group
groups     process groups and their numbering of ranks
collectives, lists, objects, messages   the calls, by what they take
stores, file_store, tcp_store, table    key-value stores, and what they hold
rendezvous                              the store that an address stands for
device_mesh                             ranks in rows and columns
nn         the same calls with gradients
========== ==================================================================================
"""

from dptrain.comm.communicator import ReduceOp
from dptrain.comm.errors import CommunicatorError as DistBackendError
from dptrain.comm.errors import CommunicatorError as DistError
from dptrain.comm.errors import NetworkError as DistNetworkError
from dptrain.distributed.backend_names import Backend, BackendConfig
from dptrain.distributed.backends import (
    default_pg_timeout,
    destroy_process_group,
    get_backend,
    get_backend_config,
    get_default_backend_for_device,
    get_local_rank,
    get_local_world_size,
    get_node_local_rank,
    init_process_group,
    is_available,
    is_backend_available,
    is_gloo_available,
    is_initialized,
    is_mpi_available,
    is_nccl_available,
    is_torchelastic_launched,
    is_ucc_available,
    is_xccl_available,
)
from dptrain.distributed.collectives import (
    all_gather_into_tensor,
    all_reduce,
    all_reduce_coalesced,
    all_to_all_single,
    barrier,
    broadcast,
    monitored_barrier,
    reduce,
    reduce_scatter_tensor,
)
from dptrain.distributed.device_mesh import DeviceMesh, init_device_mesh
from dptrain.distributed.file_store import FileStore
from dptrain.distributed.groups import (
    GroupMember,
    ProcessGroup,
    get_global_rank,
    get_group_rank,
    get_process_group_ranks,
    get_rank,
    get_world_size,
    group,
    new_group,
    new_subgroups,
    new_subgroups_by_enumeration,
    split_group,
)
from dptrain.distributed.groups import num_groups as get_pg_count
from dptrain.distributed.later import found_in
from dptrain.distributed.lists import (
    all_gather,
    all_gather_coalesced,
    all_to_all,
    gather,
    reduce_scatter,
    scatter,
)
from dptrain.distributed.messages import P2POp, batch_isend_irecv, irecv, isend, recv, send
from dptrain.distributed.objects import (
    all_gather_object,
    broadcast_object_list,
    gather_object,
    recv_object_list,
    scatter_object_list,
    send_object_list,
)
from dptrain.distributed.rendezvous import register_rendezvous_handler, rendezvous
from dptrain.distributed.stores import HashStore, PrefixStore, Store
from dptrain.distributed.table import DistStoreError, QueueEmptyError
from dptrain.distributed.tcp_store import TCPStore
from dptrain.distributed.work import Work

__getattr__ = found_in(
    __name__,
    {
        "BuiltinCommHookType": "dptrain.parallel.comm_hooks",
        "GradBucket": "dptrain.parallel.grad_bucket",
        "algorithms": f"{__name__}.algorithms",
        "distributed_c10d": f"{__name__}.distributed_c10d",
        "optim": f"{__name__}.optim",
    },
)

#: PyTorch's older name, and its newer ones.
reduce_op = ReduceOp
all_gather_single = all_gather_into_tensor
reduce_scatter_single = reduce_scatter_tensor

__all__ = [
    "all_gather_single",
    "reduce_scatter_single",
    "Backend",
    "BackendConfig",
    "DeviceMesh",
    "DistBackendError",
    "DistError",
    "DistNetworkError",
    "DistStoreError",
    "FileStore",
    "GroupMember",
    "HashStore",
    "P2POp",
    "PrefixStore",
    "ProcessGroup",
    "QueueEmptyError",
    "ReduceOp",
    "Store",
    "TCPStore",
    "Work",
    "all_gather",
    "all_gather_coalesced",
    "all_gather_into_tensor",
    "all_gather_object",
    "all_reduce",
    "all_reduce_coalesced",
    "all_to_all",
    "all_to_all_single",
    "barrier",
    "batch_isend_irecv",
    "broadcast",
    "broadcast_object_list",
    "default_pg_timeout",
    "destroy_process_group",
    "gather",
    "gather_object",
    "get_backend",
    "get_backend_config",
    "get_default_backend_for_device",
    "get_global_rank",
    "get_group_rank",
    "get_local_rank",
    "get_local_world_size",
    "get_node_local_rank",
    "get_pg_count",
    "get_process_group_ranks",
    "get_rank",
    "get_world_size",
    "group",
    "init_device_mesh",
    "init_process_group",
    "irecv",
    "is_available",
    "is_backend_available",
    "is_gloo_available",
    "is_initialized",
    "is_mpi_available",
    "is_nccl_available",
    "is_torchelastic_launched",
    "is_ucc_available",
    "is_xccl_available",
    "isend",
    "monitored_barrier",
    "new_group",
    "new_subgroups",
    "new_subgroups_by_enumeration",
    "recv",
    "recv_object_list",
    "reduce",
    "register_rendezvous_handler",
    "rendezvous",
    "reduce_op",
    "reduce_scatter",
    "reduce_scatter_tensor",
    "scatter",
    "scatter_object_list",
    "send",
    "send_object_list",
    "split_group",
]
