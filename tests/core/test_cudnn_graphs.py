"""cuDNN's graphs without a GPU: what is asked of the frontend, and when convolutions go there."""

import ast
import warnings
from pathlib import Path
from types import SimpleNamespace

import fake_cupy
import numpy as np
import pytest
from fake_cupy import over_the_stand_in

import dptrain
from dptrain.core import kernels
from dptrain.core.arrays import address
from dptrain.core.kernels.cuda import cudnn, cudnn_attention
from dptrain.core.ops import attention
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


def test_the_frontend_has_what_is_asked_of_it(frontend):
    tree = ast.parse(Path(cudnn.__file__).read_text())
    owners = {"graph": frontend.pygraph, "plan.graph": frontend.pygraph, "cudnn": frontend}
    owners |= {"self._cudnn": frontend, "tensor": frontend.tensor}
    found = set()
    for node in (n for n in ast.walk(tree) if isinstance(n, ast.Attribute)):
        owner = owners.get(ast.unparse(node.value))
        if owner is not None:
            assert hasattr(owner, node.attr), node.attr
            found.add(node.attr)
    assert {"execute_plan_at_index", "build_plan_at_index", "set_uid", "set_stream"} <= found
    for name in ("TENSOR_CORE", "DOWN_CONVERT_INPUTS", "NONDETERMINISTIC"):
        assert hasattr(frontend.numerical_note, name)


@pytest.fixture
def library(monkeypatch):
    with fake_cupy.installed(monkeypatch) as found:
        monkeypatch.setattr(cudnn, "_library", [])
        monkeypatch.setattr(cudnn, "add_bias", lambda rows, bias: rows.__iadd__(bias))
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


def test_what_lies_channels_last_is_not_copied_and_what_does_not_is_copied_once(
    library, monkeypatch
):
    recorder = Recorder(True)
    monkeypatch.setattr(cudnn, "_library", [recorder])
    monkeypatch.setattr(kernels, "_cuda", over_the_stand_in)
    places = []
    record = recorder.run
    recorder.run = lambda b, c, arrays: (
        places.append([a.data.ptr for a in arrays]) or record(b, c, arrays)
    )

    def run(x, w, grad):
        x, w = (t.detach().to("cuda").to(dptrain.bfloat16).requires_grad_() for t in (x, w))
        bias = dptrain.zeros(4, dtype=dptrain.bfloat16).to("cuda").requires_grad_()
        out = F.conv2d(x, w, bias, padding=1)
        assert out.dtype is dptrain.bfloat16
        grad = grad.to("cuda").to(dptrain.bfloat16)
        out.backward(grad)
        assert bias.grad.shape == (4,)
        found, places[:] = list(places), []
        return found, [t.data_ptr() for t in (x, w, out, grad)]

    last = dptrain.channels_last
    x, w, grad = dptrain.ones(2, 3, 8, 8), dptrain.ones(4, 3, 3, 3), dptrain.ones(2, 4, 8, 8)
    (forward, by_input, by_weight), (x_at, w_at, out_at, grad_at) = run(
        *(t.contiguous(memory_format=last) for t in (x, w, grad))
    )
    assert forward == [x_at, w_at, out_at]
    assert by_input[:2] == [grad_at, w_at]
    assert by_weight[:2] == [x_at, grad_at]
    (forward, by_input, by_weight), (x_at, w_at, _, grad_at) = run(x, w, grad)
    assert not {x_at, w_at, grad_at} & {*forward, *by_input, *by_weight}
    assert by_input[1] == forward[1]
    assert by_weight == [forward[0], by_input[0], by_weight[2]]
    one = dptrain.ones(4, 3, 1, 1)  # has no order
    (forward, by_input, _), (_, w_at, *_) = run(x, one, dptrain.ones(2, 4, 10, 10))
    assert (forward[1], by_input[1]) == (w_at, w_at)


