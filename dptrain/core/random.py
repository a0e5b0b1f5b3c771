"""Random numbers: counter-based Philox streams keyed by seed, purpose and shard.

Owns: `Generator`, the default generator, `manual_seed`, the shard of this rank.
Must not know: ranks; whoever does sets the shard.

Draws of the user and of initialisers come from one stream (equal on all ranks that use one seed);
dropout masks come from a stream of their own per shard, so that ranks draw different masks while
their parameters start equal. Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
SC'11 (Philox).
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np

from dptrain.core.arrays import device_of, namespace_of, namespace_on
from dptrain.core.capturing import not_in_replays, recorder
from dptrain.core.cuda import device_count
from dptrain.core.device import as_device
from dptrain.core.dtypes import limits
from dptrain.core.tensor import Tensor, wrap

#: Purposes: what a stream is for. Part of its key, so that streams never overlap.
DRAWS, DROPOUT = 0, 1

_shard: ContextVar[int] = ContextVar("random_shard", default=0)
_own_draws: ContextVar[bool] = ContextVar("random_own_draws", default=False)


def numpy_stream(seed: int, *words: int) -> np.random.Generator:
    """A NumPy generator over the Philox stream that belongs to (seed, *words)."""
    # Two words for the seed whatever its size, so that no two keys can coincide.
    key = np.random.SeedSequence((seed % 2**32, (seed >> 32) % 2**32, *words))
    return np.random.Generator(np.random.Philox(key))


def set_shard(shard: int, own_draws: bool = False) -> None:
    """Say which share of the global batch this context computes; dropout masks follow it.

    Args:
        shard: its number.
        own_draws: the other draws of this context follow it too. For replicas that run at the same
            time in threads, whose order would decide who gets which number.
    """
    _shard.set(shard)
    _own_draws.set(own_draws)


def current_shard() -> int:
    """The share of the global batch that this context computes."""
    return _shard.get()


class Generator:
    """A source of random numbers with PyTorch's interface.

    Args:
        device: where the numbers are made. On a GPU the uniform numbers are those that the host would
            make with the same seed.
    """

    def __init__(self, device: Any = "cpu") -> None:
        self._set_up(device)
        self.manual_seed(67280421310721)

    def _set_up(self, device: Any, seed: int = 0) -> None:
        self.device = as_device(device)
        self._seed = seed
        #: NumPy's generators, or on a GPU `kernels.cuda.philox.DeviceStream`s.
        self._streams: dict[tuple[int, int], Any] = {}
        #: For each purpose where a restored stream stood: words drawn, and whether half a word is left.
        self._restored: dict[int, tuple[int, bool]] = {}
        self._on_gpus: dict[int, Generator] = {}

    def manual_seed(self, seed: int) -> Generator:
        """Start every stream anew from `seed`."""
        not_in_replays("seeds a random generator")
        self._seed = int(seed)
        self._streams.clear()
        self._restored.clear()
        self._on_gpus.clear()  # they start from this seed again
        return self

    def on(self, index: int) -> Generator:
        """The generator that goes with this one on a GPU; it starts from the same seed."""
        found = self._on_gpus.get(index)
        if found is None:
            found = self._on_gpus[index] = Generator.__new__(Generator)
            found._set_up(f"cuda:{index}", self._seed)  # which seeds nothing anew
        return found

    def initial_seed(self) -> int:
        """The seed that the streams started from."""
        return self._seed

    def seed(self) -> int:
        """Seed from the operating system and return the seed."""
        self.manual_seed(secrets.randbits(63))
        return self._seed

    def stream(self, purpose: int = DRAWS) -> Any:
        """The stream for a purpose, as NumPy's `Generator`; dropout has one for each shard."""
        listener = recorder()
        if listener is not None:
            return listener.draws(self, purpose)
        key = self._stream_key(purpose)
        found = self._streams.get(key)
        if found is None:
            found = self._streams[key] = self._start(
                self._seed, *key, place=self._restored.get(purpose, (0, False))
            )
        return found

    @staticmethod
    def _stream_key(purpose: int) -> tuple[int, int]:
        return purpose, _shard.get() if purpose == DROPOUT or _own_draws.get() else 0

    def go_on_in(self, stream: Any, purpose: int) -> None:
        """Draw for a purpose from a GPU's stream that recorded work knows, from where the present one stands."""
        now = self.stream(purpose)
        if now is not stream:
            stream.follow(now)
            self._streams[self._stream_key(purpose)] = stream

    def _start(self, seed: int, *key: int, place: tuple[int, bool] = (0, False)) -> Any:
        stream = numpy_stream(seed, *key)
        _move_to(stream, *place)
        if self.device.type == "cpu":
            return stream
        from dptrain.core.kernels.cuda.philox import DeviceStream

        return DeviceStream(namespace_on(self.device), stream)

    def uniform_beside(
        self, array: Any, shape: tuple[int, ...], purpose: int, dtype: Any = np.float32
    ) -> Any:
        """Uniform numbers in [0, 1) for computing with `array`: where it lives, the same everywhere."""
        place = device_of(array)
        if place.type == "cuda" and self.device.type == "cpu":
            assert place.index is not None
            return self.on(place.index).uniform_beside(array, shape, purpose, dtype)
        drawn = self.stream(purpose).random(shape, dtype=dtype)
        return drawn if place == self.device else namespace_of(array).asarray(drawn)

    def mark(self) -> list[tuple[tuple[int, int], Any]]:
        """Where the streams stand, for `back_at`."""
        return [(key, _state_of(stream)) for key, stream in self._streams.items()]

    @contextmanager
    def back_at(self, mark: list[tuple[tuple[int, int], Any]]) -> Iterator[None]:
        """Draw once more, inside a `with` block, what was drawn after the mark."""
        now = self.mark()
        for key, state in mark:
            _put_state(self._streams[key], state)
        try:
            yield
        finally:
            for key, state in now:
                _put_state(self._streams[key], state)

    def get_state(self) -> Tensor:
        """Everything needed to go on from here (on the GPUs too), as a uint8 tensor."""
        return wrap(np.frombuffer(json.dumps(self._state()).encode(), dtype=np.uint8).copy())

    def _state(self) -> dict[str, Any]:
        not_in_replays("reads the state of a random generator")
        streams = [[*key, _plain(_state_of(s))] for key, s in sorted(self._streams.items())]
        gpus = {str(index): g._state() for index, g in sorted(self._on_gpus.items())}
        return {"seed": self._seed, "streams": streams, **({"gpus": gpus} if gpus else {})}

    def set_state(self, new_state: Tensor) -> None:
        """Go on from a state of `get_state`.

        The state may be another rank's: shards draw equally much, so a shard of which the state knows
        nothing goes on in its own stream from where the state's shard was.

        Raises:
            RuntimeError: it is none.
        """
        try:
            self._restore(json.loads(new_state.numpy().tobytes()))
        except (ValueError, KeyError, TypeError) as error:
            raise RuntimeError(
                f"set_state expected a state made by get_state, got something else ({error})"
            ) from None

    def _restore(self, state: dict[str, Any]) -> None:
        not_in_replays("sets the state of a random generator")
        seed, streams = int(state["seed"]), {}
        restored: dict[int, tuple[int, bool]] = {}
        for purpose, shard, saved in state["streams"]:
            stream = self._start(seed, purpose, shard)
            _put_state(stream, _arrays(saved))
            streams[purpose, shard] = stream
            restored.setdefault(purpose, _place_of(stream))
        gpus = {}
        for index, saved in state.get("gpus", {}).items():
            if int(index) < device_count():  # a run may go on with fewer of them
                gpus[int(index)] = Generator(f"cuda:{index}")
                gpus[int(index)]._restore(saved)
        self._seed, self._streams, self._on_gpus = seed, streams, gpus
        self._restored = restored


