"""Device meshes: every rank's view is PyTorch's, and groups along a dimension reduce there alone."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest

import dptrain
import dptrain.distributed as dist
from dptrain import nn
from dptrain.distributed import DeviceMesh, init_device_mesh
from dptrain.nn.parallel import DistributedDataParallel

sys.path.insert(0, str(Path(__file__).parents[1] / "parallel"))
from thread_ranks import on_ranks

SIZE = 4


def view(lib, rank):
    """What a rank of four sees of several meshes; errors by their kinds."""

    def tried(call):
        try:
            found = call()
        except Exception as error:
            return type(error).__name__
        return found.tolist() if hasattr(found, "tolist") else found

    ranks = lib.get_process_group_ranks
    two = lib.init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    one, tall = lib.init_device_mesh("cpu", (4,)), lib.DeviceMesh("cpu", [[0, 2], [1, 3]])
    three = lib.init_device_mesh("cpu", (2, 1, 2), mesh_dim_names=("a", "b", "c"))
    half = lib.DeviceMesh("cpu", [1, 2])
    subs = [two["replicate"], two["shard"], three["a", "b"], three["a", "c"], three["b"]]
    found = []
    for mesh in (two, one, tall, three, *subs):
        found.append(
            [
                # PyTorch writes () for the stride of a dimension of one.
                repr(mesh) if 1 not in mesh.shape else None,
                mesh.mesh.tolist(),
                str(mesh.mesh.dtype).split(".")[-1],
                mesh.mesh_dim_names,
                mesh.device_type,
                mesh.ndim,
                tuple(mesh.shape),
                mesh.size(),
                [mesh.size(dim) for dim in range(mesh.ndim)],
                mesh.get_rank(),
                mesh.get_coordinate(),
                [mesh.get_local_rank(dim) for dim in range(mesh.ndim)],
                [ranks(group) for group in mesh.get_all_groups()],
                tried(lambda mesh=mesh: mesh.get_local_rank()),
                tried(lambda mesh=mesh: ranks(mesh.get_group())),
            ]
        )
    flat = three["a", "c"]._flatten("all")
    found += [
        ranks(two.get_group("shard")),
        two.get_local_rank("replicate"),
        flat.mesh.tolist(),
        ranks(flat.get_group()),
        ranks(three["all"].get_group()),
        ranks(three.get_group("all")),
        (half.get_coordinate(), half.size(), half.mesh.tolist()),
        one.get_group() is lib.group.WORLD,
        (two == two["replicate", "shard"], two == tall, two["shard"] == two["shard"]),
        hash(two["shard"]) == hash(two["shard"]),
    ]
    for bad in (
        lambda: two["none"],
        lambda: two["shard", "replicate"],
        lambda: two.get_group("none"),
        lambda: two.get_group(5),
        lambda: two.size(5),
        lambda: two.get_local_rank(7),
        lambda: one["dp"],
        lambda: lib.init_device_mesh("cpu", (2, 2), mesh_dim_names=("a",)),
        lambda: lib.init_device_mesh("cpu", (2, 2), mesh_dim_names=("a", "a")),
        lambda: lib.init_device_mesh("cpu:0", (2, 2)),
        lambda: lib.init_device_mesh("cpu", (5,)),
        lambda: lib.DeviceMesh.from_group([], "cpu"),
    ):
        found.append(tried(bad))
    again = lib.DeviceMesh.from_group(
        two.get_all_groups(), "cpu", mesh=two.mesh, mesh_dim_names=("x", "y")
    )
    single = lib.DeviceMesh.from_group(two.get_group("shard"), "cpu")
    return [*found, repr(again), ranks(again.get_group("y")), single.mesh.tolist()]


@pytest.fixture
def fake_ranks():
    """`fake_ranks(rank)`: PyTorch as one of four ranks that never meet the others."""
    theirs = pytest.importorskip("torch.distributed", reason="PyTorch is not installed")
    fake = pytest.importorskip("torch.testing._internal.distributed.fake_pg")

    def start(rank):
        if theirs.is_initialized():
            theirs.destroy_process_group()
        theirs.init_process_group("fake", rank=rank, world_size=SIZE, store=fake.FakeStore())
        return theirs

    yield start
    if theirs.is_initialized():
        theirs.destroy_process_group()


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore")  # PyTorch's
def test_every_rank_sees_what_pytorch_shows_it(fake_ranks):
    ours = on_ranks(SIZE, lambda comm: view(dist, comm.rank))
    for rank in range(SIZE):
        for mine, wanted in zip(ours[rank], view(fake_ranks(rank), rank), strict=True):
            assert mine == wanted, rank


def test_groups_along_a_dimension_reduce_there_alone():
    def rank(comm):
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("outer", "inner"))
        rows, columns, all_of_them = (dptrain.tensor([float(comm.rank)]) for _ in range(3))
        dist.all_reduce(rows, group=mesh.get_group("inner"))
        dist.all_reduce(columns, group=mesh["outer"].get_group())
        dist.all_reduce(all_of_them, group=mesh._flatten().get_group())
        return rows.item(), columns.item(), all_of_them.item()

    assert on_ranks(SIZE, rank) == [(1, 2, 6), (1, 4, 6), (5, 2, 6), (5, 4, 6)]


def test_a_model_is_data_parallel_along_one_dimension():
    """Rows of the mesh train different models; ranks of a row the same one."""

    def rank(comm):
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("model", "dp"))
        found = []
        for arguments in ({"device_mesh": mesh["dp"]}, {"process_group": mesh.get_group("dp")}):
            layer = nn.Linear(2, 1, bias=False)
            with dptrain.no_grad():
                layer.weight.fill_(float(comm.rank))
            model = DistributedDataParallel(layer, **arguments)
            model(dptrain.full((1, 2), comm.rank + 1.0)).sum().backward()
            found += [layer.weight.tolist()[0][0], layer.weight.grad.tolist()[0][0]]
        return found

    assert on_ranks(SIZE, rank) == [[0, 1.5] * 2] * 2 + [[2, 3.5] * 2] * 2


def test_meshes_that_cannot_be_are_refused():
    def rank(comm):
        group, mesh = dist.group.WORLD, init_device_mesh("cpu", (2, 1))
        cases = [
            (lambda: DeviceMesh("cpu", [0, 0]), RuntimeError, "a rank twice"),
            (lambda: DeviceMesh("cpu", [0, 7]), RuntimeError, "no rank of the 2"),
            (lambda: DeviceMesh("cpu"), TypeError, "mesh of ranks has to be given"),
            (lambda: DeviceMesh.from_group([group, group], "cpu"), ValueError, "Must pass mesh"),
            (lambda: DeviceMesh.from_group([group], "cpu", [[0, 1]]), ValueError, "per mesh dim"),
            (lambda: DeviceMesh.from_group(group, "cpu", [1, 0]), ValueError, "is not dimension 0"),
            (
                lambda: DistributedDataParallel(nn.Linear(1, 1), device_mesh=mesh),
                RuntimeError,
                "Only 1D device mesh",
            ),
            (
                lambda: DistributedDataParallel(
                    nn.Linear(1, 1), process_group=group, device_mesh=mesh
                ),
                RuntimeError,
                "Cannot specify both",
            ),
        ]
        for call, kind, words in cases:
            with pytest.raises(kind, match=words):
                call()
        outside = DeviceMesh("cpu", [0])
        if comm.rank == 1:
            for call in (outside.get_group, outside.get_local_rank):
                with pytest.raises(
                    RuntimeError, match=re.escape("rank 1 is not in DeviceMesh((1,)")
                ):
                    call()

    on_ranks(2, rank)


def test_a_mesh_connects_a_script_that_has_not(alone_in_the_world):
    mesh = init_device_mesh("cpu", (1,))
    assert dist.is_initialized()
    assert np.array_equal(mesh.mesh.numpy(), [0])


@pytest.fixture
def alone_in_the_world():
    assert not dist.is_initialized()
    yield
    dist.destroy_process_group()