def test_what_begins_between_sixteen_bytes_is_copied(library, monkeypatch):
    recorder = Recorder(True)
    monkeypatch.setattr(cudnn, "_library", [recorder])
    places = []
    monkeypatch.setattr(recorder, "run", lambda b, c, arrays: places.extend(map(address, arrays)))
    x = dptrain.zeros(3, 3, 3, 3, dtype=dptrain.bfloat16).to("cuda")
    x = x.contiguous(memory_format=dptrain.channels_last)[1:]  # 54 bytes later
    assert address(x._array) % 16
    w = dptrain.zeros(8, 3, 1, 1, dtype=dptrain.bfloat16).to("cuda")
    F.conv2d(x, w)
    assert len(places) == 3
    assert not any(place % 16 for place in places)


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


class Graph:
    """In the place of the frontend's: three plans, of which the first is not for this GPU."""

    def __init__(self, log, clock):
        self.log, self.clock, self.built = log, clock, []

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **options: None

    def conv_fprop(self, **options):
        return Tensor()

    def tensor(self, **options):
        return Tensor()

    def get_execution_plan_count(self):
        return 3

    def get_workspace_size(self):
        return 0

    def get_workspace_size_plan_at_index(self, index):
        return 64

    def build_plan_at_index(self, index):
        if index == 0:
            raise Unsupported
        self.built.append(index)

    def execute(self, pointers, workspace, handle=None):
        self.log.append(("execute", pointers, workspace, handle))

    def execute_plan_at_index(self, pointers, workspace, index, handle=None):
        assert index in self.built
        self.log.append(("execute", pointers, bool(workspace), handle, index))
        self.clock[0] += {1: 5, 2: 3}[index]


class Tensor:
    def set_uid(self, uid):
        self.uid = uid

    def __getattr__(self, name):
        return lambda *args: self


class Unsupported(Exception):
    pass


@pytest.fixture
def asked(library, monkeypatch):
    """A `Cudnn` over a frontend that writes down what it is asked."""
    log, clock = [], [0]
    kinds = SimpleNamespace(FLOAT=0, HALF=1, BFLOAT16=2)
    frontend = SimpleNamespace(
        data_type=kinds,
        pygraph=lambda **options: Graph(log, clock),
        numerical_note=SimpleNamespace(TENSOR_CORE=0, DOWN_CONVERT_INPUTS=1, NONDETERMINISTIC=2),
        heur_mode=SimpleNamespace(A=0, FALLBACK=1),
        cudnnGraphNotSupportedError=Unsupported,
        create_handle=lambda: 7,
        set_stream=lambda handle, stream: log.append(("stream", handle, stream)),
    )

    class Event:
        def record(self):
            self.at = clock[0]

        def synchronize(self):
            pass

    monkeypatch.setattr(library.cupy.cuda, "Event", Event)
    monkeypatch.setattr(
        library.cupy.cuda, "get_elapsed_time", lambda a, b: b.at - a.at, raising=False
    )
    return cudnn.Cudnn(frontend, library.cupy), log


def test_a_call_tells_cudnn_where_its_arrays_lie_and_the_stream_once(asked, library):
    found, log = asked
    arrays = [dptrain.zeros(1, 2, 2, 3).to("cuda")._array for _ in range(3)]
    c = described(CASES[0])
    for _ in range(2):
        assert found.run(cudnn.forward_graph, c, arrays)
    places = {n: a.data.ptr for n, a in enumerate(arrays, 1)}
    assert log == [("stream", 7, 0), *[("execute", places, 0, 7)] * 2]
    with library.cupy.cuda.Stream():
        found.run(cudnn.forward_graph, c, arrays)
    assert log[-2][0] == "stream"


def test_benchmark_times_plans_once_and_keeps_the_fastest(asked, library, monkeypatch):
    found, log = asked
    monkeypatch.setattr(dptrain.backends.cudnn, "benchmark", True)
    arrays = [dptrain.zeros(1, 2, 2, 3).to("cuda")._array for _ in range(3)]
    c = described(CASES[0])
    found.run(cudnn.forward_graph, c, arrays)
    tried = [entry[4] for entry in log if entry[0] == "execute"]
    assert tried == [1] * 4 + [2] * 4 + [2]
    log.clear()
    found.run(cudnn.forward_graph, c, arrays)
    assert [entry[4] for entry in log] == [2]
    # While a graph is captured nothing can be timed.
    stream = library.cupy.cuda.get_current_stream()
    stream.capturing = True
    other = c._replace(kind="bfloat16")
    log.clear()
    found.run(cudnn.forward_graph, other, arrays)
    assert [len(entry) for entry in log] == [4]


