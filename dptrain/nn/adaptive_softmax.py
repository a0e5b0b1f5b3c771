"""Softmax over many classes of unequal frequency.

Source: Grave et al., "Efficient softmax approximation for GPUs", 2016.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from dptrain.core.export import FUNCTIONS
from dptrain.core.tensor import Tensor
from dptrain.nn import functional as F
from dptrain.nn.container import ModuleList, Sequential
from dptrain.nn.linear import Linear
from dptrain.nn.module import Module


class ASMoutput(NamedTuple):
    """The log probability of each target, and the loss: minus their mean."""

    output: Tensor
    loss: Tensor


ASMoutput.__name__ = "_ASMoutput"


class AdaptiveLogSoftmaxWithLoss(Module):
    """Log probabilities of classes sorted by falling frequency, the rare ones in clusters.

    The head scores the first classes and one entry for each cluster; each cluster scores its classes
    from a projection that is the smaller the rarer they are.

    Args:
        in_features: size of each input.
        n_classes: classes.
        cutoffs: the first class of each cluster, rising.
        div_value: by which the size of each further projection is divided.
        head_bias: whether the head has one.
        device: where the parameters live.
        dtype: type of the parameters; the default dtype if None.

    Raises:
        ValueError: cutoffs that are not rising integers in [1, n_classes - 1].
    """

    def __init__(
        self,
        in_features: int,
        n_classes: int,
        cutoffs: Sequence[int],
        div_value: float = 4.0,
        head_bias: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        cutoffs = list(cutoffs)
        if not cutoffs:
            raise ValueError("cutoffs should be a sequence of length larger than 0")
        rising = all(a < b for a, b in pairwise([0, *cutoffs, n_classes]))
        if not rising or any(int(c) != c for c in cutoffs):
            raise ValueError(
                "cutoffs should be a sequence of unique, positive integers sorted in an increasing order, where "
                f"each value is between 1 and n_classes-1, got {cutoffs} and {n_classes} classes"
            )
        self.in_features, self.n_classes = in_features, n_classes
        self.cutoffs = [*cutoffs, n_classes]
        self.div_value, self.head_bias = div_value, head_bias
        self.shortlist_size, self.n_clusters = cutoffs[0], len(cutoffs)
        self.head_size = self.shortlist_size + self.n_clusters
        options: dict[str, Any] = {"device": device, "dtype": dtype}
        self.head = Linear(in_features, self.head_size, bias=head_bias, **options)
        self.tail = ModuleList()
        for i, (first, stop) in enumerate(pairwise(self.cutoffs)):
            hidden = int(in_features // div_value ** (i + 1))
            projection = Linear(in_features, hidden, bias=False, **options)
            self.tail.append(
                Sequential(projection, Linear(hidden, stop - first, bias=False, **options))
            )

    def reset_parameters(self) -> None:
        """Draw new initial values."""
        self.head.reset_parameters()
        for projection, scores in self.tail:  # type: ignore[attr-defined]
            projection.reset_parameters()
            scores.reset_parameters()

    def forward(self, input_: Tensor, target_: Tensor) -> ASMoutput:
        """(N, in_features) and classes (N,), or (in_features,) and one class: see `ASMoutput`.

        Raises:
            RuntimeError: shapes that do not fit, or targets that are no classes.
        """
        self._check(input_, target_)
        batched = target_.ndim == 1
        input = input_ if batched else input_.unsqueeze(0)
        target = target_ if batched else target_.unsqueeze(0)
        entries = target  # the entry of the head that each target falls under
        within = input.new_zeros(target.shape[0])  # its log probability within its cluster
        for i, (first, stop) in enumerate(pairwise(self.cutoffs)):
            rows = ((target >= first) & (target < stop)).nonzero().squeeze(1)
            if rows.numel() == 0:
                continue
            entries = entries.index_fill(0, rows, self.shortlist_size + i)
            scores = F.log_softmax(self.tail[i](input.index_select(0, rows)), 1)
            chosen = (target.index_select(0, rows) - first).unsqueeze(1)
            within = within.index_copy(0, rows, scores.gather(1, chosen).squeeze(1))
        head = F.log_softmax(self.head(input), 1)
        output = within + head.gather(1, entries.unsqueeze(1)).squeeze(1)
        return ASMoutput(output if batched else output.squeeze(0), (-output).mean())

    def _check(self, input: Tensor, target: Tensor) -> None:
        if target.ndim > 1:
            raise RuntimeError("0D or 1D target tensor expected, multi-target not supported")
        if target.ndim == 1 and input.shape[0] != target.shape[0]:
            raise RuntimeError("Input and target should have the same size in the batch dimension.")
        if input.ndim != target.ndim + 1:
            raise RuntimeError(
                f"{target.ndim}D target tensor expects {target.ndim + 1}D input tensors, but found inputs with size "
                f"{input.shape}"
            )
        if target.numel() and not (target.min() >= 0 and target.max() < self.n_classes):
            raise RuntimeError(
                f"Target values should be in [0, {self.n_classes - 1}], but values in range "
                f"[{target.min().item()}, {target.max().item()}] were found. "
            )

    def log_prob(self, input: Tensor) -> Tensor:
        """(N, in_features) -> the log probabilities of all classes (N, n_classes)."""
        head = F.log_softmax(self.head(input), 1)
        size = self.shortlist_size
        parts = [
            F.log_softmax(cluster(input), 1) + head[:, size + i].unsqueeze(1)
            for i, cluster in enumerate(self.tail)
        ]
        joined: Tensor = FUNCTIONS["cat"]([head[:, :size], *parts], 1)
        return joined

    def predict(self, input: Tensor) -> Tensor:
        """(N, in_features) -> the most probable class of each (N,).

        Where the head's best entry is a class, that class; the clusters are asked for the others only.
        """
        best: Tensor = self.head(input).argmax(1)
        rows = (best >= self.shortlist_size).nonzero().squeeze(1)
        if rows.numel() == 0:
            return best
        among_all = self.log_prob(input.index_select(0, rows)).argmax(1)
        return best.index_copy(0, rows, among_all)
