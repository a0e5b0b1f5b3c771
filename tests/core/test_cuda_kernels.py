"""The CUDA kernels without a GPU: their sources compile, and, run on the CPU, they equal their twins.

What runs here are the sources, the argument lists and the grids that a GPU gets; see `cuda_on_cpu`.
"""

import ctypes
import inspect

import fake_cublas
import ml_dtypes
import numpy as np
import pytest
from cuda_on_cpu import on_cpu, using_cpu
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_kernels import image, windows
from test_optim_kernels import SCALARS, array

from dptrain.core.kernels import cuda, reference, reference_optim
from dptrain.core.kernels.cuda import FAMILIES, column_norms, images, launch, updates
from dptrain.core.kernels.cuda.launch import OPTIONS, Family, grid_of, parameters, row_block
from dptrain.core.kernels.cuda.numbers import KeptNumbers
from dptrain.core.kernels.cuda.philox import DeviceStream, device_state
from dptrain.core.random import numpy_stream

relaxed = settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
dtypes = st.sampled_from([np.float32, np.float64])


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    with using_cpu(tmp_path_factory) as found:
        yield found


# ---- the sources -------------------------------------------------------------------------------


def nvrtc():
    """NVIDIA's runtime compiler, which needs no driver, from its wheel."""
    from pathlib import Path

    nvidia = pytest.importorskip("nvidia", reason="nvidia-cuda-nvrtc is not installed")
    found = [f for p in nvidia.__path__ for f in Path(p).glob("*/lib/libnvrtc.so.*")]
    if not found:
        pytest.skip("nvidia-cuda-nvrtc is not installed")
    return ctypes.CDLL(str(found[0]))


def compile_for(library, text, architecture):
    """NVRTC's return code and log."""
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    done = library.nvrtcCreateProgram(
        ctypes.byref(program), text.encode(), b"kernels.cu", 0, None, None
    )
    assert done == 0
    options = [o.encode() for o in (*OPTIONS, f"-arch=sm_{architecture}")]
    array_of = (ctypes.c_char_p * len(options))(*options)
    code = library.nvrtcCompileProgram(program, len(options), array_of)
    library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    library.nvrtcGetProgramLog(program, log)
    library.nvrtcDestroyProgram(ctypes.byref(program))
    return code, log.value.decode()


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
def test_sources_compile_for_ampere_and_hopper_without_a_warning(family):
    library = nvrtc()
    cases = [(kind, a) for kind in family.kinds for a in (80, 90)]
    for i, (kind, architecture) in enumerate(cases):
        wide = i % 4 in (1, 2)
        code, log = compile_for(library, family.program(kind, wide).text, architecture)
        assert (code, log.strip()) == (0, ""), (kind, architecture)


def test_a_seeded_syntax_error_does_not_compile():
    library = nvrtc()
    text = images.FAMILY.program("float32").text
    code, log = compile_for(library, text.replace("A sum = 0;", "A sum = 0", 1), 90)
    assert code != 0
    assert "error" in log


@pytest.mark.parametrize(
    ("twins", "definition"), [(cuda, reference), (updates, reference_optim)], ids=["all", "optim"]
)
def test_twins_have_the_names_and_parameters_of_the_definition(twins, definition):
    public = [
        n
        for n, f in vars(definition).items()
        if inspect.isfunction(f)
        and not n.startswith("_")
        and f.__module__.startswith("dptrain.core.k")
    ]
    assert len(public) >= 8
    for name in public:
        ours, theirs = (inspect.signature(getattr(m, name)).parameters for m in (twins, definition))
        assert list(ours) == list(theirs), name


def test_every_kernel_is_started_somewhere():
    for family in FAMILIES:
        module = inspect.getsource(
            __import__(f"dptrain.core.kernels.cuda.{family.name}", fromlist="x")
        )
        python = module.replace(inspect.cleandoc(family.source), "")
        assert family.kernels
        for kernel in family.kernels:
            # Those of activations have names from a table; those that read their numbers from memory are made.
            stem = kernel.removesuffix("_value").removesuffix("_grad").removesuffix("_kept")
            assert f'"{kernel}"' in python or f'"{stem}"' in python, kernel


# ---- launch arithmetic -------------------------------------------------------------------------