@pytest.mark.parametrize("text", ["No valid engine configs for Conv", "cudaErrorUnknown"])
def test_where_there_is_no_plan_one_warning_tells_other_reasons(asked, monkeypatch, text):
    found, _ = asked

    def check_support(graph):
        raise RuntimeError(text)

    monkeypatch.setattr(Graph, "check_support", check_support, raising=False)
    arrays = [dptrain.zeros(1, 2, 2, 3).to("cuda")._array for _ in range(3)]
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(2):
            assert not found.run(cudnn.forward_graph, described(CASES[0]), arrays)
    assert len(told) == ("Unknown" in text)


# ---- attention ---------------------------------------------------------------------------------

SHAPES = [
    ((2, 3, 64, 32), (2, 3, 128, 32), (2, 3, 128, 16)),
    ((1, 2, 8, 128), (1, 2, 8, 128), (1, 2, 8, 128)),
    ((2, 6, 64, 64), (2, 2, 64, 64), (2, 2, 64, 64)),
]


def layouts(shapes, order):
    """Of (N, heads, length, size): row-major, heads beside each other, or parts of one projection."""
    if order == "rows":
        return [cudnn_attention.dense(s) for s in shapes]
    if order == "heads beside each other":
        return [cudnn_attention.dense(s, (3, 1, 2, 0)) for s in shapes]
    heads, size = shapes[0][1], shapes[0][3]
    row = 3 * heads * size
    return [cudnn_attention.Layout(s, (row * s[2], size, row, 1)) for s in shapes]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("order", ["rows", "heads beside each other", "parts"])
@pytest.mark.parametrize("architecture", [80, 90])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
@pytest.mark.parametrize("shapes", SHAPES)
def test_attention_graphs_validate_with_the_layouts_that_were_asked_for(
    frontend, shapes, kind, causal, architecture, order, masked
):
    q, k, v = layouts(shapes, order)
    out = cudnn_attention.dense((*shapes[0][:3], shapes[2][3]), q.steps)
    grad = cudnn_attention.dense(out.sizes)
    n, _, length = shapes[0][:3]
    bias = cudnn_attention.dense((n, 1, length, shapes[1][2])) if masked else None
    dropout = 0.1 if masked and causal else 0.0
    a = cudnn_attention.Attention(
        q, k, v, out, grad, bias, 0.25, causal, True, dropout, kind, deterministic=causal
    )
    number = cudnn_attention.Layout((1, 1, 1, 1), (1, 1, 1, 1))
    more = ((bias,) if masked else ()) + ((number, number) if dropout else ())
    # Without a GPU to ask, the frontend has to be told for which one.
    told = SimpleNamespace(
        data_type=frontend.data_type,
        pygraph=lambda **options: frontend.pygraph(**options, sm_version=architecture),
    )
    outs = [cudnn_attention.dense(*each) for each in (q, k, v)]
    for build, c, expected in (
        (cudnn_attention.forward_graph, a, (q, k, v, *more, out, a.stats)),
        (cudnn_attention.forward_graph, a._replace(recorded=False), (q, k, v, *more, out)),
        (cudnn_attention.backward_graph, a, (q, k, v, out, grad, a.stats, *more, *outs)),
    ):
        graph, tensors = build(told, None, c)
        graph.validate()
        found = [(tuple(t.get_dim()), tuple(t.get_stride())) for t in tensors]
        assert found == [tuple(layout) for layout in expected]


def kept_by(seed, shape, dropout):
    """Some numbers of a seed: 0 for what is dropped, else what makes up for it."""
    drawn = np.random.default_rng(seed.view(np.uint64)).random(shape)
    return (drawn >= dropout) / (1 - dropout)