def words_drawn(state: Any) -> int:
    """How many 64-bit words a NumPy Philox state has given: it holds a block and how many of its four."""
    blocks = int(state["state"]["counter"][0])
    return 4 * (blocks - 1) + int(state["buffer_pos"]) if blocks else 0


def _place_of(stream: Any) -> tuple[int, bool]:
    """Words drawn, and whether the second half of the last one is still to be given."""
    state = _state_of(stream)
    if isinstance(state, dict):
        return words_drawn(state), bool(state["has_uint32"])
    return int(state[2]), bool(state[3])


def _move_to(stream: np.random.Generator, words: int, half: bool) -> None:
    """Let a fresh stream stand where one stands that has given so many words."""
    if not words:
        return
    generator: Any = stream.bit_generator
    blocks, before = divmod(words - 1, 4)
    state = generator.state
    state["state"]["counter"][0] = blocks
    generator.state = state
    last = int(generator.random_raw(before + 1)[-1])
    generator.state = {
        **generator.state,
        "has_uint32": int(half),
        "uinteger": last >> 32 if half else 0,
    }


def _state_of(stream: Any) -> Any:
    return (
        stream.bit_generator.state
        if isinstance(stream, np.random.Generator)
        else stream.host_state()
    )


def _put_state(stream: Any, state: Any) -> None:
    if isinstance(stream, np.random.Generator):
        stream.bit_generator.state = state
    else:
        stream.restore(state)


