"""Random numbers on the GPUs: one generator each, seeded by `dptrain.manual_seed` or here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dptrain.core import cuda as core_cuda
from dptrain.core.random import default_generator
from dptrain.core.tensor import Tensor
from dptrain.cuda.devices import index_of, library


def manual_seed(seed: int) -> None:
    """Seed the generator of the current GPU; nothing happens without one."""
    if core_cuda.device_count():
        default_generator().on(library("manual_seed").current()).manual_seed(seed)


def manual_seed_all(seed: int) -> None:
    """Seed the generators of all GPUs."""
    for index in range(core_cuda.device_count()):
        default_generator().on(index).manual_seed(seed)


def seed() -> None:
    """Seed the generator of the current GPU from the operating system."""
    if core_cuda.device_count():
        default_generator().on(library("seed").current()).seed()


def seed_all() -> None:
    """Seed the generators of all GPUs from the operating system, alike."""
    if core_cuda.device_count():
        manual_seed_all(default_generator().on(0).seed())


def initial_seed() -> int:
    """The seed of the current GPU's generator.

    Raises:
        RuntimeError: there is no GPU.
    """
    return default_generator().on(library("initial_seed").current()).initial_seed()


def get_rng_state(device: Any = "cuda") -> Tensor:
    """State of a GPU's generator, in host memory.

    Raises:
        RuntimeError: there is no GPU.
    """
    return default_generator().on(index_of("get_rng_state", device)).get_state()


def get_rng_state_all() -> list[Tensor]:
    """States of all GPUs' generators."""
    return [get_rng_state(i) for i in range(core_cuda.device_count())]


def set_rng_state(new_state: Tensor, device: Any = "cuda") -> None:
    """Go on from a state of `get_rng_state`.

    Raises:
        RuntimeError: it is none, or there is no GPU.
    """
    default_generator().on(index_of("set_rng_state", device)).set_state(new_state)


def set_rng_state_all(new_states: Sequence[Tensor]) -> None:
    """Go on from the states of `get_rng_state_all`."""
    for i, state in enumerate(new_states):
        set_rng_state(state, i)
