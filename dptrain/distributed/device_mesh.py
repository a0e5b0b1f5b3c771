"""Ranks in rows and columns, and the group of each row and each column.

Owns: `DeviceMesh`, `init_device_mesh`. Must not know: what is parallel along which dimension.

A data-parallel model on several dimensions takes the group of one of them:
`DistributedDataParallel(model, process_group=mesh.get_group("dp"))`, or `device_mesh=mesh["dp"]`.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from dptrain.core.creation import tensor
from dptrain.core.dtypes import int32
from dptrain.core.tensor import Tensor
from dptrain.distributed.backends import init_process_group, is_initialized
from dptrain.distributed.groups import ProcessGroup, groups_of_parts, world


class DeviceMesh:
    """The ranks of the job in an array of one or more dimensions. All ranks of the job make it.

    Args:
        device_type: "cpu" or "cuda"; for the reader, as a rank's device is its group's affair.
        mesh: the ranks' numbers in the job, nested as the mesh is; not every rank needs a place.
        mesh_dim_names: names of the dimensions, for `mesh["dp"]` and `get_group("dp")`.
        backend_override: accepted; ranks stay connected as they are.

    Raises:
        RuntimeError: a rank twice, more ranks than the job has, a device with an index, or names that do
            not fit.
    """

    def __init__(
        self,
        device_type: str,
        mesh: Any = None,
        *,
        mesh_dim_names: Sequence[str] | None = None,
        backend_override: Any = None,
    ) -> None:
        if mesh is None:
            raise TypeError("DeviceMesh: a mesh of ranks has to be given")
        ranks = np.array(mesh.tolist() if isinstance(mesh, Tensor) else mesh, np.int64)
        names = _checked_names(mesh_dim_names, ranks.ndim)
        _check_device_type(device_type)
        _check_ranks(ranks)
        groups = [_group_along(ranks, (dim,)) for dim in range(ranks.ndim)]
        self._set(device_type, ranks, names, tuple(range(ranks.ndim)), groups)

    def _set(
        self,
        device_type: str,
        ranks: np.ndarray,
        names: tuple[str, ...] | None,
        dims: tuple[int, ...],
        groups: Sequence[ProcessGroup | None],
        root: DeviceMesh | None = None,
    ) -> None:
        """Be the dimensions `dims` of the mesh `ranks`, at this rank's place in the others."""
        self.device_type, self._ranks, self._dims = device_type, ranks, dims
        self.mesh_dim_names = names
        self._root = self if root is None else root
        self._groups = list(groups)
        self._flat: dict[str, DeviceMesh] = {}
        found = np.argwhere(ranks == world().rank())
        self._place = tuple(int(i) for i in found[0]) if len(found) else None
        # A rank without a place sees the first row where only some dimensions are asked for.
        at = self._place or (0,) * ranks.ndim
        rest = tuple(slice(None) if d in dims else at[d] for d in range(ranks.ndim))
        self._here = ranks[rest]

    @classmethod
    def _made(
        cls,
        device_type: str,
        ranks: np.ndarray,
        names: tuple[str, ...] | None,
        dims: tuple[int, ...],
        groups: Sequence[ProcessGroup | None],
        root: DeviceMesh | None = None,
    ) -> DeviceMesh:
        made = cls.__new__(cls)
        made._set(device_type, ranks, names, dims, groups, root)
        return made

    @staticmethod
    def from_group(
        group: ProcessGroup | Sequence[ProcessGroup],
        device_type: str,
        mesh: Any = None,
        *,
        mesh_dim_names: Sequence[str] | None = None,
        backend_override: Any = None,
    ) -> DeviceMesh:
        """The mesh of groups that exist: of one, or of one for each dimension of `mesh`.

        Raises:
            ValueError: another number of groups than of dimensions, or a group that is not the ranks of
                this process along its dimension.
        """
        groups = [group] if isinstance(group, ProcessGroup) else list(group)
        if not groups:
            raise ValueError("Expects at least one ProcessGroup to be specified")
        if mesh is None and len(groups) > 1:
            raise ValueError("Must pass mesh if passing multiple ProcessGroups")
        if mesh is None:
            mesh = groups[0].ranks
        ranks = np.array(mesh.tolist() if isinstance(mesh, Tensor) else mesh, np.int64)
        if ranks.ndim != len(groups):
            raise ValueError(
                f"Expects one ProcessGroup per mesh dim, got {len(groups)} for {ranks.ndim} dimensions"
            )
        names = _checked_names(mesh_dim_names, ranks.ndim)
        made = DeviceMesh._made(device_type, ranks, names, tuple(range(ranks.ndim)), groups)
        for dim, found in enumerate(groups):
            if made._along(dim) != found.ranks:
                raise ValueError(
                    f"the group of ranks {found.ranks} is not dimension {dim} of the mesh, in which this rank is "
                    f"with {made._along(dim)}"
                )
        return made

    # ---- what it is ------------------------------------------------------------------------------

    @property
    def mesh(self) -> Tensor:
        """The ranks' numbers, int32."""
        return tensor(self._here, dtype=int32)

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self._dims)

    @property
    def shape(self) -> tuple[int, ...]:
        """Ranks along each dimension."""
        return tuple(self._here.shape)

    def size(self, mesh_dim: int | None = None) -> int:
        """Number of ranks, in all or along a dimension."""
        return int(self._here.size) if mesh_dim is None else self.shape[mesh_dim]

    def get_rank(self) -> int:
        """This rank's number in the job."""
        return world().rank()

    def get_coordinate(self) -> tuple[int, ...] | None:
        """This rank's place in each dimension; None if it has none."""
        return None if self._place is None else tuple(self._place[dim] for dim in self._dims)

    def get_local_rank(self, mesh_dim: int | str | None = None) -> int:
        """This rank's place in a dimension, which a mesh of one dimension need not name.

        Raises:
            RuntimeError: no dimension of several is named, or this rank has no place.
        """
        place = self.get_coordinate()
        if place is None:
            raise RuntimeError(f"rank {self.get_rank()} is not in {self!r}")
        return place[self._dim("get_local_rank", mesh_dim)]

    # ---- groups ----------------------------------------------------------------------------------

    def get_group(self, mesh_dim: int | str | None = None) -> ProcessGroup:
        """The group of the ranks that differ from this one in that dimension alone.

        Raises:
            RuntimeError: no dimension of several is named, or this rank has no place.
            KeyError, IndexError: no such dimension.
        """
        if isinstance(mesh_dim, str) and mesh_dim in self._root._flat:
            return self._root._flat[mesh_dim].get_group()
        found = self._groups[self._dim("get_group", mesh_dim)]
        if found is None:
            raise RuntimeError(f"rank {self.get_rank()} is not in {self!r}")
        return found

    def get_all_groups(self) -> list[ProcessGroup]:
        """The groups of all dimensions."""
        return [self.get_group(dim) for dim in range(self.ndim)]

    def _dim(self, op: str, dim: int | str | None) -> int:
        if dim is None and self.ndim > 1:
            raise RuntimeError(
                f"{op}: found the DeviceMesh to have {self.ndim} dimensions; mesh_dim needs to be specified when "
                "device_mesh.ndim > 1."
            )
        if isinstance(dim, str):
            if dim not in (self.mesh_dim_names or ()):
                raise KeyError(
                    f"Mesh dimension '{dim}' does not exist. Available mesh dimensions are: "
                    f"mesh_dim_names={self.mesh_dim_names}"
                )
            assert self.mesh_dim_names is not None
            return self.mesh_dim_names.index(dim)
        found = 0 if dim is None else dim
        if not -self.ndim <= found < self.ndim:
            raise IndexError(
                f"{op}: mesh_dim {dim} is none of the {self.ndim} dimensions of {self!r}"
            )
        return found

    def _along(self, dim: int) -> list[int]:
        """The ranks that differ from this one in that dimension alone."""
        at = self.get_coordinate() or (0,) * self.ndim
        row = tuple(slice(None) if d == dim else at[d] for d in range(self.ndim))
        return [int(rank) for rank in self._here[row]]

    # ---- other meshes of the same ranks ------------------------------------------------------------

    def __getitem__(self, names: str | tuple[str, ...]) -> DeviceMesh:
        """The mesh of some dimensions, by name and in their order, at this rank's place in the others.

        Raises:
            RuntimeError: the dimensions have no names.
            KeyError: no such name, or names out of order.
        """
        if self.mesh_dim_names is None:
            raise RuntimeError("Cannot slice a DeviceMesh without mesh_dim_names!")
        wanted = (names,) if isinstance(names, str) else tuple(names)
        if wanted == self.mesh_dim_names:
            return self
        if len(wanted) == 1 and wanted[0] in self._root._flat:
            return self._root._flat[wanted[0]]
        if not wanted or not set(wanted) <= set(self.mesh_dim_names):
            valid = [*self.mesh_dim_names, *self._root._flat]
            raise KeyError(
                f"Invalid mesh_dim_names {wanted} specified. Valid mesh_dim_names are {valid}."
            )
        at = [self.mesh_dim_names.index(name) for name in wanted]
        if at != sorted(set(at)):
            raise KeyError(
                f"Invalid mesh_dim_names {wanted} specified. Mesh dim indices should be in ascending order."
            )
        dims, groups = tuple(self._dims[i] for i in at), [self._groups[i] for i in at]
        return self._made(self.device_type, self._ranks, wanted, dims, groups, self._root)

    def _flatten(self, mesh_dim_name: str | None = None) -> DeviceMesh:
        """The ranks of all dimensions in one. All ranks of the job make the call.

        Args:
            mesh_dim_name: under which the mesh that this one is part of finds it; None: the names of the
                dimensions, joined by "_".

        Raises:
            RuntimeError: the dimensions have no names.
        """
        if self.mesh_dim_names is None:
            raise RuntimeError("Cannot flatten a DeviceMesh without mesh_dim_names!")
        name = mesh_dim_name or "_".join(self.mesh_dim_names)
        if self.ndim == 1 and name == self.mesh_dim_names[0]:
            return self
        if name not in self._root._flat:
            group = _group_along(self._ranks, self._dims)
            ranks = np.array(self._here.reshape(-1))
            self._root._flat[name] = self._made(self.device_type, ranks, (name,), (0,), [group])
        return self._root._flat[name]

    # ---- comparison and printing -------------------------------------------------------------------

    def _key(self) -> tuple[Any, ...]:
        ranks = tuple(self._here.reshape(-1).tolist())
        return self.device_type, self.shape, ranks, self.mesh_dim_names

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, DeviceMesh) and self._key() == other._key())

    def __hash__(self) -> int:
        return hash(self._key())

    def __enter__(self) -> DeviceMesh:
        return self

    def __exit__(self, *error: object) -> None:
        """A mesh keeps nothing open."""

    def __repr__(self) -> str:
        if self.mesh_dim_names is None:
            shape = str(self.shape)
        else:
            named = zip(self.mesh_dim_names, self.shape, strict=True)
            shape = f"({', '.join(f'{name}={size}' for name, size in named)})"
        strides = tuple(prod(self._ranks.shape[dim + 1 :]) for dim in self._dims)
        return f"DeviceMesh({shape}, '{self.device_type}', stride={strides})"


