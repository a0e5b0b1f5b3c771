"""Calls of `torch.distributed`'s interface, for two ranks, that run on PyTorch and on dptrain alike.

Each function takes the package (`torch` or `dptrain`), its `distributed` module and the rank, and
returns what has to be equal: nested lists, numbers and texts. An exception is compared by its kind.
"""

from __future__ import annotations

import datetime


def _t(lib, rank, *shape, dtype="float32", salt=0):
    count = 1
    for size in shape:
        count *= size
    values = [(7 * i + 3 * rank + salt) % 11 - (5 if dtype in SIGNED else 0) for i in range(count)]
    return lib.tensor(values, dtype=getattr(lib, dtype)).reshape(shape)


SIGNED = ("float32", "float64", "float16", "bfloat16", "int32", "int64", "int8")
GLOO_DTYPES = ("float32", "float64", "float16", "bfloat16", "int32", "int64", "int8", "uint8")


def out(tensors):
    if isinstance(tensors, list | tuple):
        return [out(one) for one in tensors]
    return [str(tensors.dtype).split(".")[-1], tensors.double().tolist()]


def all_reduce_every_op_and_dtype(lib, dist, rank):
    found = []
    for dtype in GLOO_DTYPES:
        for op in ("SUM", "PRODUCT", "MIN", "MAX"):
            x = _t(lib, rank, 2, 3, dtype=dtype)
            dist.all_reduce(x, getattr(dist.ReduceOp, op))
            found.append(out(x))
    for op in ("BAND", "BOR", "BXOR"):
        for dtype in ("int32", "int64", "uint8", "int8"):
            x = _t(lib, rank, 5, dtype=dtype)
            dist.all_reduce(x, getattr(dist.ReduceOp, op))
            found.append(out(x))
    for op in ("SUM", "MAX", "MIN", "PRODUCT", "BAND", "BOR", "BXOR"):
        x = lib.tensor([True, rank == 1, False])
        dist.all_reduce(x, getattr(dist.ReduceOp, op))
        found.append(out(x))
    x = _t(lib, rank, 4)
    dist.all_reduce(x, dist.ReduceOp.AVG)
    return [*found, out(x)]


def all_reduce_asynchronously(lib, dist, rank):
    x = _t(lib, rank, 3)
    work = dist.all_reduce(x, async_op=True)
    waited = work.wait()
    future = dist.all_reduce(x.clone(), async_op=True).get_future()
    halved = future.then(lambda done: done.value()[0] / 2).then(lambda done: done.value() + rank)
    return [waited, work.is_completed(), out(x), out(work.result()), out(halved.wait())]


def all_reduce_coalesced(lib, dist, rank):
    tensors = [_t(lib, rank, 3), _t(lib, rank, 2, 2)]
    dist.all_reduce_coalesced(tensors)
    return out(tensors)


def reduce_and_broadcast(lib, dist, rank):
    found = []
    for root in (0, 1):
        x, y, z = _t(lib, rank, 3), _t(lib, rank, 2, 2), lib.tensor(rank + 1.0)
        dist.reduce(x, root)
        dist.broadcast(y, root)
        dist.broadcast(z, group_src=root)
        found += [out(x) if rank == root else None, out(y), out(z)]
    return found


def all_gather_forms(lib, dist, rank):
    x = _t(lib, rank, 2, 3, dtype="int64")
    parts = [lib.zeros(2, 3, dtype=lib.int64) for _ in range(2)]
    dist.all_gather(parts, x)
    rows, again = lib.zeros(4, 3, dtype=lib.int64), lib.zeros(4, 3, dtype=lib.int64)
    dist.all_gather_into_tensor(rows, x)
    work = dist.all_gather_into_tensor(again, x, async_op=True)
    work.wait()
    return out([*parts, rows, again])


def gather_and_scatter(lib, dist, rank):
    found = []
    for root in (0, 1):
        x = _t(lib, rank, 3)
        parts = [lib.zeros(3) for _ in range(2)] if rank == root else None
        dist.gather(x, parts, dst=root)
        target = lib.zeros(2, 2)
        source = [_t(lib, r, 2, 2, salt=4) for r in range(2)] if rank == root else None
        dist.scatter(target, source, src=root)
        found += [out(parts or []), out(target)]
    return found


def reduce_scatter_forms(lib, dist, rank):
    target, flat = lib.zeros(2), lib.zeros(3, 2)
    dist.reduce_scatter(target, [_t(lib, rank, 2, salt=r) for r in range(2)])
    dist.reduce_scatter_tensor(flat, _t(lib, rank, 6, 2))
    return out([target, flat])


def all_to_all_forms(lib, dist, rank):
    equal = lib.zeros(4, 2)
    dist.all_to_all_single(equal, _t(lib, rank, 4, 2))
    sizes = [[1, 2], [3, 0]]  # rows from rank to rank
    coming = [sizes[r][rank] for r in range(2)]
    uneven = lib.zeros(sum(coming), 2)
    dist.all_to_all_single(uneven, _t(lib, rank, 3, 2, salt=1), coming, sizes[rank])
    return out([equal, uneven])