@given(st.integers(1, 2**40), st.sampled_from([32, 64, 128, 256]))
def test_a_grid_covers_all_elements_without_an_idle_block_up_to_its_limit(threads, block):
    grid = grid_of(threads, block)
    assert 1 <= grid <= 65535
    assert grid * block >= threads or grid == 65535
    assert (grid - 1) * block < threads


@given(st.integers(0, 100_000), st.sampled_from([np.float16, np.float32, np.float64]))
def test_a_row_gets_warps_a_power_of_two_of_them(columns, dtype):
    block = row_block(columns, np.dtype(dtype))
    assert block & (block - 1) == 0
    assert 32 <= block <= 512  # a reduction keeps one number of each of at most 32 warps


def test_parameters_are_read_off_the_source():
    source = 'extern "C" __global__ void f(const T* x, long long\n  count, A rate) { }'
    assert parameters(source)["f"] == (("T*", "x"), ("long long", "count"), ("A", "rate"))


def test_arrays_beyond_two_to_the_31_get_wide_indices(monkeypatch):
    seen = []
    monkeypatch.setattr(launch, "driver", lambda program, *rest: seen.append(program.wide))
    family = Family("f", 'extern "C" __global__ void f(const T* x, long long count) {}')
    for size in (10, 2**31 - 1, 2**31):
        x = np.broadcast_to(np.float32(0), (size,))  # no memory
        family.launch("f", x.dtype, size, x, size)
    assert seen == [False, False, True]
    family.launch("f", x.dtype, 0, x[:0], 0)
    assert len(seen) == 3  # nothing to do, nothing started
    with pytest.raises(TypeError, match="'f' are not made for int64"):
        family.launch("f", np.dtype(np.int64), 1, x, 1)
    with pytest.raises(ValueError, match="zip"):
        family.launch("f", x.dtype, 1, x)


# ---- the kernels, run on the CPU ---------------------------------------------------------------


@on_cpu
@relaxed
@given(windows(), dtypes)
def test_columns_and_back_have_the_bits_of_the_definition(driver, case, dtype):
    shape, geometry, (oh, ow) = case
    x = image(shape, dtype)
    np.testing.assert_array_equal(
        cuda.im2col(x, oh, ow, geometry), reference.im2col(x, oh, ow, geometry)
    )
    rows = image((shape[0] * oh * ow, geometry[0] * geometry[1] * shape[3]), dtype, seed=1)
    np.testing.assert_array_equal(
        cuda.col2im(rows, shape, oh, ow, geometry), reference.col2im(rows, shape, oh, ow, geometry)
    )


@on_cpu
@relaxed
@given(windows(max_pad=1), dtypes, st.booleans())
def test_max_pool_has_the_bits_of_the_definition(driver, case, dtype, nan):
    shape, geometry, (oh, ow) = case
    x = image(shape, dtype, nan=nan)
    best, where = cuda.max_pool(x, oh, ow, geometry)
    expected_best, expected_where = reference.max_pool(x, oh, ow, geometry)
    np.testing.assert_array_equal(best, expected_best)
    np.testing.assert_array_equal(where, expected_where)
    assert where.dtype == expected_where.dtype
    grad = image(best.shape, dtype, seed=2)
    np.testing.assert_array_equal(
        cuda.max_pool_scatter(grad, where, shape, geometry),
        reference.max_pool_scatter(grad, where, shape, geometry),
    )
    np.testing.assert_array_equal(
        cuda.max_pool_gather(x, where, geometry), reference.max_pool_gather(x, where, geometry)
    )


@on_cpu
def test_wide_indices_give_the_same(driver, monkeypatch):
    monkeypatch.setattr(launch, "_WIDE", 0)
    geometry, x = (3, 2, 2, 1, 1, 1, 1, 2), image((2, 6, 7, 3), np.float32)
    np.testing.assert_array_equal(
        cuda.im2col(x, 3, 7, geometry), reference.im2col(x, 3, 7, geometry)
    )


@on_cpu
@relaxed
@given(st.lists(st.floats(-8, 8), max_size=600), dtypes)
def test_erf_equals_the_definition(driver, values, dtype):
    x = np.array([*values, np.nan, np.inf, -0.0], dtype)
    near = 4e-7 if dtype is np.float32 else 1e-14
    np.testing.assert_allclose(cuda.erf(x), reference.erf(x), rtol=near, atol=0)