class NumpyAttention:
    """In the place of `Cudnn`: computes what the two graphs are for, over the stand-in's arrays."""

    def __init__(self):
        self.calls, self.answer = [], True

    def serves(self, build, a, array):
        return self.answer

    def run(self, build, a, arrays):
        if not self.answer:
            return False
        self.calls.append(build.__name__)
        forward = build is cudnn_attention.forward_graph
        told = {"query": a.query, "key": a.key, "value": a.value}
        more = {} if a.bias is None else {"bias": a.bias}
        more |= {"seed": None, "offset": None} if a.dropout else {}
        if forward:
            told |= more | {"result": a.result} | ({"stats": a.stats} if a.recorded else {})
        else:
            told |= {"result": a.result, "grad": a.grad, "stats": a.stats} | more
            for name in ("query", "key", "value"):
                told["d_" + name] = cudnn_attention.dense(*told[name])
        host = {n: x.host for n, x in zip(told, arrays, strict=True)}
        for name, layout in told.items():
            x = host[name]
            if layout is None:
                assert (x.shape, x.dtype) == ((1,), np.int64)
                continue
            assert x.shape == layout.sizes
            for size, t, step in zip(x.shape, x.strides, layout.steps, strict=True):
                assert size == 1 or t == step * x.itemsize
        repeat = a.query.sizes[1] // a.key.sizes[1]
        q, k, v = (host[n].astype(np.float64) for n in ("query", "key", "value"))
        k, v = (np.repeat(x, repeat, axis=1) for x in (k, v))
        scores = np.einsum("nhld,nhsd->nhls", q, k) * a.scale
        if "bias" in host:
            assert np.isfinite(host["bias"].astype(np.float64)).all()
            scores = scores + host["bias"].astype(np.float64)
        if a.causal:
            scores = np.where(np.tri(*scores.shape[2:], dtype=bool), scores, -np.inf)
        top = scores.max(axis=-1, keepdims=True)
        stats = np.log(np.exp(scores - top).sum(axis=-1, keepdims=True)) + top
        p = np.exp(scores - stats)
        kept = kept_by(host["seed"], p.shape, a.dropout) if a.dropout else 1
        if forward:
            host["result"][...] = (p * kept) @ v
            if a.recorded:
                host["stats"][...] = stats
            return True
        np.testing.assert_allclose(host["stats"], stats, rtol=1e-3)
        g = host["grad"].astype(np.float64)
        dp = g @ v.swapaxes(2, 3) * kept
        # As the kernels do, from the result.
        inner = (g * host["result"].astype(np.float64)).sum(axis=-1, keepdims=True)
        ds = p * (dp - inner) * a.scale
        dk, dv = ds.swapaxes(2, 3) @ q, (p * kept).swapaxes(2, 3) @ g
        host["d_query"][...] = ds @ k
        for out, every in ((host["d_key"], dk), (host["d_value"], dv)):
            n, heads, *rest = out.shape
            out[...] = every.reshape(n, heads, repeat, *rest).sum(axis=2)
        return True


@pytest.fixture
def fused(library, monkeypatch):
    found = NumpyAttention()
    monkeypatch.setattr(cudnn, "_library", [found])
    monkeypatch.setattr(cudnn_attention, "enabled", True)
    monkeypatch.setattr(kernels, "_cuda", over_the_stand_in)
    return found


@pytest.mark.parametrize("causal", [False, True])
def test_attention_goes_to_cudnn_and_has_the_values_of_the_host(fused, causal):
    stream = np.random.default_rng(0)
    arrays = [stream.standard_normal(s).astype(np.float16) for s in ((2, 3, 6, 8), (2, 3, 9, 8))]
    arrays.append(stream.standard_normal((2, 3, 9, 16)).astype(np.float16))

    def run(place):
        q, k, v = (dptrain.tensor(x).to(place).requires_grad_() for x in arrays)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=0.3)
        (out.float() ** 2).sum().backward()
        return [t.detach().cpu().numpy().astype(np.float32) for t in (out, q.grad, k.grad, v.grad)]

    for found, expected in zip(run("cuda:1"), run("cpu"), strict=True):
        np.testing.assert_allclose(found, expected, rtol=2e-2, atol=2e-2)
    assert fused.calls == ["forward_graph", "backward_graph"]


