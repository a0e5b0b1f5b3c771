"""Recurrent layers in plain NumPy. Part of the definition in `reference`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from dptrain.core.arrays import namespace_of

States = tuple[Any, ...]


def _steps(sizes: tuple[int, ...], reverse: bool) -> Iterator[tuple[int, slice]]:
    """(sequences that run, their rows) of each step, in the order in which the layer sees them."""
    ends = np.cumsum(sizes).tolist()
    steps = [(n, slice(end - n, end)) for n, end in zip(sizes, ends, strict=True)]
    return iter(steps[::-1] if reverse else steps)


def _sigmoid(xp: Any, x: Any) -> Any:
    decay = xp.exp(-abs(x))
    return xp.where(x < 0, decay, 1) / (1 + decay)


def recurrent(
    mode: str,
    gates: np.ndarray,
    kept: np.ndarray | None,
    w_hh: np.ndarray | None,
    bias: np.ndarray | None,
    w_hr: np.ndarray | None,
    start: States,
    sizes: tuple[int, ...],
    reverse: bool,
) -> tuple[np.ndarray, States, States]:
    """All steps of a layer in one direction.

    Sequences are sorted by falling length, the rows of a step lie together, and the steps behind each other: as
    in a packed sequence.

    Args:
        mode: "LSTM", "GRU", "RNN_TANH" or "RNN_RELU".
        gates: (rows, blocks * hidden), what input and biases contribute; overwritten by the gates' values.
        kept: of a GRU without `w_hh`, what the state contributes to the third gate.
        w_hh: (blocks * hidden, width), what the state contributes; None: nothing, or it is in `gates` and `kept`.
        bias: (hidden,), of a GRU the summand of what the state contributes to the third gate.
        w_hr: (width, hidden), the projection of an LSTM's output, or None: width is hidden.
        start: the first state (N, width), of an LSTM the cell's (N, hidden) too.
        sizes: how many sequences run at each step.
        reverse: from the last step to the first.

    Returns:
        (out, last, kept): (rows, width), the last states, and what the gradient wants kept.
    """
    xp, hidden = namespace_of(gates), start[-1].shape[1]
    last = [part.copy() for part in start]
    h, c = last[0], last[-1]
    apart = gates.shape[1] - hidden  # where the third gate of a GRU begins
    if mode.startswith("RNN"):
        kept = gates
    elif kept is None:
        kept = xp.empty((len(gates), hidden), gates.dtype)
    full = xp.empty((len(gates), hidden), gates.dtype)
    out = xp.empty((len(gates), h.shape[1]), gates.dtype)
    for n, rows in _steps(sizes, reverse):
        a, k = gates[rows], kept[rows]
        if w_hh is not None and mode != "GRU":
            a += h[:n] @ w_hh.T
        elif w_hh is not None:
            a[:, :apart] += h[:n] @ w_hh[:apart].T
            k[...] = h[:n] @ w_hh[apart:].T + (0 if bias is None else bias)
        if mode == "LSTM":
            a[:, : 2 * hidden] = _sigmoid(xp, a[:, : 2 * hidden])
            a[:, 2 * hidden : 3 * hidden] = xp.tanh(a[:, 2 * hidden : 3 * hidden])
            a[:, 3 * hidden :] = _sigmoid(xp, a[:, 3 * hidden :])
            i, f, g, o = (a[:, b * hidden : (b + 1) * hidden] for b in range(4))
            c[:n] = k[...] = f * c[:n] + i * g
            full[rows] = y = o * xp.tanh(k)
        elif mode == "GRU":
            a[:, :apart] = _sigmoid(xp, a[:, :apart])
            a[:, apart:] = xp.tanh(a[:, apart:] + a[:, :hidden] * k)
            value = a[:, apart:]
            y = value + a[:, hidden:apart] * (h[:n] - value)
        else:
            a[...] = y = xp.tanh(a) if mode == "RNN_TANH" else xp.maximum(a, 0)
        h[:n] = out[rows] = y if w_hr is None else y @ w_hr.T
    return out, tuple(last), (gates, kept) if w_hr is None else (gates, kept, full)


def recurrent_grad(
    mode: str,
    grad: np.ndarray | None,
    grad_last: tuple[np.ndarray | None, ...],
    out: np.ndarray,
    kept: States,
    w_hh: np.ndarray | None,
    w_hr: np.ndarray | None,
    start: States,
    sizes: tuple[int, ...],
    reverse: bool,
) -> tuple[np.ndarray, np.ndarray, States, np.ndarray | None]:
    """The gradients of `recurrent`; those of weights are products of what is given back.

    Args:
        grad, grad_last: of `out` and the last states; None for zeros.
        out, kept: what `recurrent` gave.
        mode, w_hh, w_hr, start, sizes, reverse: as given to it.

    Returns:
        (slopes, of_state, of_start, of_out): the gradients of `gates` as it was given, that of what the state
        contributes to it (the same but for a GRU), of `start`, and, with a projection, of each output in all.
    """
    xp, gates, held = namespace_of(out), kept[0], kept[1]
    hidden = start[-1].shape[1]
    parts = [
        xp.zeros(part.shape, part.dtype) if g is None else xp.array(g)
        for part, g in zip(start, grad_last, strict=True)
    ]
    dh, dc = parts[0], parts[-1]
    slopes = xp.empty(gates.shape, gates.dtype)
    of_state = xp.empty(gates.shape, gates.dtype) if mode == "GRU" else slopes
    of_out = xp.empty(out.shape, out.dtype)
    steps = list(_steps(sizes, reverse))
    for place in range(len(steps) - 1, -1, -1):
        n, rows = steps[place]
        if grad is not None:
            dh[:n] += grad[rows]
        of_out[rows] = dh[:n]
        dy = dh[:n] if w_hr is None else dh[:n] @ w_hr
        a, to, more = gates[rows], slopes[rows], of_state[rows]
        part = [a[:, b : b + hidden] for b in range(0, a.shape[1], hidden)]
        before = start[-1][:n]
        if place:
            m, last = steps[place - 1]
            values = (out if mode == "GRU" else held)[last]
            before = xp.concatenate([values[:n], before[m:]]) if m < n else values[:n]
        if mode == "LSTM":
            i, f, g, o = part
            top = xp.tanh(held[rows])
            slope = dc[:n] + dy * o * (1 - top * top)
            to[:, :hidden] = slope * g * i * (1 - i)
            to[:, hidden : 2 * hidden] = slope * before * f * (1 - f)
            to[:, 2 * hidden : 3 * hidden] = slope * i * (1 - g * g)
            to[:, 3 * hidden :] = dy * top * o * (1 - o)
            dc[:n] = slope * f
        elif mode == "GRU":
            r, z, value = part
            slope = dy * (1 - z) * (1 - value * value)
            to[:, :hidden] = slope * held[rows] * r * (1 - r)
            to[:, hidden : 2 * hidden] = dy * (before - value) * z * (1 - z)
            more[...] = to
            to[:, 2 * hidden :], more[:, 2 * hidden :] = slope, slope * r
            dh[:n] = dy * z
        else:
            to[...] = dy * (1 - a * a) if mode == "RNN_TANH" else xp.where(a > 0, dy, 0)
        if w_hh is not None:
            reached = more @ w_hh
            dh[:n] = dh[:n] + reached if mode == "GRU" else reached
    return slopes, of_state, tuple(parts), None if w_hr is None else of_out