def _plain(state: Any) -> Any:
    if isinstance(state, dict):
        return {k: _plain(v) for k, v in state.items()}
    return [int(v) for v in state] if isinstance(state, np.ndarray) else state


def _arrays(state: Any) -> Any:
    if isinstance(state, dict):
        return {k: _arrays(v) for k, v in state.items()}
    return np.array(state, dtype=np.uint64) if isinstance(state, list) else state


_process_generator = Generator()
_default: ContextVar[Generator] = ContextVar("default_generator", default=_process_generator)


def default_generator() -> Generator:
    """The generator of this context; one per process unless `use_generator` set another."""
    return _default.get()


@contextmanager
def use_generator(generator: Generator) -> Iterator[Generator]:
    """Make `generator` the default inside a `with` block of this context (thread ranks: one each)."""
    token = _default.set(generator)
    try:
        yield generator
    finally:
        _default.reset(token)


def check_range(op: str, low: int, high: int, kind: np.dtype[Any]) -> None:
    """Refuse integers from [low, high) that a type does not hold.

    Raises:
        RuntimeError: naming the bound that it does not.
    """
    if kind.kind not in "biu":
        return
    least, most = (0, 1) if kind == np.bool_ else limits(kind)
    for name, bound in (("from", low), ("to - 1", high - 1)):
        if not least <= bound <= most:
            raise RuntimeError(f"{op}: {name} is out of bounds for {kind}, got {bound}")


def manual_seed(seed: int) -> Generator:
    """Seed the default generator, so that what follows draws the same numbers in every run.

    Raises:
        TypeError, ValueError: `seed` is no number.
    """
    try:
        seed = int(seed)
    except (TypeError, ValueError, OverflowError) as error:
        raise type(error)(f"manual_seed(): seed must be an int, got {seed!r}") from None
    return default_generator().manual_seed(seed)


def seed() -> int:
    """Seed the default generator from the operating system."""
    return default_generator().seed()


def initial_seed() -> int:
    """The seed of the default generator."""
    return default_generator().initial_seed()


def get_rng_state() -> Tensor:
    """State of the default generator."""
    return default_generator().get_state()


def set_rng_state(new_state: Tensor) -> None:
    """Go on from a state of `get_rng_state`."""
    default_generator().set_state(new_state)


@contextmanager
def fork_rng(
    devices: Any = None, enabled: bool = True, *, device_type: str = "cpu", **names: Any
) -> Iterator[None]:
    """Put the default generator back, after the `with` block, to where it was before.

    Args:
        devices: GPUs whose generators are forked too; there are none.
        enabled: do nothing if False.
        device_type: has no effect: there are generators of the CPU only.
        names: PyTorch's private arguments for messages.
    """
    if not enabled:
        yield
        return
    state = get_rng_state()
    try:
        yield
    finally:
        set_rng_state(state)
