"""Attention by cuDNN: its fused graphs, forward and backward, which never write the weights to memory.

Owns: what a plan depends on, the two graphs, which calls they serve. They serve 16-bit types, heads of up to
128 elements (a multiple of 8), masks that want no gradient, and dropout, whose numbers are cuDNN's own, from a seed
that is drawn. Everything else, and every GPU for which cuDNN has no such algorithm, is served by products and a
softmax.

Queries, keys and values are read as they lie in memory, such as parts of one projection with the heads beside each
other; the result and the gradients lie in the order of what they belong to, without its gaps.

Off unless `dptrain.backends.cuda.enable_cudnn_sdp(True)`: the graphs were validated, but never run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from dptrain.core.arrays import address, namespace_of
from dptrain.core.kernels.cuda import cudnn as library
from dptrain.core.kernels.cuda.cudnn import KINDS, Sizes

#: PyTorch's switch; see `dptrain.backends.cuda`.
enabled = False

#: Bytes that a piece of memory which the kernels read at once has.
_PIECE = 16


class Layout(NamedTuple):
    """Sizes of an array and its steps in memory, in elements."""

    sizes: Sizes
    steps: Sizes


class Attention(NamedTuple):
    """What a plan depends on.

    Attributes:
        query: (N, heads, L, E).
        key: (N, fewer heads or as many, S, E).
        value: (N, those of the keys, S, Ev).
        result: (N, heads, L, Ev).
        grad: likewise, the gradient of the result; of no meaning forward.
        bias: (N or 1, heads or 1, L, S), added to the scaled products; None: nothing is.
        scale: factor of the products.
        causal: position i of the query sees keys 0..i.
        recorded: backward needs the softmax's facts.
        dropout: probability of a weight to be dropped, less than 1.
        kind: NumPy's name of the element type.
        deterministic: only algorithms that give the same bits in every run.
        tf32: of no meaning here.
    """

    query: Layout
    key: Layout
    value: Layout
    result: Layout
    grad: Layout
    bias: Layout | None
    scale: float
    causal: bool
    recorded: bool
    dropout: float
    kind: str
    deterministic: bool
    tf32: bool = True

    @property
    def stats(self) -> Layout:
        """(N, heads, L, 1): the logarithms of the softmax's denominators, float32."""
        return dense((*self.query.sizes[:3], 1))


def dense(sizes: Sizes, like: Sizes = (0, 0, 0, 0)) -> Layout:
    """A layout without gaps, with its dimensions but the last in the order of those steps."""
    order = (*sorted(range(len(sizes) - 1), key=lambda d: -like[d]), len(sizes) - 1)
    steps, step = [0] * len(sizes), 1
    for d in reversed(order):
        steps[d], step = step, step * sizes[d]
    return Layout(sizes, tuple(steps))


