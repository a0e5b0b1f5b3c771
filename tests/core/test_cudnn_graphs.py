"""cuDNN's graphs without a GPU: what is asked of the frontend, and when convolutions go there."""

import warnings
from types import SimpleNamespace

import fake_cupy
import numpy as np
import pytest

import dptrain
from dptrain.core.kernels.cuda import cudnn
from dptrain.core.ops.windows import Window

F = dptrain.nn.functional

CASES = [
    ((2, 3, 9, 8), (4, 3, 3, 2), Window((3, 2), (2, 1), (1, 0), (1, 2)), "float32"),
    ((2, 4, 9, 8), (6, 2, 3, 3), Window((3, 3), (1, 1), (1, 1), (1, 1)), "float16"),
    ((1, 8, 17), (8, 8, 5), Window((5,), (3,), (2,), (1,)), "bfloat16"),
    (
        (1, 2, 5, 6, 7),
        (3, 2, 2, 2, 2),
        Window((2, 2, 2), (1, 2, 1), (0, 1, 0), (1, 1, 1)),
        "float32",
    ),
]


def described(case):
    image, weight, window, kind = case
    result = (image[0], weight[0], *window.outputs(image[2:]))
    return cudnn.describe(image, weight, result, window, kind)


@pytest.fixture
def frontend():
    """The frontend with a libcudnn that it can load; neither needs a GPU to build a graph."""
    module = pytest.importorskip("cudnn", reason="nvidia-cudnn-frontend is not installed")
    try:
        module.backend_version()
    except Exception as error:
        pytest.skip(f"no libcudnn: {str(error).splitlines()[0]}")
    return module


@pytest.mark.parametrize("build", [cudnn.forward_graph, cudnn.input_graph, cudnn.weight_graph])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_graphs_validate_with_the_shapes_that_cudnn_infers(frontend, build, case):
    c = described(case)
    graph, tensors = build(frontend, None, c)
    graph.validate()
    shapes = {
        cudnn.forward_graph: (c.image, c.weight, c.result),
        cudnn.input_graph: (c.result, c.weight, c.image),
        cudnn.weight_graph: (c.image, c.result, c.weight),
    }[build]
    for tensor, shape in zip(tensors, shapes, strict=True):
        assert tuple(tensor.get_dim()) == shape
        assert tuple(tensor.get_stride()) == cudnn.last_strides(shape)


@pytest.mark.parametrize("shape", [(2, 3, 5, 4), (1, 7, 1, 9), (2, 3, 4, 5, 6)])
def test_strides_are_those_of_a_channels_last_array(shape):
    n, c, *sizes = shape
    array = np.moveaxis(np.empty((n, *sizes, c), np.float32), -1, 1)
    assert array.shape == shape
    found = cudnn.last_strides(shape)
    for size, ours, theirs in zip(shape, found, array.strides, strict=True):
        assert size == 1 or ours == theirs // 4


def test_a_line_is_an_image_of_height_one():
    c = described(CASES[2])
    assert (c.image, c.weight, c.result) == ((1, 8, 1, 17), (8, 8, 1, 5), (1, 8, 1, 6))
    assert (c.padding, c.stride, c.dilation) == ((0, 2), (1, 3), (1, 1))


@pytest.fixture
def library(monkeypatch):
    with fake_cupy.installed(monkeypatch) as found:
        monkeypatch.setattr(cudnn, "_library", [])
        yield found


def test_without_the_frontend_one_warning_says_so(library, monkeypatch):
    monkeypatch.setattr(cudnn, "find_spec", lambda name: None)
    with pytest.warns(UserWarning, match=r"without cuDNN.*pip install \"dptrain\[cudnn\]\""):
        assert cudnn.library() is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cudnn.library() is None
        assert not dptrain.backends.cudnn.is_available()
        assert dptrain.backends.cudnn.version() is None


class Recorder:
    """In the place of `Cudnn`: writes down what it is asked and computes nothing (or refuses)."""

    def __init__(self, answer):
        self.calls, self.answer = [], answer

    def run(self, build, c, arrays):
        for array in arrays:
            assert array.host.flags.c_contiguous
        self.calls.append((build.__name__, c, [a.shape for a in arrays]))
        return self.answer


def test_a_convolution_and_its_gradients_go_to_cudnn_channels_last(library, monkeypatch):
    recorder = Recorder(True)
    monkeypatch.setattr(cudnn, "_library", [recorder])
    x = dptrain.zeros(2, 3, 8, 8).to("cuda:1").requires_grad_()
    w = dptrain.zeros(4, 3, 3, 3).to("cuda:1").requires_grad_()
    out = F.conv2d(x, w, padding=1, stride=2)
    assert out.shape == (2, 4, 4, 4)
    out.sum().backward()
    assert x.grad.shape == x.shape
    assert w.grad.shape == w.shape
    x_last, w_last, y_last = (2, 8, 8, 3), (4, 3, 3, 3), (2, 4, 4, 4)
    assert [(name, shapes) for name, _, shapes in recorder.calls] == [
        ("forward_graph", [x_last, w_last, y_last]),
        ("input_graph", [y_last, w_last, x_last]),
        ("weight_graph", [x_last, y_last, w_last]),
    ]
    assert {(c.image, c.weight, c.result) for _, c, _ in recorder.calls} == {
        ((2, 3, 8, 8), (4, 3, 3, 3), (2, 4, 4, 4))
    }


def test_flags_of_backends_reach_the_plan_and_float64_does_not_go_there(library, monkeypatch):
    recorder = Recorder(True)
    monkeypatch.setattr(cudnn, "_library", [recorder])
    flags = dptrain.backends.cudnn
    monkeypatch.setattr(flags, "allow_tf32", False)
    monkeypatch.setattr(flags, "deterministic", True)
    x, w = (dptrain.zeros(1, 2, 4, 4).to("cuda") for _ in range(2))
    F.conv2d(x, w)
    ((_, c, _),) = recorder.calls
    assert (c.tf32, c.deterministic) == (False, True)
    array = x._array
    assert cudnn.available(array) is recorder
    assert cudnn.available(SimpleNamespace(dtype=np.dtype(np.float64), ndim=4)) is None
    monkeypatch.setattr(flags, "enabled", False)
    assert cudnn.available(array) is None


def test_what_cudnn_has_no_algorithm_for_is_computed_otherwise(library, monkeypatch):
    from dptrain.core.kernels import reference
    from dptrain.core.ops import convolve

    x = np.random.default_rng(0).standard_normal((2, 3, 6, 6)).astype(np.float32)
    w = np.random.default_rng(1).standard_normal((4, 3, 3, 3)).astype(np.float32)
    expected = F.conv2d(dptrain.tensor(x), dptrain.tensor(w))
    monkeypatch.setattr(cudnn, "_library", [Recorder(False)])
    monkeypatch.setattr(
        convolve, "kernels_for", lambda a: library.functions_beside(a, _OverFakes(reference))
    )
    found = F.conv2d(*(dptrain.tensor(a).to("cuda:1") for a in (x, w)))
    np.testing.assert_allclose(found.cpu().numpy(), expected.numpy(), rtol=1e-5, atol=1e-5)


class _OverFakes:
    """NumPy kernels over the stand-in's arrays."""

    def __init__(self, module):
        self.module, self.__name__ = module, module.__name__

    def __getattr__(self, name):
        function = getattr(self.module, name)
        return lambda *args: fake_cupy._run(function, args, {})