@given(st.integers(0, 10**5), st.integers(1, 5000), st.sampled_from([np.float16, np.float32]))
def test_chunks_of_rows_and_tiles_of_columns_cover_a_matrix_once(rows, columns, dtype):
    matrix = np.broadcast_to(np.zeros((), dtype), (rows, columns))
    chunk, tiles, chunks, across, packed = column_norms._divided(matrix.dtype, matrix)
    assert chunk * chunks >= rows
    assert chunk * (chunks - 1) < max(rows, 1)
    width = across * (16 // matrix.itemsize if packed else 1)
    assert tiles * width >= columns > (tiles - 1) * width
    assert 256 % across == 0


UPDATES = [
    (name, reference_optim if hasattr(reference_optim, name) else reference)
    for name in updates.__all__
    if name in updates.FAMILY.kernels
]


@on_cpu
@pytest.mark.parametrize(("name", "definition"), UPDATES, ids=[n for n, _ in UPDATES])
@relaxed
@given(data=st.data(), n=st.integers(0, 9), dtype=dtypes)
def test_updates_have_the_bits_of_the_definition(driver, name, definition, data, n, dtype):
    arrays, scalars = {}, {}
    for i, p in enumerate(inspect.signature(getattr(definition, name)).parameters.values()):
        if "np.ndarray" in p.annotation:
            absent = "None" in p.annotation and data.draw(st.booleans(), label=f"no {p.name}")
            arrays[p.name] = None if absent else array(p.name, i, n, dtype)
        elif p.annotation == "bool":
            scalars[p.name] = data.draw(st.booleans(), label=p.name)
        else:
            scalars[p.name] = data.draw(SCALARS.get(p.name, st.floats(0, 0.99)), label=p.name)
    results = []
    for provider in (updates, definition):
        copies = {k: None if v is None else v.copy() for k, v in arrays.items()}
        with np.errstate(all="ignore"):
            getattr(provider, name)(**copies, **scalars)
        results.append(copies)
    for key in arrays:
        if arrays[key] is not None:
            np.testing.assert_array_equal(results[0][key], results[1][key], err_msg=key)


@on_cpu
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("name", "definition"), UPDATES, ids=[n for n, _ in UPDATES])
def test_updates_whose_numbers_lie_in_memory_have_the_same_bits(
    driver, name, definition, dtype, monkeypatch
):
    arrays, scalars = {}, {}
    for i, p in enumerate(inspect.signature(getattr(definition, name)).parameters.values()):
        if "np.ndarray" in p.annotation:
            arrays[p.name] = array(p.name, i, 7, dtype)
        else:
            scalars[p.name] = bool(i % 2) if p.annotation == "bool" else 0.1 + i / 37
    update, results = getattr(updates, name), []
    for kept in (None, KeptNumbers(), KeptNumbers()):
        copies = {k: v.copy() for k, v in arrays.items()}
        if kept is None:
            update(**copies, **scalars)
        elif not results[1:]:
            with kept.launching(recorded=False):
                update(**copies, **scalars)
        else:  # recorded with other numbers, which are brought up to date before the launch
            recorded = []
            with monkeypatch.context() as patch, kept.launching(recorded=True):
                patch.setattr(launch, "driver", lambda *started, to=recorded: to.append(started))
                update(**copies, **dict.fromkeys(scalars, 0))
            with kept.refreshing():
                update(**copies, **scalars)
            (started,) = recorded
            driver(*started)
        results.append(copies)
    for key in arrays:
        np.testing.assert_array_equal(results[1][key], results[0][key], err_msg=key)
        np.testing.assert_array_equal(results[2][key], results[0][key], err_msg=key)


@on_cpu
def test_a_recorded_step_that_consists_of_other_updates_now_is_refused(driver):
    kept, x = KeptNumbers(), np.ones(3, np.float32)
    with kept.launching(recorded=False):
        updates.scaled_step(x, x.copy(), 1, 0.5)
    with kept.refreshing(), pytest.raises(RuntimeError, match="muon_direction in the place of sca"):
        updates.muon_direction(x, x.copy(), x.copy(), 0.9, False)