def init_device_mesh(
    device_type: str,
    mesh_shape: tuple[int, ...],
    *,
    mesh_dim_names: tuple[str, ...] | None = None,
    backend_override: Any = None,
) -> DeviceMesh:
    """A mesh of the job's ranks in their order, the last dimension fastest. All ranks make the call.

    Connects the ranks as `init_process_group()` does, if nobody has.

    Args:
        device_type: "cpu" or "cuda".
        mesh_shape: ranks along each dimension.
        mesh_dim_names: one name for each dimension.
        backend_override: accepted; ranks stay connected as they are.

    Raises:
        RuntimeError: as `DeviceMesh`.
    """
    _check_device_type(device_type)
    names = _checked_names(mesh_dim_names, len(mesh_shape))
    if not is_initialized():
        init_process_group()
    ranks = np.arange(prod(mesh_shape)).reshape(mesh_shape)
    return DeviceMesh(device_type, ranks, mesh_dim_names=names)


def _check_device_type(device_type: str) -> None:
    if not device_type.isalpha():
        raise RuntimeError(
            f"Device type with index is not supported but got {device_type}. If you maintained a 'torch.device' object, "
            "it's recommended to pass in 'device.type'."
        )


def _checked_names(names: Sequence[str] | None, ndim: int) -> tuple[str, ...] | None:
    if names is None:
        return None
    if len(set(names)) != len(names):
        raise RuntimeError(
            f"Each mesh_dim_name must be unique. Found repeated mesh_dim_name in mesh_dim_names {tuple(names)}"
        )
    if len(names) != ndim:
        raise RuntimeError(
            "mesh_shape and mesh_dim_names should have same length! Found len(mesh_dim_names): "
            f"{len(names)} and len(mesh_shape): {ndim}."
        )
    return tuple(names)


def _check_ranks(ranks: np.ndarray) -> None:
    size = world().size()
    if ranks.size > size:
        raise RuntimeError(
            f"Mesh should not be bigger than default world size {size}, but found {ranks.size} ranks!"
        )
    if len(np.unique(ranks)) != ranks.size:
        raise RuntimeError(f"DeviceMesh cannot contain a rank twice, got {ranks.tolist()}")
    if not all(0 <= rank < size for rank in ranks.reshape(-1)):
        raise RuntimeError(f"DeviceMesh: {ranks.tolist()} holds what is no rank of the {size}")


def _group_along(ranks: np.ndarray, dims: tuple[int, ...]) -> ProcessGroup | None:
    """The group of this rank with those that differ from it in these dimensions alone. Collective."""
    rest = [dim for dim in range(ranks.ndim) if dim not in dims]
    rows = ranks.transpose(*rest, *dims).reshape(-1, prod(ranks.shape[dim] for dim in dims))
    if rows.tolist() == [list(range(world().size()))]:
        return world()
    return groups_of_parts(rows.tolist())
