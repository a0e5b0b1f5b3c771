"""Which operation autocast casts to what: one table by public name for each device type.

Owns: the table, and `casting`, by which a public function follows it. Must not know: what an operation
computes.

The lists are those of PyTorch 2.13 (docs: "Automatic Mixed Precision package", op reference; the
comparison in tests/core/test_autocast.py asks PyTorch for each name). An operation that is in no list
computes in the types that come in; inside of one that is, nothing more is cast.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import Enum
from typing import Any

from dptrain.core.autocast import cast, device_type_of, eligible, lower_types, outside
from dptrain.core.dtypes import dtype, float32
from dptrain.core.tensor import Tensor


class Policy(Enum):
    """What happens to the floating point arguments."""

    LOWER = "the lower precision type of the region"
    FLOAT32 = "float32"
    WIDEST = "the widest type among them"
    BANNED = "an error"


_CONVOLUTIONS = "conv1d conv2d conv3d conv_tbc conv_transpose1d conv_transpose2d conv_transpose3d"
_LOSSES = (
    "binary_cross_entropy_with_logits cosine_embedding_loss hinge_embedding_loss huber_loss kl_div l1_loss "
    "margin_ranking_loss mse_loss multi_margin_loss multilabel_margin_loss nll_loss poisson_nll_loss "
    "smooth_l1_loss soft_margin_loss triplet_margin_loss"
)
_PRODUCTS = (
    "addbmm addmm baddbmm bmm linalg_vecdot linear matmul mm prelu scaled_dot_product_attention"
)

_LISTS: dict[str, dict[Policy, str]] = {
    "cpu": {
        Policy.LOWER: f"{_CONVOLUTIONS} {_PRODUCTS} mkldnn_rnn_layer",
        Policy.FLOAT32: f"{_LOSSES} binary_cross_entropy cross_entropy ctc_loss "
        "adaptive_avg_pool3d adaptive_max_pool3d avg_pool3d max_pool3d fractional_max_pool2d "
        "fractional_max_pool3d max_unpool2d max_unpool3d reflection_pad1d reflection_pad2d replication_pad1d "
        "replication_pad2d replication_pad3d grid_sample cdist nanquantile quantile polar prod trace "
        "cholesky cholesky_inverse cholesky_solve geqrf inverse lu_solve orgqr ormqr pinverse qr svd "
        "triangular_solve linalg_cholesky linalg_cholesky_ex linalg_cond linalg_eig linalg_eigh linalg_eigvals "
        "linalg_eigvalsh linalg_householder_product linalg_inv linalg_inv_ex linalg_lstsq linalg_matrix_rank "
        "linalg_qr linalg_solve linalg_svd linalg_svdvals linalg_tensorinv linalg_tensorsolve stft "
        "fake_quantize_per_tensor_affine",
        Policy.WIDEST: "cat index_copy stack",
    },
    "cuda": {
        Policy.LOWER: f"{_CONVOLUTIONS} {_PRODUCTS} "
        "addmv addr chain_matmul einsum linalg_multi_dot mv gru_cell lstm_cell rnn_relu_cell rnn_tanh_cell",
        Policy.FLOAT32: f"{_LOSSES} acos asin cdist cosh cosine_similarity cumprod cumsum dist erfinv exp "
        "expm1 group_norm interpolate layer_norm linalg_matrix_norm linalg_vector_norm log log10 log1p log2 "
        "log_softmax logsumexp norm nuclear_norm pdist pow prod reciprocal renorm rms_norm rsqrt sinh softmax "
        "softplus sum tan",
        Policy.WIDEST: "addcdiv addcmul atan2 bilinear cross dot grid_sample index_put scatter_add tensordot "
        "vdot",
        Policy.BANNED: "binary_cross_entropy",
    },
}
#: Other public names of what the lists name, and the methods that Python calls for operators.
_ALIASES = {
    "__matmul__": "matmul",
    "__rmatmul__": "matmul",
    "__pow__": "pow",
    "__rpow__": "pow",
    "arccos": "acos",
    "arcsin": "asin",
    "arctan2": "atan2",
    "special_expm1": "expm1",
    "special_log1p": "log1p",
    "special_log_softmax": "log_softmax",
    "special_logsumexp": "logsumexp",
    "special_softmax": "softmax",
}
_TABLE: dict[str, dict[str, Policy]] = {}
for _place, _lists in _LISTS.items():
    for _policy, _names in _lists.items():
        for _name in _names.split():
            _TABLE.setdefault(_name, {})[_place] = _policy


def policies(name: str) -> dict[str, Policy]:
    """What happens to a public function (`matmul`, `linalg.inv`, `nn.functional.linear`), by device type."""
    plain = name.removeprefix("nn.functional.").replace(".", "_")
    return _TABLE.get(_ALIASES.get(plain, plain), {})


def casting(name: str, run: Callable[..., Any]) -> Callable[..., Any]:
    """`run` as the public function `name`: its arguments are cast as the table says.

    Returns:
        `run` itself where no list has it: that costs nothing.
    """
    by_device = policies(name)
    if not by_device:
        return run

    def public(*args: Any, **kwargs: Any) -> Any:
        lower = lower_types()
        if lower is None:
            return run(*args, **kwargs)
        return _run(run, name, by_device, lower, args, kwargs)

    public.__name__ = public.__qualname__ = getattr(run, "__name__", name)
    public.__doc__, public.__wrapped__ = run.__doc__, run  # type: ignore[attr-defined]
    return public


def _run(
    run: Callable[..., Any],
    name: str,
    by_device: dict[str, Policy],
    lower: dict[str, dtype],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    tensors = list(_tensors((*args, *kwargs.values())))
    place = device_type_of(tensors[0]) if tensors else ""
    policy = by_device.get(place)
    if policy is None or place not in lower:
        return run(*args, **kwargs)
    if policy is Policy.BANNED:
        raise RuntimeError(
            f"{name} is unsafe to autocast: its derivative overflows in {lower[place]}. Leave the sigmoid before it "
            "out and use binary_cross_entropy_with_logits (nn.BCEWithLogitsLoss), or compute it in a region "
            "with enabled=False"
        )
    target = float32 if policy is Policy.FLOAT32 else lower[place]
    if policy is Policy.WIDEST:
        target = _widest(name, [t.dtype for t in tensors if eligible(t, place)], target)
    args = tuple([cast(a, target, place) for a in args])
    kwargs = {key: cast(value, target, place) for key, value in kwargs.items()}
    with outside(place):
        return run(*args, **kwargs)


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def _widest(name: str, kinds: list[dtype], lower: dtype) -> dtype:
    """float32 if one of `kinds` is, else the lower precision type.

    Raises:
        RuntimeError: the other 16-bit type is among them.
    """
    for kind in kinds:
        if kind not in (lower, float32):
            raise RuntimeError(
                f"{name}: unexpected floating point type {kind} in a region that casts to {lower}; expected "
                f"{lower}, float32 or float64"
            )
    return float32 if float32 in kinds else lower