@pytest.mark.parametrize("recorded", [False, True])
def test_parts_of_one_projection_are_read_where_they_lie(fused, recorded, monkeypatch):
    """And the heads of the result lie beside each other, so that it is a view of (N, T, heads * size)."""
    read = []
    readable = cudnn_attention._readable
    monkeypatch.setattr(
        cudnn_attention, "_readable", lambda x: read.append((x, readable(x)[0])) or readable(x)
    )
    values = np.random.default_rng(0).standard_normal((2, 5, 3 * 4 * 8)).astype(np.float16)

    def run(place, dtype):
        x = dptrain.tensor(values).to(place, dtype).requires_grad_(recorded)
        q, k, v = (part.view(2, 5, 4, 8).transpose(1, 2) for part in x.view(2, 5, 3, 32).unbind(2))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
        flat = out.reshape(2, 5, 32)
        if place != "cpu":
            assert out.is_contiguous()
            assert flat.data_ptr() == out.data_ptr()
        if recorded:
            flat.backward(dptrain.tensor(values[..., 32:64]).to(place, dtype))
        return [t.detach().cpu().numpy() for t in ((flat, x.grad) if recorded else (flat,))]

    found = run("cuda:1", dptrain.float16)
    for theirs, ours in read:
        assert theirs is ours
    assert fused.calls == ["forward_graph", "backward_graph"][: 1 + recorded]
    for ours, theirs in zip(found, run("cpu", dptrain.float32), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-2, atol=1e-2)


def test_what_lies_awkwardly_is_copied_and_few_keys_serve_many_queries(fused):
    def run(place, dtype):
        stream = np.random.default_rng(1)
        q = dptrain.tensor(stream.standard_normal((2, 4, 9, 8))).to(place, dtype)[:, :, :, :8]
        wide = dptrain.tensor(stream.standard_normal((2, 2, 9, 9))).to(place, dtype)
        k, v = wide[..., 1:], wide[..., :8]  # rows of 18 bytes
        leaves = [t.detach().requires_grad_() for t in (q, k, v)]
        out = F.scaled_dot_product_attention(*leaves, enable_gqa=True)
        (out.float() ** 2).sum().backward()
        return [t.detach().cpu().float().numpy() for t in (out, *(x.grad for x in leaves))]

    found = run("cuda:1", dptrain.float16)
    assert fused.calls == ["forward_graph", "backward_graph"]
    for ours, theirs in zip(found, run("cpu", dptrain.float32), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-2, atol=2e-2)


MASKS = {
    "keys": np.arange(9) < np.array([9, 4])[:, None, None, None],
    "a query that may attend nowhere": np.arange(9)[:, None] + np.arange(9) > 8,
    "numbers": np.where(np.arange(9) < 5, 0.5, -np.inf) * np.ones((3, 1, 1)),
    "numbers, nowhere": np.where(np.arange(9)[:, None] > 0, 0.25, -np.inf),
}


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", MASKS)
def test_masks_go_to_cudnn_as_finite_numbers(fused, name, kind):
    values = [np.random.default_rng(k).standard_normal((2, 3, 9, 8)) for k in range(4)]

    def run(place, dtype):
        q, k, v = (dptrain.tensor(x).to(place, dtype).requires_grad_() for x in values[:3])
        mask = dptrain.tensor(MASKS[name]).to(place)
        mask = mask if mask.dtype is dptrain.bool else mask.to(dtype)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        out.backward(dptrain.tensor(values[3]).to(place, dtype))
        return [t.detach().cpu().float().numpy() for t in (out, q.grad, k.grad, v.grad)]

    found = run("cuda:1", getattr(dptrain, kind))
    assert fused.calls == ["forward_graph", "backward_graph"]
    near = {"float16": 1e-2, "bfloat16": 6e-2}[kind]
    for ours, theirs in zip(found, run("cpu", dptrain.float32), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=near, atol=near)
    if "nowhere" in name:
        assert not found[0][:, :, 0].any()


