"""In-place forms: value, dtype, identity, version and gradient of each, against PyTorch."""

import numpy as np
import pytest

import dptrain

F = np.array([[0.3, -0.7, 0.5], [0.2, 0.9, -0.4]])
P = np.array([[0.3, 0.7, 0.5], [0.2, 0.9, 0.4]])
INTS = np.array([[3, 5, 6], [1, 2, 7]])
ROWS = np.array([1, 0])
PLACES = np.array([[1, 0, 1], [0, 1, 0]])
MASK = F > 0

#: name, start value, further arguments; arrays stand for tensors.
CASES = [
    *[
        (name, P, ())
        for name in [
            "abs_",
            "acos_",
            "asin_",
            "atan_",
            "ceil_",
            "cos_",
            "cosh_",
            "deg2rad_",
            "digamma_",
        ]
    ],
    *[
        (name, P, ())
        for name in [
            "erf_",
            "erfc_",
            "erfinv_",
            "exp_",
            "exp2_",
            "expm1_",
            "floor_",
            "frac_",
            "lgamma_",
        ]
    ],
    *[
        (name, P, ())
        for name in ["log_", "log10_", "log1p_", "log2_", "logit_", "nan_to_num_", "neg_"]
    ],
    *[
        (name, P, ())
        for name in ["rad2deg_", "reciprocal_", "round_", "rsqrt_", "sigmoid_", "sign_", "sin_"]
    ],
    *[
        (name, P, ())
        for name in [
            "sinc_",
            "sinh_",
            "sqrt_",
            "square_",
            "tan_",
            "tanh_",
            "trunc_",
            "zero_",
            "relu_",
        ]
    ],
    *[
        (name, P, ())
        for name in [
            "asinh_",
            "atanh_",
            "arcsin_",
            "arccos_",
            "arctan_",
            "fix_",
            "sgn_",
            "tril_",
            "triu_",
        ]
    ],
    ("acosh_", P + 1, ()),
    *[(name, F, (P,)) for name in ["add_", "sub_", "mul_", "div_", "atan2_", "copysign_", "fmod_"]],
    *[
        (name, F, (P,))
        for name in ["hypot_", "floor_divide_", "remainder_", "xlogy_", "nextafter_", "heaviside_"]
    ],
    *[
        (name, F, (0.5,))
        for name in [
            "add_",
            "sub_",
            "mul_",
            "div_",
            "fmod_",
            "remainder_",
            "clamp_max_",
            "clamp_min_",
            "fill_",
        ]
    ],
    ("pow_", P, (2.0,)),
    ("pow_", P, (P,)),
    ("float_power_", P, (P,)),
    ("add_", INTS, (2,)),
    ("clamp_", F, (-0.3, 0.4)),
    ("clip_", F, (-0.3, 0.4)),
    ("lerp_", F, (P, 0.3)),
    ("addcmul_", F, (P, P)),
    ("addcdiv_", F, (F, P)),
    ("ldexp_", F, (INTS,)),
    *[
        (name, INTS, (INTS[::-1],))
        for name in ["gcd_", "lcm_", "bitwise_and_", "bitwise_or_", "bitwise_xor_"]
    ],
    ("bitwise_left_shift_", INTS, (1,)),
    ("bitwise_right_shift_", INTS, (1,)),
    ("bitwise_not_", INTS, ()),
    *[(name, F, (P,)) for name in ["eq_", "ne_", "lt_", "le_", "gt_", "ge_"]],
    *[(name, F, (P,)) for name in ["logical_and_", "logical_or_", "logical_xor_"]],
    ("logical_not_", F, ()),
    ("cumsum_", F, (1,)),
    ("cumprod_", F, (0,)),
    ("index_add_", F, (0, ROWS, P)),
    ("index_copy_", F, (0, ROWS, P)),
    ("index_fill_", F, (1, ROWS, 2.0)),
    ("index_put_", F, ((ROWS, ROWS), np.array([5.0, 6.0]))),
    ("masked_fill_", F, (MASK, 3.0)),
    ("masked_scatter_", F, (MASK, P)),
    ("scatter_", F, (0, PLACES, P)),
    ("scatter_", F, (0, PLACES, 2.0)),
    ("scatter_add_", F, (0, PLACES, P)),
    ("scatter_reduce_", F, (0, PLACES, P, "amax")),
    ("put_", F, (ROWS, np.array([5.0, 6.0]))),
    ("copy_", F, (P,)),
    ("renorm_", F, (2, 0, 0.5)),
    ("squeeze_", F[None], ()),
    ("squeeze_", F[None], (0,)),
    ("unsqueeze_", F, (1,)),
    ("t_", F, ()),
    ("transpose_", F, (0, 1)),
    ("swapaxes_", F, (0, 1)),
    ("swapdims_", F, (-1, 0)),
    ("polygamma_", P, (1,)),
]


