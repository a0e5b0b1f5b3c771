"""Attention by cuDNN: its fused graphs, forward and backward, which never write the weights to memory.

Owns: what a plan depends on, the two graphs, which calls they serve. They serve 16-bit types, heads of up to
128 elements (a multiple of 8), no mask but the causal one, and no dropout. Everything else, and every GPU for
which cuDNN has no such algorithm, is served by products and a softmax.

Off unless `dptrain.backends.cuda.enable_cudnn_sdp(True)`: the graphs were validated, but never run.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from dptrain.core.arrays import namespace_of
from dptrain.core.kernels.cuda import cudnn as library
from dptrain.core.kernels.cuda.cudnn import KINDS, Sizes

#: PyTorch's switch; see `dptrain.backends.cuda`.
enabled = False


class Attention(NamedTuple):
    """What a plan depends on.

    Attributes:
        query: (N, heads, L, E).
        key: (N, heads, S, E).
        value: (N, heads, S, Ev).
        scale: factor of the products.
        causal: position i of the query sees keys 0..i.
        kind: NumPy's name of the element type.
        deterministic: only algorithms that give the same bits in every run.
        tf32: of no meaning here.
    """

    query: Sizes
    key: Sizes
    value: Sizes
    scale: float
    causal: bool
    kind: str
    deterministic: bool
    tf32: bool = True

    @property
    def result(self) -> Sizes:
        """(N, heads, L, Ev)."""
        return (*self.query[:3], self.value[3])

    @property
    def stats(self) -> Sizes:
        """(N, heads, L, 1): the logarithms of the softmax's denominators, float32."""
        return (*self.query[:3], 1)


def row_major(shape: Sizes) -> list[int]:
    """Strides, in elements, of a C-contiguous array."""
    steps, step = [], 1
    for size in reversed(shape):
        steps.append(step)
        step *= size
    return steps[::-1]


def _given(graph: Any, cudnn: Any, name: str, shape: Sizes, kind: str) -> Any:
    return graph.tensor(
        name=name, dim=list(shape), stride=row_major(shape), data_type=_type(cudnn, kind)
    )


def _wanted(tensor: Any, cudnn: Any, shape: Sizes, kind: str) -> Any:
    tensor.set_output(True).set_dim(list(shape)).set_stride(row_major(shape))
    return tensor.set_data_type(_type(cudnn, kind))


def _type(cudnn: Any, kind: str) -> Any:
    return getattr(cudnn.data_type, KINDS[kind])


def _graph(cudnn: Any, handle: int | None, kind: str) -> Any:
    single = cudnn.data_type.FLOAT
    return cudnn.pygraph(
        io_data_type=_type(cudnn, kind),
        intermediate_data_type=single,
        compute_data_type=single,
        handle=handle,
    )


def forward_graph(cudnn: Any, handle: int | None, a: Attention) -> tuple[Any, tuple[Any, ...]]:
    """Query, key and value -> result and what backward needs of the softmax."""
    graph = _graph(cudnn, handle, a.kind)
    q, k, v = (
        _given(graph, cudnn, name, shape, a.kind)
        for name, shape in (("query", a.query), ("key", a.key), ("value", a.value))
    )
    out, stats = graph.sdpa(
        name="attention",
        q=q,
        k=k,
        v=v,
        generate_stats=True,
        attn_scale=a.scale,
        use_causal_mask=a.causal,
    )
    out = _wanted(out, cudnn, a.result, a.kind)
    return graph, (q, k, v, out, _wanted(stats, cudnn, a.stats, "float32"))


def backward_graph(cudnn: Any, handle: int | None, a: Attention) -> tuple[Any, tuple[Any, ...]]:
    """Query, key, value, result, its gradient and the softmax's facts -> the three gradients."""
    graph = _graph(cudnn, handle, a.kind)
    shapes = {"q": a.query, "k": a.key, "v": a.value, "o": a.result, "dO": a.result}
    given = {name: _given(graph, cudnn, name, s, a.kind) for name, s in shapes.items()}
    given["stats"] = _given(graph, cudnn, "stats", a.stats, "float32")
    grads = graph.sdpa_backward(
        name="attention backward",
        **given,
        attn_scale=a.scale,
        use_causal_mask=a.causal,
        use_deterministic_algorithm=a.deterministic,
    )
    outs = [
        _wanted(grad, cudnn, shape, a.kind)
        for grad, shape in zip(grads, (a.query, a.key, a.value), strict=True)
    ]
    return graph, (*given.values(), *outs)


def describe(query: Any, key: Any, value: Any, scale: float, causal: bool) -> Attention | None:
    """The attention of these arrays; None where these graphs do not serve it."""
    if not enabled or query.dtype.name not in ("float16", "bfloat16") or query.ndim != 4:
        return None
    sizes = (query.shape[3], value.shape[3])
    if any(size > 128 or size % 8 for size in sizes) or 0 in (query.size, key.size, value.size):
        return None
    if query.shape[:2] != key.shape[:2] or key.shape[:3] != value.shape[:3]:
        return None
    q, k, v = (tuple(map(int, a.shape)) for a in (query, key, value))
    kind, deterministic = query.dtype.name, bool(library.flags.deterministic)
    return Attention(q, k, v, float(scale), bool(causal), kind, deterministic)


def forward(a: Attention, query: Any, key: Any, value: Any) -> tuple[Any, Any] | None:
    """Result and softmax's facts; None where cuDNN is not there or has no algorithm."""
    found = library.library()
    if found is None or not library.flags.enabled:
        return None
    xp = namespace_of(query)
    out, stats = xp.empty(a.result, query.dtype), xp.empty(a.stats, "float32")
    inputs = [xp.ascontiguousarray(x) for x in (query, key, value)]
    return (out, stats) if found.run(forward_graph, a, (*inputs, out, stats)) else None


def backward(a: Attention, arrays: tuple[Any, ...]) -> tuple[Any, Any, Any]:
    """The gradients of query, key and value.

    Args:
        arrays: query, key, value, result, its gradient, softmax's facts.

    Raises:
        RuntimeError: cuDNN has an algorithm for forward and none for backward.
    """
    found, xp = library.library(), namespace_of(arrays[0])
    grads = tuple(xp.empty(shape, arrays[0].dtype) for shape in (a.query, a.key, a.value))
    inputs = [xp.ascontiguousarray(x) for x in arrays]
    if found is None or not found.run(backward_graph, a, (*inputs, *grads)):
        raise RuntimeError(
            "scaled_dot_product_attention: cuDNN has no algorithm for this backward; "
            "dptrain.backends.cuda.enable_cudnn_sdp(False) turns its attention off"
        )
    return grads