@on_cpu
def test_sixteen_bits_are_computed_in_float32_and_rounded_once(driver):
    kind = np.dtype(ml_dtypes.bfloat16)
    stream = np.random.default_rng(0)
    param, grad, buf = (stream.standard_normal(600).astype(kind) for _ in range(3))
    param[:3], grad[3:5] = [np.nan, np.inf, -np.inf], [np.inf, 1e-40]
    wide = [a.astype(np.float32) for a in (param, grad, buf)]
    updates.sgd(param, grad, buf, 0.1, 0.9, 0.0, 0.01, False, False, False)
    with np.errstate(all="ignore"):
        reference.sgd(*wide, 0.1, 0.9, 0.0, 0.01, False, False, False)
    for got, expected in ((buf, wide[2]), (param, wide[0])):
        rounded = expected.astype(kind).astype(np.float32)
        np.testing.assert_array_equal(got.astype(np.float32), rounded)


# ---- sums of columns ---------------------------------------------------------------------------


@on_cpu
@relaxed
@given(
    st.integers(0, 400),
    st.sampled_from([1, 3, 4, 31, 33, 128, 132, 1028]),
    st.sampled_from([np.float32, np.float64, ml_dtypes.bfloat16]),
    st.integers(0, 1),
)
def test_sums_of_columns_are_rounded_once(driver, rows, columns, dtype, shift):
    """`shift`: the memory is not aligned for four elements at once."""
    held = np.random.default_rng(rows).standard_normal(rows * columns + shift).astype(dtype)
    x = held[shift:].reshape(rows, columns)
    found = cuda.column_sums(x)
    assert found.dtype == dtype
    assert found.shape == (columns,)
    expected = x.astype(np.float64).sum(axis=0)
    step = float(ml_dtypes.finfo(dtype).eps)
    added_in = 2.0**-52 if dtype is np.float64 else 2.0**-23
    spread = np.abs(x.astype(np.float64)).sum(axis=0)
    near = step / 2 * np.abs(expected) * 1.001 + added_in * 30 * spread
    assert (np.abs(found.astype(np.float64) - expected) <= near).all()


@on_cpu
@pytest.mark.parametrize("shape", [(3, 5, 8), (7, 3), (2, 1), (0, 4), (5, 260)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, ml_dtypes.bfloat16])
def test_a_bias_is_added_to_each_row(driver, shape, dtype):
    rows, bias = image(shape, dtype), image(shape[-1:], dtype, seed=1)
    expected = rows + bias
    cuda.columns.add_bias(rows, bias)
    np.testing.assert_array_equal(rows, expected)


# ---- attention without cuDNN -------------------------------------------------------------------


@on_cpu
@pytest.mark.parametrize("kind", [np.float32, np.float64, ml_dtypes.bfloat16])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("sizes", [(2, 3, 7, 9, 8, 4), (1, 2, 5, 3, 4, 4), (1, 1, 2, 300, 4, 8)])
def test_attention_as_products_equals_the_definition(driver, monkeypatch, kind, causal, sizes):
    n, heads, length, keys, size, wide = sizes
    shapes = [(n, heads, length, size), (n, heads, keys, size), (n, heads, keys, wide)]
    q, k, v = (image(s, kind, seed=i) for i, s in enumerate(shapes))
    grad = image((*shapes[0][:3], wide), kind, seed=3)
    with fake_cublas.installed(monkeypatch) as blas:
        out, kept = cuda.attention(q, k, v, 0.3, causal)
        grads = cuda.attention_grad(grad, q, k, v, out, kept, 0.3, causal)
    assert len(blas.calls) == 6
    q, k, v, grad = (a.astype(np.float64) for a in (q, k, v, grad))
    expected, weights = reference.attention(q, k, v, 0.3, causal)
    others = reference.attention_grad(grad, q, k, v, expected, weights, 0.3, causal)
    near = {np.float32: 1e-5, np.float64: 1e-12}.get(kind, 3e-2)
    for a, b in zip((out, kept, *grads), (expected, weights, *others), strict=True):
        assert a.dtype == kind
        np.testing.assert_allclose(a.astype(np.float64), b, rtol=near, atol=near)