#: PyTorch has no derivative of these forms.
NO_DERIVATIVE = (
    "acosh_",
    "asinh_",
    "atanh_",
    "floor_divide_",
    "nextafter_",
    "heaviside_",
    "logical_and_",
    "logical_or_",
    "logical_xor_",
    "logical_not_",
)


def run(module, name, start, args):
    def to(value):
        if isinstance(value, tuple):
            return tuple(to(v) for v in value)
        return module.tensor(value.copy()) if isinstance(value, np.ndarray) else value

    leaf = module.tensor(start.copy())
    floating = start.dtype.kind == "f" and name not in NO_DERIVATIVE
    if floating:
        leaf.requires_grad_()
    value = leaf * 1 if floating else leaf
    result = getattr(value, name)(*to(args))
    assert result is value
    if value.requires_grad:
        value.sum().backward()
    return value, leaf.grad


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore:index_reduce")
@pytest.mark.parametrize(
    ("name", "start", "args"), CASES, ids=[f"{c[0]}{n}" for n, c in enumerate(CASES)]
)
def test_in_place_forms_equal_pytorch(name, start, args):
    torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
    mine, grad = run(dptrain, name, start, args)
    reference, expected = run(torch, name, start, args)
    assert tuple(mine.shape) == tuple(reference.shape)
    assert mine.dtype.name == str(reference.dtype).removeprefix("torch.")
    np.testing.assert_allclose(mine.detach().numpy(), reference.detach().numpy(), rtol=1e-8)
    if expected is None:
        assert grad is None or not grad.numpy().any()
    else:
        found = np.zeros_like(start) if grad is None else grad.numpy()
        np.testing.assert_allclose(found, expected.numpy(force=True), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("name", ["unsqueeze_", "index_add_", "clamp_"])
def test_in_place_forms_are_refused_on_leaves(name):
    leaf = dptrain.ones(2, requires_grad=True)
    args = {
        "unsqueeze_": (0,),
        "index_add_": (0, dptrain.tensor([0]), dptrain.ones(1)),
        "clamp_": (0, 1),
    }
    with pytest.raises(RuntimeError, match=f"{name}: a leaf Variable that requires grad"):
        getattr(leaf, name)(*args[name])


def test_in_place_changes_count_as_changes_of_saved_values():
    x = dptrain.ones(3, requires_grad=True)
    y = x * 2
    z = y.exp2()
    w = z * y
    y.clamp_(max=1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        w.sum().backward()


def test_resize_keeps_the_elements_in_order():
    t = dptrain.arange(6)
    assert t.resize_(2, 2) is t
    assert t.tolist() == [[0, 1], [2, 3]]
    assert t.resize_(3, 2)[:2].tolist() == [[0, 1], [2, 3]]
    assert t.resize_as_(dptrain.zeros(1)).tolist() == [0]
    with pytest.raises(RuntimeError, match="cannot resize variables that require grad"):
        dptrain.ones(2, requires_grad=True).resize_(3)


def test_views_share_memory():
    t = dptrain.arange(12).reshape(3, 4)
    views = {
        "diagonal": t.diagonal(),
        "unfold": t.unfold(0, 2, 1),
        "as_strided": t.as_strided((2,), (1,), 1),
        "movedim": t.movedim(0, 1),
        "unflatten": t.unflatten(1, (2, 2)),
        "broadcast_to": t.broadcast_to((2, 3, 4)),
        "ravel": t.ravel(),
        "tensor_split": t.tensor_split(2)[0],
        "hsplit": t.hsplit(2)[0],
        "adjoint": t.adjoint(),
        "atleast_3d": dptrain.atleast_3d(t),
    }
    for name, view in views.items():
        assert np.may_share_memory(view.numpy(), t.numpy()), name
        assert view._version_counter() is t._version_counter(), name


def test_running_products_derive_through_zeros():
    x = dptrain.tensor([2.0, 0.0, 3.0, 0.0, 5.0], dtype=dptrain.float64, requires_grad=True)
    assert dptrain.autograd.gradcheck(lambda v: v.cumprod(0), x)
    assert dptrain.autograd.gradgradcheck(lambda v: v.cumprod(0), x)
    assert dptrain.autograd.gradcheck(lambda v: v.prod(), x)
    assert dptrain.autograd.gradgradcheck(lambda v: v.prod(), x)