def test_dropout_is_cudnns_with_one_seed_for_forward_and_backward(fused, monkeypatch):
    seeds = np.random.default_rng(5).random(2)

    def uniform_beside(array, shape, purpose, kind):
        assert (shape, kind) == ((1,), np.float64)
        drawn.append(seeds[len(drawn)])
        return fake_cupy.ndarray(np.array(drawn[-1:]), array.device.id)

    drawn = []
    monkeypatch.setattr(
        attention, "default_generator", lambda: SimpleNamespace(uniform_beside=uniform_beside)
    )
    values = [np.random.default_rng(k).standard_normal((2, 3, 9, 8)) for k in range(4)]

    def run(place, dtype, run_attention):
        q, k, v = (dptrain.tensor(x).to(place, dtype).requires_grad_() for x in values[:3])
        out = run_attention(q, k, v)
        out.backward(dptrain.tensor(values[3]).to(place, dtype))
        return [t.detach().cpu().float().numpy() for t in (out, q.grad, k.grad, v.grad)]

    def plain(seed):
        kept = dptrain.tensor(kept_by(np.array([seed]), (2, 3, 9, 9), 0.25)).float()
        return lambda q, k, v: ((q @ k.mT / 8**0.5).softmax(-1) * kept) @ v

    for n, seed in enumerate(seeds, 1):
        found = run(
            "cuda:1", dptrain.float16, lambda *x: F.scaled_dot_product_attention(*x, dropout_p=0.25)
        )
        assert len(drawn) == n
        for ours, theirs in zip(found, run("cpu", dptrain.float32, plain(seed)), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-2, atol=1e-2)
    assert fused.calls == ["forward_graph", "backward_graph"] * 2


def test_autocast_brings_attention_to_the_graphs(fused):
    q, k, v = (dptrain.ones(1, 2, 4, 8).to("cuda:1").requires_grad_() for _ in range(3))
    with dptrain.autocast("cuda", dtype=dptrain.bfloat16):
        out = F.scaled_dot_product_attention(q, k, v)
    assert out.dtype is dptrain.bfloat16
    out.sum().backward()
    assert q.grad.dtype is dptrain.float32
    assert fused.calls == ["forward_graph", "backward_graph"]


def test_what_the_graphs_do_not_serve_is_computed_otherwise(fused):
    half, at = dptrain.float16, "cuda:1"
    q = dptrain.ones(1, 2, 4, 8, dtype=half).to(at)
    mask = dptrain.ones(4, 4, dtype=half).to(at).requires_grad_()
    F.scaled_dot_product_attention(q, q, q, attn_mask=mask)
    F.scaled_dot_product_attention(q.float(), q.float(), q.float())
    F.scaled_dot_product_attention(q[..., :5], q[..., :5], q)
    F.scaled_dot_product_attention(q[0], q[0], q[0])
    assert fused.calls == []
    dptrain.backends.cuda.enable_cudnn_sdp(False)
    F.scaled_dot_product_attention(q, q, q)
    assert fused.calls == []
    dptrain.backends.cuda.enable_cudnn_sdp(True)
    assert dptrain.backends.cuda.cudnn_sdp_enabled()
    F.scaled_dot_product_attention(q, q, q)
    assert fused.calls == ["forward_graph"]
    fused.answer = False  # no algorithm on this GPU
    for x in (q, q.clone().requires_grad_()):
        assert F.scaled_dot_product_attention(x, x, x).shape == q.shape
    assert fused.calls == ["forward_graph"]
    fused.answer = True
    x = q.requires_grad_()
    with pytest.raises(RuntimeError, match="no second derivative"):
        dptrain.autograd.grad(F.scaled_dot_product_attention(x, x, x).sum(), x, create_graph=True)
