"""The text of tensors: character for character PyTorch's."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import dptrain
from dptrain.core.random import numpy_stream

torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
pytestmark = pytest.mark.oracle

FLOATS = st.one_of(
    st.floats(-10, 10, width=32),
    st.floats(width=32, allow_subnormal=False),
    st.integers(-3, 3).map(float),
    st.sampled_from([0.0, -0.0, 0.5, 1e-5, 1e6, 99999.5]),
)
ARRAYS = st.one_of(
    hnp.arrays(np.float32, hnp.array_shapes(min_dims=0, max_dims=4, max_side=4), elements=FLOATS),
    hnp.arrays(
        np.float64,
        hnp.array_shapes(min_dims=0, max_dims=3, max_side=4),
        elements=st.floats(allow_subnormal=False),
    ),
    hnp.arrays(np.float16, 5, elements=st.floats(-100, 100, width=16)),
    hnp.arrays(np.int64, hnp.array_shapes(min_dims=0, max_dims=3, max_side=4)),
    hnp.arrays(np.uint8, hnp.array_shapes(min_dims=1, max_dims=2, max_side=4)),
    hnp.arrays(np.bool_, hnp.array_shapes(min_dims=0, max_dims=3, max_side=4)),
)
OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "precision": st.integers(0, 7),
        "threshold": st.sampled_from([0, 5, 1000]),
        "edgeitems": st.integers(0, 3),
        "linewidth": st.integers(10, 120),
        "sci_mode": st.sampled_from([None, True, False]),
        "profile": st.sampled_from(["default", "short", "full"]),
    },
)


@pytest.fixture(autouse=True)
def _default_options():
    yield
    for m in (dptrain, torch):
        m.set_printoptions(profile="default")


def same_text(array, **flags):
    ours = dptrain.tensor(array).requires_grad_(flags.get("grad", False))
    theirs = torch.from_numpy(np.array(array)).requires_grad_(flags.get("grad", False))
    if flags.get("chain"):
        ours, theirs = ours * 2, theirs * 2
    a, b = repr(ours), repr(theirs).replace("torch.", "dptrain.")
    assert a == b


@settings(max_examples=200, deadline=None)
@given(ARRAYS, OPTIONS, st.booleans(), st.booleans())
def test_any_tensor_under_any_options(array, options, grad, chain):
    for m in (dptrain, torch):
        m.set_printoptions(profile="default")
        m.set_printoptions(**options)
    grad = grad and array.dtype.kind == "f"
    with np.errstate(all="ignore"):
        same_text(array, grad=grad, chain=chain and grad)


@pytest.mark.parametrize(
    "shape", [(2000,), (60, 70), (11, 12, 13), (7, 1, 8, 30), (2, 3, 4, 5, 30)]
)
@pytest.mark.parametrize("kind", ["float", "int", "bool"])
def test_summarised_tensors_of_any_rank(shape, kind):
    values = numpy_stream(5).standard_normal(shape) * 100
    array = {"float": values, "int": values.astype(np.int64), "bool": values > 0}[kind]
    same_text(array)
    for m in (dptrain, torch):
        m.set_printoptions(profile="short", linewidth=60)
    same_text(array)


@pytest.mark.parametrize("shape", [(0,), (0, 3), (2, 0, 3)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, np.bool_])
def test_empty_tensors(shape, dtype):
    same_text(np.zeros(shape, dtype))


@pytest.mark.parametrize("name", ["float16", "bfloat16", "int8", "int16", "int32"])
def test_lines_break_where_pytorchs_do(name):
    # The module's longer name in `dtype=` does not count.
    for count in range(1, 40):
        texts = [
            repr(m.arange(count).to(getattr(m, name))).replace("torch.", "dptrain.")
            for m in (dptrain, torch)
        ]
        assert texts[0] == texts[1]


@pytest.mark.parametrize(
    "use",
    [
        lambda m: m.Generator().device,
        lambda m: repr(m.ones(2).__repr__(tensor_contents="...")),
        lambda m: [m.float16.to_real(), m.int64.to_real()],
        lambda m: repr(m.nn.Parameter(m.ones(2))),
        lambda m: repr(m.topk(m.arange(4.0), 2)),
        lambda m: [m.strided, m.channels_last, m.preserve_format],
        lambda m: [repr(m.finfo(m.float16)), repr(m.iinfo(m.int8)), m.Size([2, 3])],
    ],
)
def test_other_things_print_as_pytorchs(use):
    assert str(use(dptrain)) == str(use(torch)).replace("torch.", "dptrain.")


def test_format_follows_the_number_of_dimensions():
    for m in (dptrain, torch):
        assert f"{m.tensor(1.25)}" == "1.25"
        assert f"{m.tensor(1.25):.1f}" == "1.2"
        assert f"{m.tensor([3])}" == "tensor([3])"
        with pytest.raises(TypeError):
            f"{m.tensor([3]):.1f}"


def test_options_are_read_back_and_checked():
    dptrain.set_printoptions(profile="short", linewidth=33)
    torch.set_printoptions(profile="short", linewidth=33)
    assert dptrain.get_printoptions() == torch._tensor_str.get_printoptions()
    with pytest.raises(ValueError, match="'tiny'"):
        dptrain.set_printoptions(profile="tiny")