# ---- order -------------------------------------------------------------------------------------


@on_cpu
@pytest.mark.parametrize("dtype", [np.float32, np.float64, ml_dtypes.bfloat16])
@pytest.mark.parametrize(
    "shape", [(2, 3, 5, 7), (2, 33, 6, 11), (3, 64, 40), (2, 16, 3, 3, 4), (4, 1, 5), (0, 20, 4)]
)
def test_images_come_to_the_order_of_the_kernels(driver, shape, dtype):
    x = image(shape, dtype)
    for before in (
        x,
        x[:, ::2],
        np.moveaxis(image((*shape[:1], *shape[2:], shape[1]), dtype), -1, 1),
    ):
        found = cuda.channels_last(before)
        assert found.flags.c_contiguous
        np.testing.assert_array_equal(found, np.moveaxis(before, 1, -1))


# ---- convolution without cuDNN -----------------------------------------------------------------


@on_cpu
@pytest.mark.parametrize("kind", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize("groups", [1, 2])
def test_convolution_as_products_equals_the_definition(driver, monkeypatch, kind, groups):
    geometry, outs = (3, 2, 2, 1, 1, 0, 1, 2), (4, 6)
    x, grad = image((2, 7, 8, 4), kind), image((2, *outs, 6), kind, seed=1)
    weight, bias = image((6, 4 // groups, 3, 2), kind, seed=2), image(6, kind, seed=3)
    wide = [a.astype(np.float32) for a in (x, grad, weight, bias)]
    with fake_cublas.installed(monkeypatch) as blas:
        found = (
            cuda.conv(x, weight, bias, *outs, geometry, groups),
            cuda.conv_input_grad(grad, weight, None, x.shape, geometry, groups),
            *cuda.conv_weight_grad(x, grad, weight.shape, geometry, groups),
        )
    assert len(blas.calls) == 3
    x, grad, weight, bias = wide
    expected = (
        reference.conv(x, weight, bias, *outs, geometry, groups),
        reference.conv_input_grad(grad, weight, None, x.shape, geometry, groups),
        *reference.conv_weight_grad(x, grad, weight.shape, geometry, groups),
    )
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == kind
        near = 1e-5 if kind is np.float32 else 2e-2 * np.abs(b).max()
        np.testing.assert_allclose(a.astype(np.float32), b, rtol=1e-5, atol=near)


# ---- random numbers ----------------------------------------------------------------------------


@on_cpu
@relaxed
@given(
    st.lists(st.tuples(st.integers(0, 9), st.booleans()), max_size=6),
    st.integers(0, 2**64),
    st.integers(0, 5),
)
def test_uniform_numbers_are_the_hosts_bit_for_bit(driver, draws, seed, skipped):
    host = numpy_stream(seed, 1, 3)
    host.random(skipped, dtype=np.float32)  # starts where the host stands
    device = DeviceStream(np, host)
    for n, single in draws:
        kind = np.float32 if single else np.float64
        np.testing.assert_array_equal(device.random(n, dtype=kind), host.random(n, dtype=kind))
    # Where the streams stand, too, as far as what is left of a word is still to be drawn.
    expected, found = device_state(host), device.host_state()
    np.testing.assert_array_equal(found[:4], expected[:4])
    if expected[3]:
        assert found[4] == expected[4]


@on_cpu
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_normal_numbers_are_normal_and_go_on_in_the_stream(driver, dtype):
    stream = DeviceStream(np, numpy_stream(0))
    first, second = stream.standard_normal((100, 201), dtype), stream.standard_normal(20000, dtype)
    values = np.concatenate([first.ravel(), second]).astype(np.float64)
    assert np.isfinite(values).all()
    n = len(values)
    assert abs(values.mean()) < 5 / n**0.5
    assert abs((values**2).mean() - 1) < 5 * (2 / n) ** 0.5
    assert abs((values**4).mean() - 3) < 5 * (96 / n) ** 0.5
    assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 5 / n**0.5
    assert len(np.unique(first)) > 0.99 * first.size
    assert stream.host_state()[2] == 20100 + 20000  # two words for each pair
    with pytest.raises(TypeError, match="float32 or float64, not int64"):
        stream.random(3, np.int64)
