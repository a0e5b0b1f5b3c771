"""Layer functions under the package's own name (`dptrain.layer_norm`), in PyTorch's native signatures.

They differ from those of `nn.functional`: arguments in another order, numbers in the place of words, and
losses that are not reduced unless a number asks for it (PyTorch's documents say 1, its functions do 0).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from dptrain.core.export import FUNCTIONS, in_place, public
from dptrain.core.tensor import Tensor
from dptrain.nn import functional as F

#: What the number `reduction` stands for.
_REDUCTIONS = ("none", "mean", "sum")


def _reduction(op: str, reduction: int) -> str:
    if reduction not in (0, 1, 2):
        raise ValueError(f"{op}: {reduction} is not a valid value for reduction (0, 1 or 2)")
    return _REDUCTIONS[reduction]


def _dropout(name: str, run: Callable[..., Tensor]) -> dict[str, Any]:
    def function(input: Tensor, p: float, train: bool) -> Tensor:
        return run(input, p, train)

    function.__name__ = function.__qualname__ = name
    function.__doc__ = f"`nn.functional.{run.__name__}` with all arguments by position."
    return {name: function, f"{name}_": in_place(function, f"{name}_")}


def _feature_dropout(input: Tensor, p: float, train: bool) -> Tensor:
    """Whole channels (N, C, ...) are zeroed."""
    if input.ndim < 2:
        raise RuntimeError("Feature dropout requires at least 2 dimensions in the input")
    flat = input.reshape(*input.shape[:2], -1)
    return F.dropout2d(flat, p, train).reshape(*input.shape) if train else input


def batch_norm(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> Tensor:
    """`nn.functional.batch_norm` with the affine parameters first."""
    return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)


def instance_norm(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> Tensor:
    """`nn.functional.instance_norm` with the affine parameters first."""
    return F.instance_norm(
        input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps
    )


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    """`nn.functional.layer_norm`."""
    return F.layer_norm(input, normalized_shape, weight, bias, eps)


def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Tensor:
    """`nn.functional.group_norm`."""
    return F.group_norm(input, num_groups, weight, bias, eps)


def embedding(
    weight: Tensor,
    indices: Tensor,
    padding_idx: int = -1,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    """`nn.functional.embedding` with the table first; a negative `padding_idx` is none."""
    padding = None if padding_idx < 0 else padding_idx
    return F.embedding(
        indices, weight, padding, scale_grad_by_freq=scale_grad_by_freq, sparse=sparse
    )


def adaptive_max_pool1d(input: Tensor, output_size: Any) -> Any:
    """`nn.functional.adaptive_max_pool1d`: values and indices."""
    return F.adaptive_max_pool1d(input, output_size, return_indices=True)


def max_pool1d_with_indices(
    input: Tensor,
    kernel_size: Any,
    stride: Any = (),
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
) -> Any:
    """`nn.functional.max_pool1d`: values and indices."""
    return F.max_pool1d(input, kernel_size, stride, padding, dilation, ceil_mode, True)


def constant_pad_nd(input: Tensor, pad: Sequence[int], value: float = 0) -> Tensor:
    """`nn.functional.pad` with a constant."""
    return F.pad(input, pad, "constant", value)


def grid_sampler(
    input: Tensor, grid: Tensor, interpolation_mode: int, padding_mode: int, align_corners: bool
) -> Tensor:
    """`nn.functional.grid_sample` with modes by number: bilinear, nearest, bicubic; zeros, border, reflection."""
    modes, paddings = ("bilinear", "nearest", "bicubic"), ("zeros", "border", "reflection")
    for name, value in (("interpolation_mode", interpolation_mode), ("padding_mode", padding_mode)):
        if not 0 <= value < 3:
            raise RuntimeError(f"grid_sampler(): {name} must be 0, 1 or 2, got {value}")
    return F.grid_sample(
        input, grid, modes[interpolation_mode], paddings[padding_mode], align_corners
    )


def affine_grid_generator(theta: Tensor, size: Any, align_corners: bool) -> Tensor:
    """`nn.functional.affine_grid`."""
    return F.affine_grid(theta, size, align_corners)


def convolution(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Tensor:
    """A convolution over weight.ndim - 2 dimensions, or a transposed one."""
    rank = weight.ndim - 2
    if rank not in (1, 2, 3):
        raise RuntimeError(f"convolution: weight should have 3 to 5 dimensions, got {weight.ndim}")
    if transposed:
        run = FUNCTIONS[f"conv_transpose{rank}d"]
        return run(input, weight, bias, stride, padding, output_padding, groups, dilation)
    return FUNCTIONS[f"conv{rank}d"](input, weight, bias, stride, padding, dilation, groups)


def conv_tbc(input: Tensor, weight: Tensor, bias: Tensor, pad: int = 0) -> Tensor:
    """A convolution along time: (T, B, C) with (taps, C, O) and (O,) -> (T', B, O)."""
    out = FUNCTIONS["conv1d"](input.permute(1, 2, 0), weight.permute(2, 1, 0), bias, 1, pad)
    return out.permute(2, 0, 1)


def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    pos_weight: Tensor | None = None,
    reduction: int = 0,
) -> Tensor:
    """`nn.functional.binary_cross_entropy_with_logits` with the reduction by number."""
    word = _reduction("binary_cross_entropy_with_logits", reduction)
    return F.binary_cross_entropy_with_logits(
        input, target, weight, reduction=word, pos_weight=pos_weight
    )


