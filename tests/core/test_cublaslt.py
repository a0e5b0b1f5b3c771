"""Products with a bias by cuBLASLt, over a stand-in of its C interface that g++ compiles, and the real one."""

import ctypes
import shutil
import subprocess
import warnings
from pathlib import Path
from types import SimpleNamespace

import fake_cublas
import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dptrain.core.kernels.cuda import cublaslt, gemm

COMPILER = shutil.which("g++")

#: Descriptors are counted; sizes of attributes, the algorithm and the workspace are checked.
SOURCE = r"""
#include <cstdint>
#include <cstring>
#include <cstdlib>
extern "C" {
int living, refusal, queries;
int64_t last[4];
struct Product { int computed, scale, ta, tb, epilogue; const void* bias; };
struct Layout { int kind; uint64_t rows, columns; int64_t lead; };
struct Preference { uint64_t workspace; uint32_t reductions, aligned[4]; };
struct Heuristic { uint64_t algorithm[8]; size_t workspace; int status; float waves; int reserved[4]; };

int cublasLtMatmulDescCreate(Product** out, int computed, int scale) {
    living++; *out = new Product{computed, scale, 0, 0, 1, nullptr}; return 0;
}
int cublasLtMatmulDescSetAttribute(Product* p, int attribute, const void* value, size_t size) {
    void* fields[9] = {0, 0, 0, &p->ta, &p->tb, 0, 0, &p->epilogue, &p->bias};
    if (attribute > 8 || !fields[attribute] || size != (attribute == 8 ? 8 : 4)) return 7;
    memcpy(fields[attribute], value, size); return 0;
}
int cublasLtMatmulDescDestroy(Product* p) { living--; delete p; return 0; }
int cublasLtMatrixLayoutCreate(Layout** out, int kind, uint64_t rows, uint64_t columns, int64_t lead) {
    living++; *out = new Layout{kind, rows, columns, lead}; return lead < (int64_t)rows ? 7 : 0;
}
int cublasLtMatrixLayoutDestroy(Layout* l) { living--; delete l; return 0; }
int cublasLtMatmulPreferenceCreate(Preference** out) {
    living++; *out = new Preference{0, 7, {256, 256, 256, 256}}; return 0;
}
int cublasLtMatmulPreferenceSetAttribute(Preference* p, int attribute, const void* value, size_t size) {
    if (attribute == 1 && size == 8) { memcpy(&p->workspace, value, 8); return 0; }
    if (attribute == 3 && size == 4) { memcpy(&p->reductions, value, 4); return 0; }
    if (attribute < 5 || attribute > 8 || size != 4) return 7;
    memcpy(&p->aligned[attribute - 5], value, 4); return 0;
}
int cublasLtMatmulPreferenceDestroy(Preference* p) { living--; delete p; return 0; }
int cublasLtMatmulAlgoGetHeuristic(void* handle, Product* p, Layout*, Layout*, Layout*, Layout*,
                                   Preference* preference, int wanted, Heuristic* out, int* count) {
    queries++;
    if (handle != (void*)7 || wanted != 1 || !p->bias || p->epilogue != 4) return 7;
    *count = refusal == 1 ? 0 : 1;
    if (refusal == 2) return 15;
    out->algorithm[3] = 12345; out->workspace = 64; out->status = 0;
    last[0] = preference->reductions; last[1] = preference->aligned[0]; last[2] = preference->workspace;
    last[3] = p->computed;
    return 0;
}
static double at(const Layout* l, const void* base, uint64_t row, uint64_t column) {
    int64_t i = row + column * l->lead;
    if (l->kind == 0) return ((const float*)base)[i];
    if (l->kind == 2) return (float)((const _Float16*)base)[i];
    uint32_t bits = (uint32_t)((const uint16_t*)base)[i] << 16; float value; memcpy(&value, &bits, 4);
    return value;
}
int cublasLtMatmul(void* handle, Product* p, const float* alpha, const void* a, Layout* la, const void* b,
                   Layout* lb, const float* beta, const void* c, Layout* lc, void* d, Layout* ld,
                   const uint64_t* algorithm, void* workspace, size_t size, void* stream) {
    if (handle != (void*)7 || *alpha != 1 || *beta != 0 || c != d || lc != ld) return 7;
    if (algorithm[3] != 12345 || !workspace || size != 64 || stream != (void*)9) return 7;
    if (refusal == 3) return 13;
    memset(workspace, 1, size);
    Layout line = *ld; line.lead = 1;
    uint64_t terms = p->ta ? la->rows : la->columns;
    for (uint64_t i = 0; i < ld->rows; i++) for (uint64_t j = 0; j < ld->columns; j++) {
        float sum = 0;
        for (uint64_t t = 0; t < terms; t++)
            sum += (p->ta ? at(la, a, t, i) : at(la, a, i, t)) * (p->tb ? at(lb, b, j, t) : at(lb, b, t, j));
        float value = sum + at(&line, p->bias, 0, i);
        int64_t place = i + j * ld->lead;
        if (ld->kind == 0) ((float*)d)[place] = value;
        else if (ld->kind == 2) ((_Float16*)d)[place] = (_Float16)value;
        else {
            uint32_t bits; memcpy(&bits, &value, 4);
            ((uint16_t*)d)[place] = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
        }
    }
    return 0;
}
}
"""


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory):
    if COMPILER is None:
        pytest.skip("no g++ to compile the stand-in with")
    folder = tmp_path_factory.mktemp("cublaslt")
    source, target = folder / "stand_in.cpp", folder / "libcublasLt.so"
    source.write_text(SOURCE)
    options = ["-O1", "-shared", "-fPIC", "-w", str(source), "-o", str(target)]
    done = subprocess.run([COMPILER, *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return ctypes.CDLL(str(target))


class Fused:
    """cuBLAS whose products with a bias go to the stand-in of cuBLASLt."""

    def __init__(self, library):
        self.library = library
        self.held = []

        def memory(size):
            buffer = ctypes.create_string_buffer(size)
            return buffer, ctypes.addressof(buffer)

        self.lt = cublaslt.CublasLt(library, memory, lambda: (0, 9))
        self.blas = fake_cublas.Binding()
        self.cublas = gemm.Cublas(self.blas, fake_cublas.RUNTIME, lambda: 7, self.lt)

    def number(self, name):
        return ctypes.c_int.in_dll(self.library, name)

    @property
    def told(self):
        """Reductions, alignment of the first matrix, workspace, type of the sums at the last query."""
        return list((ctypes.c_int64 * 4).in_dll(self.library, "last"))


@pytest.fixture
def fused(stand_in, monkeypatch):
    found = Fused(stand_in)
    found.number("refusal").value = 0
    monkeypatch.setattr(gemm, "_library", [found.cublas])
    return found


def values(shape, kind, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(kind)


def exact(x, w, b):
    return x.astype(np.float64) @ w.astype(np.float64).T + b.astype(np.float64)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.sampled_from([np.float16, ml_dtypes.bfloat16, np.float32]),
    st.lists(st.integers(1, 4), max_size=3),
    st.integers(1, 9),
    st.integers(1, 9),
    st.booleans(),
    st.booleans(),
)
def test_a_product_with_a_bias_is_one_call(fused, kind, rows, inner, outer, by_columns, gaps):
    x = values((*rows, inner + gaps), kind)[..., :inner]
    w = values((inner, outer), kind, 1).T if by_columns else values((outer, inner), kind, 1)
    b = values(outer, kind, 2)
    found = gemm.linear(x, w, b)
    near = {np.float16: 1e-3, np.float32: 1e-5}.get(kind, 8e-3)
    assert found.dtype == kind
    np.testing.assert_allclose(found.astype(np.float64), exact(x, w, b), rtol=near, atol=near * 5)
    assert not fused.blas.calls


def test_a_request_is_prepared_once_and_told_alignment_reductions_and_type(fused):
    x, w, b = values((4, 8), np.float32), values((3, 8), np.float32, 1), values(3, np.float32, 2)
    before = fused.number("queries").value
    for _ in range(3):
        gemm.linear(x, w, b)
    assert fused.number("queries").value == before + 1
    place = w.__array_interface__["data"][0]
    assert fused.told == [7, min(place & -place, 256), 32 << 20, 68]
    gemm.flags.allow_tf32 = True
    try:
        gemm.linear(x, w, b)
    finally:
        gemm.flags.allow_tf32 = False
    assert fused.told[3] == 77
    gemm.flags.allow_bf16_reduced_precision_reduction = False
    try:
        gemm.linear(*(t.astype(ml_dtypes.bfloat16) for t in (x, w, b)))
    finally:
        gemm.flags.allow_bf16_reduced_precision_reduction = True
    assert fused.told[0] == 3


def test_what_is_prepared_is_given_back(fused, monkeypatch):
    monkeypatch.setattr(cublaslt, "_MOST_KEPT", 2)
    before = fused.number("living").value
    for n in range(1, 8):
        x, w, b = (values(s, np.float32) for s in ((4, n), (3, n), 3))
        np.testing.assert_allclose(gemm.linear(x, w, b), exact(x, w, b), rtol=1e-4, atol=1e-5)
        assert fused.number("living").value - before <= 2 * 4
    fused.number("refusal").value = 1
    fused.lt._forget()
    assert fused.number("living").value == before
    gemm.linear(x, w, b)
    assert fused.number("living").value == before


@pytest.mark.parametrize("refusal", [1, 2, 3])
def test_where_there_is_no_algorithm_the_bias_is_under_the_product(fused, refusal):
    """No algorithm; the question is refused; the product is, which is told."""
    fused.number("refusal").value = refusal
    x, w, b = values((4, 6), np.float32), values((3, 6), np.float32, 1), values(3, np.float32, 2)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(2):
            np.testing.assert_allclose(gemm.linear(x, w, b), exact(x, w, b), rtol=1e-5, atol=1e-5)
    assert len(told) == (refusal == 3)
    assert len(fused.blas.calls) == 2


def test_what_it_does_not_do_is_not_asked(fused):
    x, w, b = values((4, 6), np.float64), values((3, 6), np.float64, 1), values(3, np.float64, 2)
    np.testing.assert_allclose(gemm.linear(x, w, b), exact(x, w, b))
    wide = values((4, 12), np.float32)[:, ::2]  # has to be copied
    w, b = w.astype(np.float32), values(6, np.float32)[::2]
    np.testing.assert_allclose(gemm.linear(wide, w, b), exact(wide, w, b), rtol=1e-5, atol=1e-5)
    assert len(fused.blas.calls) == 2


# ---- the library -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real():
    """NVIDIA's library, which makes descriptors without a driver."""
    nvidia = pytest.importorskip("nvidia", reason="nvidia-cublas is not installed")
    found = [f for p in nvidia.__path__ for f in Path(p).glob("*/lib/libcublasLt.so.*")]
    if not found:
        pytest.skip("nvidia-cublas is not installed")
    return ctypes.CDLL(str(found[0]))


def test_the_real_library_takes_the_descriptors(real):
    lt = cublaslt.CublasLt(real, lambda size: (None, 0), lambda: (0, 0))
    product = lt._made("cublasLtMatmulDescCreate", 68, 0)
    for attribute, value in (
        (cublaslt._TRANSPOSED_A, ctypes.c_int(1)),
        (cublaslt._TRANSPOSED_B, ctypes.c_int(0)),
        (cublaslt._EPILOGUE, ctypes.c_int(cublaslt._WITH_BIAS)),
        (cublaslt._BIAS_POINTER, ctypes.c_void_p(4096)),
    ):
        lt._set(product, attribute, value)
        back, written = type(value)(), ctypes.c_size_t()
        size = ctypes.c_size_t(ctypes.sizeof(back))
        status = real.cublasLtMatmulDescGetAttribute(
            product, attribute, ctypes.byref(back), size, ctypes.byref(written)
        )
        assert (status, back.value, written.value) == (0, value.value, ctypes.sizeof(value))
    preference = lt._made("cublasLtMatmulPreferenceCreate")
    lt._prefer(preference, cublaslt._MOST_WORKSPACE, ctypes.c_uint64(1 << 25))
    lt._prefer(preference, cublaslt._REDUCTIONS, ctypes.c_uint32(3))
    for n in range(4):
        lt._prefer(preference, cublaslt._ALIGNMENT_A + n, ctypes.c_uint32(16))
    layout = lt._made("cublasLtMatrixLayoutCreate", 14, 64, 32, 64)
    with pytest.raises(cublaslt._RefusedError, match="status 7"):
        lt._set(product, cublaslt._EPILOGUE, ctypes.c_uint8(4))
    lt._ask("cublasLtMatrixLayoutDestroy", layout)
    lt._ask("cublasLtMatmulPreferenceDestroy", preference)
    lt._ask("cublasLtMatmulDescDestroy", product)


def test_the_numbers_are_the_headers():
    nvidia = pytest.importorskip("nvidia", reason="nvidia-cublas is not installed")
    headers = [f for p in nvidia.__path__ for f in Path(p).glob("*/include/cublasLt.h")]
    if not headers:
        pytest.skip("nvidia-cublas is not installed")
    text = headers[0].read_text()
    for name, value in {
        "CUBLASLT_MATMUL_DESC_TRANSA": cublaslt._TRANSPOSED_A,
        "CUBLASLT_MATMUL_DESC_TRANSB": cublaslt._TRANSPOSED_B,
        "CUBLASLT_MATMUL_DESC_EPILOGUE": cublaslt._EPILOGUE,
        "CUBLASLT_MATMUL_DESC_BIAS_POINTER": cublaslt._BIAS_POINTER,
        "CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES": cublaslt._MOST_WORKSPACE,
        "CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK": cublaslt._REDUCTIONS,
        "CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES": cublaslt._ALIGNMENT_A,
        "CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES": cublaslt._ALIGNMENT_A + 3,
        "CUBLASLT_EPILOGUE_BIAS": cublaslt._WITH_BIAS,
    }.items():
        assert f"{name} = {value}," in text
    for name, kinds in cublaslt._SIGNATURES.items():
        start = text.index(f"cublasStatus_t CUBLASWINAPI {name}(") + len(name) + 28
        assert len(text[start : text.index(")", start)].split(",")) == len(kinds), name
    assert "uint64_t data[8];\n} cublasLtMatmulAlgo_t;" in text
    assert ctypes.sizeof(cublaslt._Heuristic) == 96


def test_the_library_that_cublas_has_loaded_is_found():
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed (extra cuda13)")
    try:
        assert cupy.cuda.cublas.getVersion
    except ImportError as error:
        pytest.skip(f"no libcublas: {error}")
    assert cublaslt.load(cupy) is not None
    runtime = SimpleNamespace(runtimeGetVersion=lambda: 99000)
    assert cublaslt.load(SimpleNamespace(cuda=SimpleNamespace(runtime=runtime))) is None
