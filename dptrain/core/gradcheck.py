"""Derivatives checked against finite differences.

Owns: `gradcheck`, `gradgradcheck`. Source: central differences along one random direction per input,
as HIPS autograd's `check_grads` does; a wrong entry of a Jacobian is orthogonal to a random direction
with probability zero.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dptrain.core.engine import grad
from dptrain.core.random import numpy_stream
from dptrain.core.tensor import Tensor, wrap


class GradcheckError(RuntimeError):
    """An analytical derivative differs from the numerical one."""


def _outputs(function: Callable[..., Any], inputs: Sequence[Any]) -> list[Tensor]:
    result = function(*inputs)
    found = [result] if isinstance(result, Tensor) else list(result)
    return [o for o in found if isinstance(o, Tensor) and o.requires_grad]


def gradcheck(
    func: Callable[..., Any],
    inputs: Tensor | Sequence[Any],
    eps: float = 1e-6,
    atol: float = 1e-5,
    rtol: float = 1e-3,
    raise_exception: bool = True,
) -> bool:
    """Compare the derivatives of `func` with central differences, in float64.

    Args:
        func: from tensors to a tensor or several.
        inputs: its arguments; the float64 tensors that require gradients are checked.
        eps: step of the difference.
        atol, rtol: tolerances.
        raise_exception: raise instead of returning False.

    Raises:
        GradcheckError: a derivative differs, or an output does not depend on a checked input.
        ValueError: nothing to check, or an input that is not float64.
    """
    args = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    checked = [i for i, a in enumerate(args) if isinstance(a, Tensor) and a.requires_grad]
    if not checked or any(args[i]._array.dtype != np.float64 for i in checked):
        raise ValueError(
            "gradcheck expects at least one input tensor that requires gradient, all of them float64"
        )
    stream = numpy_stream(0x67726164)
    outputs = _outputs(func, args)
    weights = [wrap(np.asarray(stream.standard_normal(o.shape))) for o in outputs]
    grads = (
        grad(outputs, [args[i] for i in checked], weights, allow_unused=True)
        if outputs
        else [None] * len(checked)
    )
    for i, analytical in zip(checked, grads, strict=True):
        direction = stream.standard_normal(args[i].shape)
        ends = []
        for sign in (1, -1):
            moved = list(args)
            moved[i] = wrap(np.asarray(args[i]._array + sign * eps * direction)).requires_grad_()
            ends.append(
                sum(
                    float((o._array * w._array).sum())
                    for o, w in zip(_outputs(func, moved), weights, strict=True)
                )
            )
        numerical = (ends[0] - ends[1]) / (2 * eps)
        found = 0.0 if analytical is None else float((analytical._array * direction).sum())
        if not abs(found - numerical) <= atol + rtol * abs(numerical):
            if not raise_exception:
                return False
            raise GradcheckError(
                f"derivative with respect to input {i}: backward gives {found:.9g} along a random direction, "
                f"central differences give {numerical:.9g}"
            )
    return True


def gradgradcheck(func: Callable[..., Any], inputs: Tensor | Sequence[Any], **options: Any) -> bool:
    """Compare the second derivatives of `func` with differences of the first; see `gradcheck`."""
    args = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    checked = [i for i, a in enumerate(args) if isinstance(a, Tensor) and a.requires_grad]
    stream = numpy_stream(0x67726132)
    weights = [wrap(np.asarray(stream.standard_normal(o.shape))) for o in _outputs(func, args)]

    def first_derivatives(*moved: Any) -> tuple[Tensor, ...]:
        grads = grad(
            _outputs(func, moved),
            [moved[i] for i in checked],
            weights,
            create_graph=True,
            allow_unused=True,
        )
        return tuple(g for g in grads if g is not None and g.requires_grad)

    if not first_derivatives(*args):
        return True  # linear: the second derivative is zero everywhere
    return gradcheck(first_derivatives, args, **options)