def cosine_embedding_loss(
    input1: Tensor, input2: Tensor, target: Tensor, margin: float = 0.0, reduction: int = 0
) -> Tensor:
    """`nn.functional.cosine_embedding_loss` with the reduction by number."""
    word = _reduction("cosine_embedding_loss", reduction)
    return F.cosine_embedding_loss(input1, input2, target, margin, reduction=word)


def ctc_loss(
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Any,
    target_lengths: Any,
    blank: int = 0,
    reduction: int = 0,
    zero_infinity: bool = False,
) -> Tensor:
    """`nn.functional.ctc_loss` with the reduction by number."""
    word = _reduction("ctc_loss", reduction)
    return F.ctc_loss(log_probs, targets, input_lengths, target_lengths, blank, word, zero_infinity)


def hinge_embedding_loss(
    input: Tensor, target: Tensor, margin: float = 1.0, reduction: int = 0
) -> Tensor:
    """`nn.functional.hinge_embedding_loss` with the reduction by number."""
    word = _reduction("hinge_embedding_loss", reduction)
    return F.hinge_embedding_loss(input, target, margin, reduction=word)


def kl_div(
    input: Tensor, target: Tensor, reduction: int = 0, *, log_target: bool = False
) -> Tensor:
    """`nn.functional.kl_div` with the reduction by number; "mean" is over all elements."""
    loss = F.kl_div(input, target, reduction="none", log_target=log_target)
    word = _reduction("kl_div", reduction)
    return loss if word == "none" else getattr(loss, word)()


def margin_ranking_loss(
    input1: Tensor, input2: Tensor, target: Tensor, margin: float = 0.0, reduction: int = 0
) -> Tensor:
    """`nn.functional.margin_ranking_loss` with the reduction by number."""
    word = _reduction("margin_ranking_loss", reduction)
    return F.margin_ranking_loss(input1, input2, target, margin, reduction=word)


def poisson_nll_loss(
    input: Tensor, target: Tensor, log_input: bool, full: bool, eps: float, reduction: int
) -> Tensor:
    """`nn.functional.poisson_nll_loss` with the reduction by number."""
    word = _reduction("poisson_nll_loss", reduction)
    return F.poisson_nll_loss(input, target, log_input, full, eps=eps, reduction=word)


def triplet_margin_loss(
    anchor: Tensor,
    positive: Tensor,
    negative: Tensor,
    margin: float = 1.0,
    p: float = 2.0,
    eps: float = 1e-6,
    swap: bool = False,
    reduction: int = 0,
) -> Tensor:
    """`nn.functional.triplet_margin_loss` with the reduction by number."""
    word = _reduction("triplet_margin_loss", reduction)
    return F.triplet_margin_loss(anchor, positive, negative, margin, p, eps, swap, reduction=word)


#: Public name -> function; `dptrain.<name>` is found here.
NATIVE: dict[str, Callable[..., Any]] = {
    run.__name__: run
    for run in (
        adaptive_max_pool1d,
        affine_grid_generator,
        batch_norm,
        F.bilinear,
        binary_cross_entropy_with_logits,
        F.celu_,
        F.channel_shuffle,
        constant_pad_nd,
        conv_tbc,
        convolution,
        cosine_embedding_loss,
        F.cosine_similarity,
        ctc_loss,
        embedding,
        grid_sampler,
        group_norm,
        hinge_embedding_loss,
        instance_norm,
        kl_div,
        layer_norm,
        margin_ranking_loss,
        max_pool1d_with_indices,
        F.pairwise_distance,
        F.pixel_shuffle,
        F.pixel_unshuffle,
        poisson_nll_loss,
        F.relu_,
        F.rms_norm,
        F.rrelu_,
        F.selu_,
        F.threshold_,
        triplet_margin_loss,
    )
}
NATIVE["grid_sampler_2d"] = NATIVE["grid_sampler_3d"] = grid_sampler
NATIVE["rrelu"] = F.rrelu
NATIVE["native_channel_shuffle"] = F.channel_shuffle
for _name, _run in (
    ("dropout", F.dropout),
    ("alpha_dropout", F.alpha_dropout),
    ("feature_dropout", _feature_dropout),
    ("feature_alpha_dropout", F.feature_alpha_dropout),
):
    NATIVE.update(_dropout(_name, _run))
for _name, _run in NATIVE.items():
    if _run.__module__ == __name__:
        NATIVE[_name] = globals()[_name] = public(_run, name=_name)
        NATIVE[_name].__module__ = __name__  # where it is found, so that it can be pickled
