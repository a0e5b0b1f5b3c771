"""Every public name of `torch` and `torch.Tensor` is either here or left out for a reason that is written down."""

import re

import pytest

import dptrain

#: Pattern of whole names -> why dptrain does not have them.
OUT_OF_SCOPE = {
    # Element types and storages that dptrain does not have.
    r"complex.*|c(half|float|double)|polar|angle|imag|view_as_(real|complex)(_copy)?|__complex__": "complex numbers",
    r"(bits|u?int|float)\d.*|bit|hash_tensor": "element types outside of training",
    r".*sparse.*|c?(row|col)_indices(_copy)?|(ccol|crow)_indices(_copy)?|indices(_copy)?|values(_copy)?|coalesce"
    r"|is_coalesced|(hs|hsp|s|sp|sadd|ssp|sspadd|ds)m?mm?|dense_dim|to_dense|saddmm|hspmm|hsmm|smm|spmm|dsmm": "sparse tensors",
    r"(?!(nan)?quantile).*quant.*|q_.*|q(u?int).*|quint.*|qscheme|per_(channel|tensor)_.*|int_repr|fbgemm_.*": "quantised tensors",
    r"nested|jagged|to_padded_tensor|masked": "nested and masked tensors",
    r"\w*Storage\w*|storage|storage_type|from_file": "storages are seen through tensors",
    # Other machines than the host.
    r".*cudnn.*|.*miopen.*|.*mkldnn.*|mps|xpu|ipu|mtia|.*cuda.*|cpu|accelerator|record_stream|Stream|Event"
    r"|get_device_module|is_vulkan_available|(get|set|is)_autocast_(ipu|xla)\w*|OutOfMemoryError|AcceleratorError|__cuda_array_interface__": "accelerators",
    # Other ways to run a program.
    r"jit|onnx|compile|compiler|export|fx|package|fork|wait|futures|Future|functional|cond|while_loop|library"
    r"|ops|classes|_?[a-z_]*ir_module.*|parse_(ir|schema|type_comment)|merge_type_from_type_comment|unify_type_list"
    r"|sym_.*|Sym\w+|Script\w+|\w*Type|overrides|monitor|get_file_path|import_ir.*|CompilationUnit|Graph\w*"
    r"|__torch_(function|dispatch)__|__dlpack_c_exchange_api__|(Dis|En)able\w+": "compilers and graph capture",
    r"[A-Z]\w*": "classes of PyTorch's own runtime",
    r"multiprocessing|prepare_multiprocessing_environment|ao|hub|thread_safe_generator|cpp|classproperty": "PyTorch's build and tools",
    r"has_\w+|compiled_with_cxx11_abi|init_num_threads|torch_version|types|USE_\w+|is_distributed": "PyTorch's build and tools",
    r"builtins|ctypes|functools|glob|importlib|inspect|math|os|platform|sys|textwrap|threading|torch|warnings": "modules that PyTorch imports",
    r"fft|stft|istft|signal|windows|quasirandom": "signals",
    r"testing|is_anomaly_check_nan_enabled|set_anomaly_enabled": "found in their own rooms, or internal",
    # Functions that PyTorch's layers call and does not document, under signatures of their own.
    r"batch_norm_.*|native_(batch|group|layer)_norm|native_norm|native_dropout|embedding_.*|miopen_ctc_loss|gru(_cell)?"
    r"|lstm(_cell)?|rnn_\w+|norm_except_dim|frobenius_norm|nuclear_norm|segment_reduce"
    r"|choose_\w*|legacy_contiguous_format|slice_(copy|inverse)|alias_copy|resize_as_sparse_": "internal twins of nn.functional",
    # Old names that raise or are deprecated in PyTorch itself.
    r"eig|lstsq|matrix_rank|solve|symeig|index|reinforce|to_dlpack": "deprecated for torch.linalg",
    # Mathematics beyond what training asks for.
    r"lobpcg|histogramdd|binomial": "factorisations and statistics",
}
_REASONS = re.compile("|".join(f"(?:{p})" for p in OUT_OF_SCOPE))


def decided(name, place):
    return hasattr(place, name) or _REASONS.fullmatch(name) is not None


@pytest.mark.oracle
def test_every_function_of_torch_is_decided():
    torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
    names = [n for n in dir(torch) if not n.startswith("_")]
    assert [n for n in names if not decided(n, dptrain)] == []


@pytest.mark.oracle
def test_every_member_of_tensor_is_decided():
    torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
    special = {
        "__array_wrap__",
        "__delitem__",
        "__setstate__",
    }  # PyTorch raises, or pickles otherwise
    names = [
        n
        for n in dir(torch.Tensor)
        if n not in special and (not n.startswith("_") or n.startswith("__"))
    ]
    assert [n for n in names if not decided(n, dptrain.Tensor)] == []


@pytest.mark.oracle
@pytest.mark.parametrize("room", ["linalg", "random", "backends"])
def test_rooms_have_no_name_that_pytorch_lacks(room):
    torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
    place = getattr(dptrain, room)
    theirs = getattr(torch, room)
    assert [n for n in getattr(place, "__all__", []) if not hasattr(theirs, n)] == []


#: Reasons whose patterns are so wide that built names match them too.
WIDE = {
    "complex numbers",
    "element types outside of training",
    "sparse tensors",
    "quantised tensors",
    "storages are seen through tensors",
    "accelerators",
    "compilers and graph capture",
    "classes of PyTorch's own runtime",
    "PyTorch's build and tools",
}


@pytest.mark.oracle
def test_what_is_built_is_not_listed_as_left_out():
    torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
    pattern = re.compile(
        "|".join(f"(?:{p})" for p, reason in OUT_OF_SCOPE.items() if reason not in WIDE)
    )
    pairs = ((torch, dptrain), (torch.Tensor, dptrain.Tensor))
    built = {n for theirs, ours in pairs for n in dir(theirs) if hasattr(ours, n)}
    assert {n for n in built if pattern.fullmatch(n)} == set()
