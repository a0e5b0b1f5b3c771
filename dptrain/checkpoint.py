"""Checkpoints of a training run: safetensors plus a JSON manifest, complete or not there at all.

Owns: `save_checkpoint`, `latest_checkpoint`, `load_checkpoint`. Must not know: what is saved beyond
nested containers of tensors and plain values.

A checkpoint is a folder `step-<number>` with `tensors.safetensors` and `manifest.json`. Both are
written into a temporary folder, flushed to disk, and the folder is renamed; so a folder of that name
is complete unless the disk lost something, which the manifest's digest shows. An older checkpoint is
removed only after the new one stands. No collective is called: saving from one rank cannot hang.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dptrain.comm.default import default_communicator
from dptrain.core.arrays import to_host
from dptrain.core.tensor import Tensor, wrap
from dptrain.parallel import DistributedDataParallel
from dptrain.serialization.safetensors_file import pack, unpack

_FORMAT = 1
_FOLDER = re.compile(r"step-(\d+)\Z")


class CheckpointError(RuntimeError):
    """A checkpoint is incomplete, damaged, or of a kind that this version cannot read."""


def save_checkpoint(
    directory: str | Path, state: Mapping[str, Any], step: int, keep: int = 2
) -> Path | None:
    """Write `state` as the checkpoint of `step`; only rank 0 writes, the others return at once.

    Args:
        directory: the run's folder; made if missing.
        state: nested dicts, lists and tuples of tensors, arrays, numbers, strings, bools and None, and
            of what has a `state_dict()` (models, optimizers, schedulers, loaders), which is saved; of a
            `DistributedDataParallel(reproducible=...)` at the top also where its random numbers stand.
        step: its number; a checkpoint of the same number is replaced.
        keep: how many checkpoints stay, the newest ones.

    Returns:
        The checkpoint's folder on rank 0, None elsewhere.

    Raises:
        TypeError: a value of another kind, named by its path.
        OSError: the disk; the earlier checkpoints are untouched.
    """
    if default_communicator().rank != 0:
        return None
    if keep < 1:
        raise ValueError(f"keep must be at least 1, got {keep}")
    run = Path(directory)
    run.mkdir(parents=True, exist_ok=True)
    target = run / f"step-{step:09d}"
    temporary = run / f".{target.name}.{os.getpid()}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        _write(temporary, state, step)
        if target.exists():
            shutil.rmtree(target)
        temporary.rename(target)
        _flush_folder(run)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for old in _checkpoints(run)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def _write(folder: Path, state: Mapping[str, Any], step: int) -> None:
    arrays: dict[str, np.ndarray] = {}
    tree = _encode(dict(state), "state", arrays)
    data = pack(arrays)
    _write_flushed(folder / "tensors.safetensors", data)
    manifest = {
        "format": _FORMAT,
        "step": step,
        "nbytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "state": tree,
        # What a model's state_dict(), which is the plain module's, has no place for.
        "shard_steps": {k: v.shard_steps for k, v in state.items() if _follows_shards(v)},
    }
    _write_flushed(folder / "manifest.json", json.dumps(manifest, indent=1).encode())


def _follows_shards(value: Any) -> bool:
    return isinstance(value, DistributedDataParallel) and bool(value.reproducible)


def _write_flushed(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _encode(value: Any, path: str, arrays: dict[str, np.ndarray]) -> Any:
    if not isinstance(value, Mapping) and hasattr(value, "state_dict"):
        value = value.state_dict()
    if isinstance(value, (Tensor, np.ndarray)):
        name = f"{len(arrays)}:{path}"
        array = to_host(value._array) if isinstance(value, Tensor) else value
        arrays[name] = array
        return {"tensor" if isinstance(value, Tensor) else "array": name}
    if isinstance(value, Mapping):
        return {
            "dict": [
                [_encode_key(k, path), _encode(v, f"{path}.{k}", arrays)] for k, v in value.items()
            ]
        }
    if isinstance(value, (list, tuple)):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_encode(v, f"{path}.{i}", arrays) for i, v in enumerate(value)]}
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(
        f"save_checkpoint: {path} is a {type(value).__name__}; a checkpoint holds tensors, arrays, numbers, "
        "strings, bools, None, what has a state_dict(), and dicts, lists and tuples of these"
    )


def _encode_key(key: Any, path: str) -> Any:
    if isinstance(key, (str, int)):
        return key
    raise TypeError(
        f"save_checkpoint: a key of {path} is a {type(key).__name__}; keys are strings or ints"
    )


def _decode(value: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return wrap(arrays[content])
    if kind == "array":
        return arrays[content]
    if kind == "dict":
        return {k: _decode(v, arrays) for k, v in content}
    items = [_decode(v, arrays) for v in content]
    return items if kind == "list" else tuple(items)


def _checkpoints(run: Path) -> list[Path]:
    """Folders named like checkpoints, oldest step first."""
    found = [(int(m[1]), p) for p in run.iterdir() if (m := _FOLDER.match(p.name)) and p.is_dir()]
    return [p for _, p in sorted(found)]


def latest_checkpoint(directory: str | Path) -> Path | None:
    """The newest checkpoint in `directory` that is complete; None if there is none.

    Damaged ones are passed over with a warning that says what is wrong with them.
    """
    run = Path(directory)
    if not run.is_dir():
        return None
    for path in reversed(_checkpoints(run)):
        try:
            _read(path)
        except CheckpointError as error:
            warnings.warn(f"passing over a damaged checkpoint: {error}", stacklevel=2)
        else:
            return path
    return None


def load_checkpoint(path: str | Path, into: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Read a checkpoint: what `save_checkpoint` was given, tensors as new tensors.

    Args:
        path: a checkpoint's folder, or the run's folder, of which the newest complete one is read.
        into: objects that go on from the state saved under the same names, by `load_state_dict`.

    Raises:
        FileNotFoundError: no such folder, or no checkpoint in it.
        CheckpointError: incomplete or damaged; names the file, what was expected and what was found.
        KeyError: nothing was saved under a name in `into`.
    """
    folder: Path | None = Path(path)
    if not Path(path).is_dir():
        raise FileNotFoundError(f"no checkpoint at {path}")
    if not _FOLDER.match(Path(path).resolve().name):
        folder = latest_checkpoint(path)
    if folder is None:
        raise FileNotFoundError(f"there is no complete checkpoint in {path}")
    manifest, data = _read(folder)
    state: dict[str, Any] = _decode(manifest["state"], unpack(data))
    into = into or {}
    missing = [name for name in into if name not in state]
    if missing:
        raise KeyError(f"{folder} holds no {', '.join(missing)}; it holds {', '.join(state)}")
    for name, target in into.items():
        target.load_state_dict(state[name])
        if _follows_shards(target):
            target.shard_steps = manifest.get("shard_steps", {}).get(name, 0)
    return state


def _read(folder: Path) -> tuple[dict[str, Any], bytes]:
    manifest_path, tensors_path = folder / "manifest.json", folder / "tensors.safetensors"
    try:
        manifest = json.loads(manifest_path.read_bytes())
        data = tensors_path.read_bytes()
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{error.filename} is missing; the checkpoint {folder} is incomplete"
        ) from None
    except ValueError as error:
        raise CheckpointError(f"{manifest_path} is cut short or damaged ({error})") from None
    if not isinstance(manifest, dict) or manifest.get("format") != _FORMAT:
        raise CheckpointError(f"{manifest_path} is no manifest of format {_FORMAT}")
    if len(data) != manifest["nbytes"]:
        raise CheckpointError(
            f"{tensors_path} has {len(data)} bytes, expected {manifest['nbytes']}; it was cut short"
        )
    if hashlib.sha256(data).hexdigest() != manifest["sha256"]:
        raise CheckpointError(
            f"{tensors_path} does not match its digest in the manifest; it is damaged"
        )
    return manifest, data
