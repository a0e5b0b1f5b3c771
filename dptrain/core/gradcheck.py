"""Derivatives checked against finite differences.

Owns: `gradcheck`, `gradgradcheck`. Source: central differences along one random direction per input,
as HIPS autograd's `check_grads` does; a wrong entry of a Jacobian is orthogonal to a random direction
with probability zero.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dptrain.core.arrays import as_array, greatest, namespace_of
from dptrain.core.engine import grad
from dptrain.core.random import numpy_stream
from dptrain.core.tensor import Tensor, wrap


class GradcheckError(RuntimeError):
    """An analytical derivative differs from the numerical one."""


def _outputs(function: Callable[..., Any], inputs: Sequence[Any]) -> list[Tensor]:
    result = function(*inputs)
    found = [result] if isinstance(result, Tensor) else list(result)
    return [o for o in found if isinstance(o, Tensor) and o.requires_grad]


def _refuse(name: str, **unsupported: bool | None) -> None:
    for option, wanted in unsupported.items():
        if wanted:
            raise NotImplementedError(
                f"{name}: {option}={wanted} is not supported: dptrain has neither batched nor forward-mode derivatives"
            )


def gradcheck(
    func: Callable[..., Any],
    inputs: Tensor | Sequence[Any],
    *,
    eps: float = 1e-6,
    atol: float = 1e-5,
    rtol: float = 1e-3,
    raise_exception: bool = True,
    nondet_tol: float = 0.0,
    check_undefined_grad: bool = True,
    check_grad_dtypes: bool = False,
    check_batched_grad: bool = False,
    check_batched_forward_grad: bool = False,
    check_forward_ad: bool = False,
    check_backward_ad: bool = True,
    fast_mode: bool = False,
    masked: bool | None = None,
) -> bool:
    """Compare the derivatives of `func` with central differences, in float64.

    Args:
        func: from tensors to a tensor or several.
        inputs: its arguments; the float64 tensors that require gradients are checked.
        eps: step of the difference.
        atol, rtol: tolerances.
        raise_exception: raise instead of returning False.
        nondet_tol: by how much the gradients of two backward passes may differ.
        check_backward_ad: False checks nothing.
        check_undefined_grad, check_grad_dtypes, masked: have no effect: the engine brings every
            gradient to shape and type, and there are no sparse tensors.
        fast_mode: has no effect: directions are checked in either case, never whole Jacobians.
        check_batched_grad, check_batched_forward_grad, check_forward_ad: not supported.

    Raises:
        GradcheckError: a derivative differs, or an output does not depend on a checked input.
        ValueError: nothing to check, or an input that is not float64.
        NotImplementedError: a check that dptrain cannot make.
    """
    _refuse(
        "gradcheck",
        check_batched_grad=check_batched_grad,
        check_batched_forward_grad=check_batched_forward_grad,
        check_forward_ad=check_forward_ad,
    )
    if not check_backward_ad:
        return True
    try:
        _check(func, inputs, eps, atol, rtol, nondet_tol)
    except GradcheckError:
        if raise_exception:
            raise
        return False
    return True


def _check(
    func: Callable[..., Any],
    inputs: Tensor | Sequence[Any],
    eps: float,
    atol: float,
    rtol: float,
    nondet_tol: float,
) -> None:
    args = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    checked = [i for i, a in enumerate(args) if isinstance(a, Tensor) and a.requires_grad]
    if not checked or any(args[i]._array.dtype != np.float64 for i in checked):
        raise ValueError(
            "gradcheck expects at least one input tensor that requires gradient, all of them float64"
        )
    stream = numpy_stream(0x67726164)
    outputs = _outputs(func, args)
    weights = [
        wrap(namespace_of(o._array).asarray(stream.standard_normal(o.shape))) for o in outputs
    ]

    def gradients(retain_graph: bool) -> Sequence[Tensor | None]:
        if not outputs:
            return [None] * len(checked)
        targets = [args[i] for i in checked]
        return grad(outputs, targets, weights, retain_graph=retain_graph, allow_unused=True)

    grads, again = gradients(True), gradients(False)
    for i, analytical, repeated in zip(checked, grads, again, strict=True):
        if analytical is not None and repeated is not None:
            spread = float(greatest(np.abs(analytical._array - repeated._array)))
            if spread > nondet_tol:
                raise GradcheckError(
                    f"backward is not reentrant: two passes differ by {spread:.3g} for input {i} (nondet_tol {nondet_tol})"
                )
        direction = namespace_of(args[i]._array).asarray(stream.standard_normal(args[i].shape))
        ends = []
        for sign in (1, -1):
            moved = list(args)
            moved[i] = wrap(as_array(args[i]._array + sign * eps * direction)).requires_grad_()
            ends.append(
                sum(
                    float((o._array * w._array).sum())
                    for o, w in zip(_outputs(func, moved), weights, strict=True)
                )
            )
        numerical = (ends[0] - ends[1]) / (2 * eps)
        found = 0.0 if analytical is None else float((analytical._array * direction).sum())
        if not abs(found - numerical) <= atol + rtol * abs(numerical):
            raise GradcheckError(
                f"derivative with respect to input {i}: backward gives {found:.9g} along a random direction, "
                f"central differences give {numerical:.9g}"
            )


def gradgradcheck(
    func: Callable[..., Any],
    inputs: Tensor | Sequence[Any],
    grad_outputs: Tensor | Sequence[Tensor] | None = None,
    *,
    gen_non_contig_grad_outputs: bool = False,
    check_fwd_over_rev: bool = False,
    check_rev_over_rev: bool = True,
    **options: Any,
) -> bool:
    """Compare the second derivatives of `func` with differences of the first; see `gradcheck`.

    Args:
        func, inputs, options: as for `gradcheck`.
        grad_outputs: the gradients of the outputs for the first derivative; random by default.
        gen_non_contig_grad_outputs: make them with gaps in memory.
        check_fwd_over_rev: not supported.
        check_rev_over_rev: False checks nothing.

    Raises:
        GradcheckError, ValueError, NotImplementedError: as `gradcheck`.
    """
    _refuse("gradgradcheck", check_fwd_over_rev=check_fwd_over_rev)
    if not check_rev_over_rev:
        return True
    args = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    checked = [i for i, a in enumerate(args) if isinstance(a, Tensor) and a.requires_grad]
    stream = numpy_stream(0x67726132)
    step = 2 if gen_non_contig_grad_outputs else 1
    if grad_outputs is None:
        outputs = [o._array for o in _outputs(func, args)]
        drawn = [stream.standard_normal((*o.shape, step)) for o in outputs]
        weights = [
            wrap(namespace_of(o).asarray(d)[..., 0]) for o, d in zip(outputs, drawn, strict=True)
        ]
    else:
        weights = [grad_outputs] if isinstance(grad_outputs, Tensor) else list(grad_outputs)

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