def messages(lib, dist, rank):
    x, y = _t(lib, rank, 3), lib.zeros(3)
    if rank == 0:
        dist.send(x, 1)
        first = dist.recv(y, 1)
    else:
        first = dist.recv(y)
        dist.send(x, 0)
    z = lib.zeros(2, 2)
    works = [dist.isend(_t(lib, rank, 2, 2), 1 - rank, tag=4), dist.irecv(z, 1 - rank, tag=4)]
    for work in works:
        work.wait()
    return [first, out([y, z])]


def batched_messages(lib, dist, rank):
    x, y = _t(lib, rank, 3), lib.zeros(3)
    ops = [dist.P2POp(dist.isend, x, 1 - rank), dist.P2POp(dist.irecv, y, 1 - rank)]
    for work in dist.batch_isend_irecv(ops):
        work.wait()
    return out(y)


def objects(lib, dist, rank):
    everyone, sent = [None, None], [{"rank": rank}, "text"] if rank == 0 else [None, None]
    dist.all_gather_object(everyone, {"rank": rank, "text": "x" * (rank * 1000)})
    dist.broadcast_object_list(sent, 0)
    gathered = [None, None] if rank == 1 else None
    dist.gather_object((rank, "g"), gathered, dst=1)
    mine = [None]
    dist.scatter_object_list(mine, ["for 0", ["for", 1]] if rank == 0 else None, src=0)
    return [everyone, sent, gathered, mine]


def object_messages(lib, dist, rank):
    found = [None, None]
    if rank == 0:
        dist.send_object_list(["a", {"b": 1}], 1)
        return None
    return [dist.recv_object_list(found, 0), found]


def groups(lib, dist, rank):
    both, one = dist.new_group([1, 0]), dist.new_group([1])
    facts = [
        dist.get_process_group_ranks(both),
        dist.get_rank(both),
        dist.get_world_size(one),
        dist.get_rank(one),
        one == dist.GroupMember.NON_GROUP_MEMBER,
        dist.get_global_rank(both, 1),
        dist.get_group_rank(both, 1),
        both.size(),
        both.rank(),
        dist.group.WORLD is dist.GroupMember.WORLD,
    ]
    x = _t(lib, rank, 2)
    if rank == 1:
        dist.all_reduce(x, group=one)
    dist.all_reduce(x, group=both)
    own, all_of_them = dist.new_subgroups(1)
    listed, _ = dist.new_subgroups_by_enumeration([[1], [0]])
    return [*facts, out(x), dist.get_world_size(own), len(all_of_them), dist.get_rank(listed)]


def calls_of_a_group(lib, dist, rank):
    both = dist.new_group([0, 1])
    x, y, z = _t(lib, rank, 3), _t(lib, rank, 2, 2), _t(lib, rank, 2, salt=3)
    both.allreduce([x]).wait()
    both.allreduce(z, dist.ReduceOp.MAX).wait()
    both.broadcast(y, 1).wait()
    both.barrier().wait()
    parts, again = [lib.zeros(3) for _ in range(2)], [lib.zeros(2) for _ in range(2)]
    both.allgather([parts], [_t(lib, rank, 3)]).wait()
    both.allgather(again, z).wait()
    gathered = [lib.zeros(3) for _ in range(2)] if rank == 1 else []
    both.gather(gathered, x, 1).wait()
    part, total = lib.zeros(2), lib.zeros(3)
    both.scatter(part, [_t(lib, r, 2) for r in range(2)] if rank == 0 else [], 0).wait()
    both.reduce_scatter(total, [_t(lib, rank, 3, salt=r) for r in range(2)]).wait()
    changed, uneven = lib.zeros(4), lib.zeros(1 + 2 * rank)
    both.alltoall_base(changed, _t(lib, rank, 4), [], []).wait()
    sizes = [[1, 2], [0, 1]]
    both.alltoall_base(
        uneven, _t(lib, rank, sum(sizes[rank])), [sizes[r][rank] for r in range(2)], sizes[rank]
    ).wait()
    message = lib.zeros(2)
    work = both.recv([message], 0, 5) if rank else both.send([_t(lib, rank, 2, salt=8)], 1, 5)
    work.wait()
    last = _t(lib, rank, 2)
    both.reduce(last, 0).wait()
    found = [x, y, z, *parts, *again, *gathered, part, total, changed, uneven, message]
    return [out(found), out(last) if rank == 0 else None]


def stores(lib, dist, rank):
    limit = datetime.timedelta(seconds=30)
    server = dist.TCPStore("localhost", 0, is_master=True, timeout=limit) if rank == 0 else None
    port = [server.port if server else None]
    dist.broadcast_object_list(port, 0)
    store = server or dist.TCPStore("localhost", port[0], timeout=limit)
    before = dist.PrefixStore("part", store)
    before.set(f"from {rank}", bytes([rank, 255]))
    found = [before.get(f"from {r}").hex() for r in range(2)]
    store.add("count", rank + 1)
    store.barrier("end", 2)
    found += [store.get("count").decode(), store.check(["part/from 1"]), store.delete_key("none")]
    address = f"tcp://localhost:{port[0] if rank else server.port}"
    again, *ranks = next(dist.rendezvous(address, rank, 2)) if rank else (store, 0, 2)
    found += [again.get("count").decode(), ranks]
    dist.barrier()  # The server stays until all have asked.
    return found


