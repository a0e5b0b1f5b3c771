"""Connectionist temporal classification: the forward-backward algorithm over a batch.

Source: A. Graves et al., "Connectionist temporal classification: labelling unsegmented sequence data
with recurrent neural networks", ICML 2006. As PyTorch's, the derivative takes the log-probabilities
for the results of log_softmax: it is exp(log_probs) minus the expected visits.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dptrain.core.op import Op


class CtcLoss(Op):
    """-log P(labels) per sample: (T, N, C), (N, S) -> (N,)."""

    name = "ctc_loss"

    def forward(
        self,
        log_probs: Any,
        targets: Any,
        input_lengths: Any,
        target_lengths: Any,
        blank: int,
        zero_infinity: bool,
    ) -> Any:
        n, s = targets.shape
        states = self.xp.full((n, 2 * s + 1), blank, np.int64)
        inside = self.xp.arange(s) < target_lengths[:, None]
        states[:, 1::2] = np.where(inside, targets, blank)
        self.emitted = log_probs[:, self.xp.arange(n)[:, None], states]  # (T, N, 2 S + 1)
        # A label may be reached from the one before it, past the blank between them, unless it repeats that.
        skips = self.xp.zeros(states.shape, bool)
        skips[:, 3::2] = states[:, 3::2] != states[:, 1:-2:2]
        self.states, self.skips = states, skips
        self.ends, self.last = 2 * target_lengths, input_lengths - 1
        self.alpha = self._forward_variables()
        rows = self.xp.arange(n)
        at_end = (
            self.alpha[self.last, rows] if len(log_probs) else self.xp.full(states.shape, -np.inf)
        )
        total = np.logaddexp(
            at_end[rows, self.ends],
            np.where(self.ends > 0, at_end[rows, np.maximum(self.ends - 1, 0)], -np.inf),
        )
        loss = np.where(
            input_lengths == 0, np.where(target_lengths == 0, 0.0, np.inf), -total
        ).astype(log_probs.dtype)
        self.loss, self.zero_infinity, self.count = loss, zero_infinity, len(log_probs)
        return np.where(np.isinf(loss), 0, loss).astype(loss.dtype) if zero_infinity else loss

    def _forward_variables(self) -> np.ndarray:
        """log of the probability to have come to each state, its own emission included."""
        alpha = np.full_like(self.emitted, -np.inf)
        if not len(alpha):
            return alpha
        alpha[0, :, 0] = self.emitted[0, :, 0]
        if alpha.shape[2] > 1:
            alpha[0, :, 1] = np.where(self.ends > 0, self.emitted[0, :, 1], -np.inf)
        for t in range(1, len(alpha)):
            before, now = alpha[t - 1], alpha[t - 1].copy()
            now[:, 1:] = np.logaddexp(now[:, 1:], before[:, :-1])
            skipped = np.where(self.skips[:, 2:], before[:, :-2], -np.inf)
            now[:, 2:] = np.logaddexp(now[:, 2:], skipped)
            alpha[t] = now + self.emitted[t]
        return alpha

    def _backward_variables(self) -> np.ndarray:
        """log of the probability to come from each state to the end, its own emission included."""
        beta = np.full_like(self.emitted, -np.inf)
        rows = self.xp.arange(len(self.ends))
        for t in range(len(beta) - 1, -1, -1):
            if t + 1 < len(beta):
                after, now = beta[t + 1], beta[t + 1].copy()
                now[:, :-1] = np.logaddexp(now[:, :-1], after[:, 1:])
                skipped = np.where(self.skips[:, 2:], after[:, 2:], -np.inf)
                now[:, :-2] = np.logaddexp(now[:, :-2], skipped)
                beta[t] = now + self.emitted[t]
            starts = rows[self.last == t]
            beta[t, starts] = -np.inf
            for end in (self.ends, self.ends - 1):
                own = starts[end[starts] >= 0]
                beta[t, own, end[own]] = self.emitted[t, own, end[own]]
        return beta

    def backward(self, grad: Any, log_probs: Any) -> Any:
        return CtcLossBackward.call(log_probs, grad, self)

    def gradient(self, log_probs: np.ndarray) -> np.ndarray:
        """The derivative of each loss by its log-probabilities."""
        path = self.alpha + self._backward_variables() - self.emitted + self.loss[:, None]
        # An impossible state is -inf - -inf somewhere: it is never visited.
        visits = np.exp(np.where(np.isnan(path), -np.inf, path))
        out = np.exp(log_probs)
        rows = self.xp.arange(len(self.loss))
        for state in range(visits.shape[2]):
            out[:, rows, self.states[:, state]] -= visits[:, :, state]
        impossible = np.isinf(self.loss)
        out[:, impossible] = 0 if self.zero_infinity else np.nan
        out[self.xp.arange(self.count)[:, None] > self.last] = 0
        return out


class CtcLossBackward(Op):
    """The gradient of `CtcLoss`; like PyTorch's it has no derivative of its own."""

    name = "ctc_loss_backward"

    def forward(self, log_probs: Any, grad: Any, loss: CtcLoss) -> Any:
        return loss.gradient(log_probs) * grad[:, None]
