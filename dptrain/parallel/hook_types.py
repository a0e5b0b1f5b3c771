"""Communication hooks by name.

Owns: `DDPCommHookType`, `register_ddp_comm_hook`. Must not know: what the hooks do.
"""

from __future__ import annotations

from enum import Enum, member
from typing import Any

from dptrain.parallel import comm_hooks, power_sgd, quantization_hooks
from dptrain.parallel.grad_bucket import CommHook


def _plain(hook: CommHook) -> Any:
    def register(model: Any, state: Any) -> None:
        model.register_comm_hook(state, hook)

    return member(register)


def _power_sgd(hook: CommHook, rank: int) -> Any:
    def register(model: Any, state: Any, start_powerSGD_iter: int = 1000) -> None:
        made = power_sgd.PowerSGDState(state, rank, start_powerSGD_iter)
        model.register_comm_hook(made, hook)

    return member(register)


class DDPCommHookType(Enum):
    """The built-in hooks; `kind.value(model=model, state=process_group)` registers one."""

    ALLREDUCE = _plain(comm_hooks.allreduce_hook)
    FP16_COMPRESS = _plain(comm_hooks.fp16_compress_hook)
    BF16_COMPRESS = _plain(comm_hooks.bf16_compress_hook)
    QUANTIZE_PER_TENSOR = _plain(quantization_hooks.quantization_pertensor_hook)
    QUANTIZE_PER_CHANNEL = _plain(quantization_hooks.quantization_perchannel_hook)
    POWER_SGD = _power_sgd(power_sgd.powerSGD_hook, 1)
    POWER_SGD_RANK2 = _power_sgd(power_sgd.powerSGD_hook, 2)
    BATCHED_POWER_SGD = _power_sgd(power_sgd.batched_powerSGD_hook, 1)
    BATCHED_POWER_SGD_RANK2 = _power_sgd(power_sgd.batched_powerSGD_hook, 2)
    NOOP = _plain(comm_hooks.noop_hook)


def register_ddp_comm_hook(comm_hook_type: DDPCommHookType, model: Any, state: Any = None) -> None:
    """Let a built-in hook average the gradients of a DistributedDataParallel.

    Args:
        comm_hook_type: which.
        model: the wrapped model.
        state: a process group; the default group if None.
    """
    comm_hook_type.value(model=model, state=state)