def meshes(lib, dist, rank):
    found = []
    for shape, names in (((2,), None), ((2,), ("dp",)), ((1, 2), ("a", "b")), ((2, 1), ("a", "b"))):
        mesh = dist.init_device_mesh("cpu", shape, mesh_dim_names=names)
        x = _t(lib, rank, 2)
        dist.all_reduce(x, group=mesh.get_group(mesh.ndim - 1))
        found += [
            str(mesh) if 1 not in shape else None,
            mesh.mesh.tolist(),
            list(mesh.get_coordinate()),
            [dist.get_process_group_ranks(group) for group in mesh.get_all_groups()],
            out(x),
        ]
    sub = mesh["a"]
    return [*found, sub.size(), sub.get_local_rank(), sub == mesh["a"], sub == mesh]


def facts(lib, dist, rank):
    dist.barrier()
    dist.monitored_barrier(timeout=datetime.timedelta(seconds=30))
    backend = dist.get_backend()
    return [
        dist.is_initialized(),
        dist.is_available(),
        dist.get_rank(),
        dist.get_world_size(),
        str(backend),
        backend == dist.Backend.GLOO,
        str(dist.Backend("NCCL")),
        dist.get_node_local_rank(fallback_rank=rank) >= 0,
        dist.get_default_backend_for_device("cpu"),
    ]


def gradients(lib, dist, rank):
    F = dist.nn.functional
    found = []

    def grad_of(call, shown=True):
        x = _t(lib, rank, 4, dtype="float64").requires_grad_()
        weight = _t(lib, rank, 4, dtype="float64", salt=5)
        y = call(x)
        (y.reshape(-1) * weight[: y.numel()].reshape(-1)).sum().backward()
        found.append([out(y.detach()) if shown else None, out(x.grad)])

    grad_of(lambda x: F.all_reduce(x))
    grad_of(lambda x: F.all_gather(x)[1 - rank])
    grad_of(lambda x: F.reduce_scatter(lib.zeros(2, dtype=lib.float64), list(x.split(2))))
    grad_of(lambda x: F.broadcast(x, 1))
    grad_of(lambda x: F.reduce(x, 1), shown=rank == 1)  # Elsewhere gloo leaves what passed by.
    grad_of(lambda x: F.all_to_all_single(lib.zeros(4, dtype=lib.float64), x))
    grad_of(lambda x: F.scatter(list(x.split(2)), 1))
    return found


def errors(lib, dist, rank):
    ones = lib.ones(2)
    calls = {
        "no tensor": lambda: dist.all_reduce([1.0]),
        "no list": lambda: dist.all_gather(ones, ones),
        "op is no op": lambda: dist.all_reduce(ones, "sum"),
        "count": lambda: dist.all_gather([ones], ones),
        "dtypes": lambda: dist.all_gather([ones.double(), ones.double()], ones),
        "size": lambda: dist.all_gather_into_tensor(lib.ones(3), ones),
        "no root": lambda: dist.broadcast(ones),
        "both roots": lambda: dist.broadcast(ones, 0, group_src=0),
        "root": lambda: dist.broadcast(ones, 5),
        "self": lambda: dist.send(ones, rank),
        "gather list": lambda: dist.gather(ones, None if rank == 0 else [ones, ones], 0),
        "scatter list": lambda: dist.scatter(ones, None if rank == 0 else [ones, ones], 0),
        "initialised twice": lambda: dist.init_process_group("gloo"),
        "duplicate": lambda: dist.new_group([0, 0]),
        "too large": lambda: dist.new_group([0, 1, 2]),
        "subgroup size": lambda: dist.new_subgroups(3),
        "op of batch": lambda: dist.P2POp(dist.all_reduce, ones, 0),
        "batch": lambda: dist.batch_isend_irecv([1]),
        "splits": lambda: dist.all_to_all_single(ones, ones, [1], [1, 1]),
        "no place": lambda: dist.scatter_object_list([], [1, 2], 0),
        "backend": lambda: dist.Backend(3),
        "reduce list": lambda: dist.reduce_scatter(ones, [ones] * 3),
    }
    found = {}
    for name, call in calls.items():
        try:
            call()
            found[name] = "no error"
        except Exception as error:
            kinds = (TypeError, ValueError, AssertionError, RuntimeError)
            found[name] = next(k.__name__ for k in kinds if isinstance(error, k))
    return found


CALLS = [
    all_reduce_every_op_and_dtype,
    all_reduce_asynchronously,
    all_reduce_coalesced,
    reduce_and_broadcast,
    all_gather_forms,
    gather_and_scatter,
    reduce_scatter_forms,
    all_to_all_forms,
    messages,
    batched_messages,
    objects,
    object_messages,
    groups,
    calls_of_a_group,
    stores,
    meshes,
    facts,
    gradients,
    errors,
]