def _layout(array: Any) -> Layout | None:
    """How an array lies in memory; None where the kernels cannot read it so."""
    sizes, size = tuple(map(int, array.shape)), array.dtype.itemsize
    steps = tuple(t // size for t in array.strides)
    if address(array) % _PIECE or (steps[3] != 1 and sizes[3] != 1):
        return None
    for n, t in zip(sizes[:3], array.strides[:3], strict=True):
        if n > 1 and (t <= 0 or t % _PIECE):
            return None
    # A dimension of size one may have any step: one that fits the others.
    plain = dense(sizes).steps
    return Layout(
        sizes, tuple(p if n == 1 else t for n, t, p in zip(sizes, steps, plain, strict=True))
    )


def _readable(array: Any) -> tuple[Any, Layout]:
    """The array, or a copy that the kernels can read; and how it lies in memory."""
    found = _layout(array)
    if found is None:
        array = namespace_of(array).array(array, order="C")
        found = dense(tuple(map(int, array.shape)))
    return array, found


def _empty(xp: Any, layout: Layout, kind: Any) -> Any:
    """An array of a layout without gaps."""
    order = sorted(range(len(layout.sizes)), key=lambda d: (-layout.steps[d], d))
    array = xp.empty([layout.sizes[d] for d in order], kind)
    return array.transpose([order.index(d) for d in range(len(order))])


def _given(graph: Any, cudnn: Any, name: str, layout: Layout, kind: str) -> Any:
    sizes, steps = map(list, layout)
    return graph.tensor(name=name, dim=sizes, stride=steps, data_type=_type(cudnn, kind))


def _wanted(tensor: Any, cudnn: Any, layout: Layout, kind: str) -> Any:
    sizes, steps = map(list, layout)
    tensor.set_output(True).set_dim(sizes).set_stride(steps)
    return tensor.set_data_type(_type(cudnn, kind))


def _type(cudnn: Any, kind: str) -> Any:
    return getattr(cudnn.data_type, KINDS[kind])


def _options(graph: Any, cudnn: Any, a: Attention) -> tuple[dict[str, Any], tuple[Any, ...]]:
    """What both graphs are told beside their arrays, and the tensors among it in the order of the call."""
    told: dict[str, Any] = {"attn_scale": a.scale, "use_causal_mask": a.causal}
    given: tuple[Any, ...] = ()
    if a.bias is not None:
        told["bias"] = _given(graph, cudnn, "bias", a.bias, a.kind)
        given = (told["bias"],)
    if a.dropout:
        one, kind = [1, 1, 1, 1], cudnn.data_type.INT64
        numbers = tuple(
            graph.tensor(name=name, dim=one, stride=one, data_type=kind)
            for name in ("seed", "offset")
        )
        told["dropout"] = (a.dropout, *numbers)
        given += numbers
    return told, given


def forward_graph(cudnn: Any, handle: int | None, a: Attention) -> tuple[Any, tuple[Any, ...]]:
    """Query, key, value (bias, seed, offset) -> result and, if it is recorded, what backward needs of the softmax."""
    graph = library.empty_graph(cudnn, handle, a.kind)
    layouts = {"query": a.query, "key": a.key, "value": a.value}
    q, k, v = (_given(graph, cudnn, name, layout, a.kind) for name, layout in layouts.items())
    options, given = _options(graph, cudnn, a)
    out, stats = graph.sdpa(name="attention", q=q, k=k, v=v, generate_stats=a.recorded, **options)
    out = _wanted(out, cudnn, a.result, a.kind)
    facts = (_wanted(stats, cudnn, a.stats, "float32"),) if a.recorded else ()
    return graph, (q, k, v, *given, out, *facts)


def backward_graph(cudnn: Any, handle: int | None, a: Attention) -> tuple[Any, tuple[Any, ...]]:
    """Query, key, value, result, its gradient, the softmax's facts (bias, seed, offset) -> the three gradients."""
    graph = library.empty_graph(cudnn, handle, a.kind)
    layouts = {"q": a.query, "k": a.key, "v": a.value, "o": a.result, "dO": a.grad}
    given = {name: _given(graph, cudnn, name, each, a.kind) for name, each in layouts.items()}
    given["stats"] = _given(graph, cudnn, "stats", a.stats, "float32")
    options, more = _options(graph, cudnn, a)
    grads = graph.sdpa_backward(
        name="attention backward",
        **given,
        **options,
        use_deterministic_algorithm=a.deterministic,
    )
    outs = [
        _wanted(grad, cudnn, dense(*of), a.kind)
        for grad, of in zip(grads, (a.query, a.key, a.value), strict=True)
    ]
    return graph, (*given.values(), *more, *outs)


def serves(query: Any, key: Any, value: Any, mask: Any) -> bool:
    """Whether the graphs are for attention of these arrays (of which keys may have fewer heads)."""
    if not enabled or query.dtype.name not in ("float16", "bfloat16") or query.ndim != 4:
        return False
    sizes = (query.shape[3], value.shape[3])
    if any(size > 128 or size % 8 for size in sizes) or 0 in (query.size, key.size, value.size):
        return False
    if query.shape[0] != key.shape[0] or query.shape[1] % key.shape[1]:
        return False
    if key.shape[:3] != value.shape[:3] or key.shape[3] != sizes[0]:
        return False
    every = (*query.shape[:3], key.shape[2])
    return mask is None or (
        mask.ndim <= 4
        and all(n in (1, m) for n, m in zip(mask.shape[::-1], every[::-1], strict=False))
    )


class Mask(NamedTuple):
    """A mask as cuDNN takes it.

    Attributes:
        bias: (N or 1, heads or 1, L, S), finite: a query that may attend nowhere must not make infinity minus infinity.
        open: likewise, of one column: 1 for queries that may attend somewhere, else 0.
    """

    bias: Any
    open: Any


class Call(NamedTuple):
    """What forward tells backward.

    Attributes:
        described: what the plan depends on.
        stats: the softmax's facts; None if they are not wanted.
        mask: what there was of one.
        numbers: those of dropout, seed and offset, or none.
    """

    described: Attention
    stats: Any
    mask: Mask | None
    numbers: tuple[Any, ...]

    @property
    def more(self) -> tuple[Any, ...]:
        """The arrays of `_options`."""
        return (*(() if self.mask is None else (self.mask.bias,)), *self.numbers)


def bias_of(mask: Any, lengths: tuple[int, int], kind: np.dtype[Any]) -> Mask:
    """What is added for a mask of bool (True may attend) or of numbers, for these lengths of queries and keys."""
    xp = namespace_of(mask)
    zero, lowest = np.float32(0), np.float32(ml_dtypes.finfo(kind).min)
    # In float32: CuPy's functions over bfloat16 and numbers give that anyway.
    if mask.dtype == np.bool_:
        allowed, wide = mask, xp.where(mask, zero, lowest)
    else:
        wide = mask.astype(np.float32)
        allowed, wide = wide != -np.inf, xp.maximum(wide, lowest)
    shape = (*(1,) * (4 - mask.ndim), *mask.shape)
    # Rows begin where pieces of memory do.
    length, keys = lengths
    piece = _PIECE // kind.itemsize
    bias = xp.empty((*shape[:2], length, -(-keys // piece) * piece), kind)[..., :keys]
    bias[...] = wide.reshape(shape)
    some = allowed.reshape(shape).any(axis=-1, keepdims=True)
    return Mask(bias, some.astype(kind))


def forward(
    query: Any,
    key: Any,
    value: Any,
    mask: Mask | None,
    scale: float,
    causal: bool,
    recorded: bool,
    dropout: float,
    draw: Callable[[], Any],
) -> tuple[Any, Call] | None:
    """Attention of arrays that are served.

    Args:
        query, key, value: of any layout in memory.
        mask: what `bias_of` makes of one.
        scale, causal, recorded, dropout: see `Attention`.
        draw: returns a number of 64 random bits on the GPU.

    Returns:
        Result, and what backward is told. None where cuDNN is not there or has no algorithm, for backward too if
        that is going to follow.
    """
    found = library.library()
    if found is None or not library.flags.enabled:
        return None
    xp, kind = namespace_of(query), query.dtype
    (q, of_q), (k, of_k), (v, of_v) = map(_readable, (query, key, value))
    result = dense((*of_q.sizes[:3], of_v.sizes[3]), of_q.steps)
    a = Attention(
        of_q,
        of_k,
        of_v,
        result,
        result,
        None if mask is None else _readable(mask.bias)[1],
        float(scale),
        bool(causal),
        recorded,
        float(dropout),
        kind.name,
        bool(library.flags.deterministic),
    )
    if not found.serves(forward_graph, a, query):
        return None
    if recorded and not found.serves(backward_graph, a, query):
        return None
    numbers = (draw(), xp.zeros(1, "int64")) if dropout else ()
    out = _empty(xp, result, kind)
    call = Call(a, xp.empty(a.stats.sizes, "float32") if recorded else None, mask, numbers)
    facts = (call.stats,) if recorded else ()
    found.run(forward_graph, a, (q, k, v, *call.more, out, *facts))
    if mask is not None:
        out *= mask.open
    return out, call


def backward(call: Call, arrays: tuple[Any, ...]) -> tuple[Any, Any, Any]:
    """The gradients of query, key and value.

    Args:
        call: what forward returned.
        arrays: query, key, value, result and its gradient.

    Raises:
        RuntimeError: cuDNN has no algorithm for a gradient that lies in memory as this one does.
    """
    found, xp = library.library(), namespace_of(arrays[0])
    *others, grad = arrays
    if call.mask is not None:
        grad = grad * call.mask.open
    inputs, layouts = zip(*map(_readable, (*others, grad)), strict=True)
    q, k, v, result, of_grad = layouts
    a = call.described._replace(query=q, key=k, value=v, result=result, grad=of_grad)
    grads = tuple(_empty(xp, dense(*of), arrays[0].dtype) for of in (q, k, v))
    every = (*inputs, call.stats, *call.more, *grads)
    if found is None or not found.run(backward_graph, a, every):
        raise RuntimeError(
            "scaled_dot_product_attention: cuDNN has no algorithm for this backward; "
            "dptrain.backends.cuda.enable_cudnn_sdp(False) turns its attention off"
        )
    return grads
