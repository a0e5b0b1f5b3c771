"""Values that files hold, made with either library."""

import io
from collections import Counter, OrderedDict

import pytest

DTYPES = [
    "float64",
    "float32",
    "float16",
    "bfloat16",
    "uint8",
    "int8",
    "int16",
    "int32",
    "int64",
    "bool",
]


def values(m):
    """One of everything that `weights_only=True` allows, with the names of `m` (torch or dptrain)."""
    t = m.arange(5.0)
    square = m.arange(12).reshape(3, 4)
    return OrderedDict(
        tensor=t,
        view=t[1:3],
        empty=m.zeros(0, 3),
        nothing=m.zeros(0),
        scalar=m.tensor(3.5, dtype=m.float64),
        transposed=square.t(),
        every_second=square[:, ::2],
        expanded=m.ones(1).expand(4, 4),
        channels_last=m.ones(2, 3, 4, 5).contiguous(memory_format=m.channels_last),
        parameter=m.nn.Parameter(m.arange(3.0)),
        frozen=m.nn.Parameter(m.arange(3.0), requires_grad=False),
        buffer=m.nn.Buffer(m.ones(2)),
        leaf=m.ones(2, 3, requires_grad=True),
        dtypes=[m.tensor([0, 1, 1, 100]).to(getattr(m, d)) for d in DTYPES],
        extremes=m.tensor([float("nan"), float("-inf"), -0.0, 5e-324], dtype=m.float64),
        size=m.Size([1, 2]),
        dtype=m.bfloat16,
        device=m.device("cuda", 1),
        layout=m.strided,
        nested={
            "a": [1, (2.5, None, {"b": (True, False, ())})],
            3: "text \u00e9",
            ("k", 1): b"\x00\xff",
        },
        numbers=[
            0,
            -1,
            255,
            256,
            65535,
            65536,
            -(2**31),
            2**31,
            2**70,
            -(2**70),
            1.5,
            float("inf"),
            1j,
        ],
        sets=[{1, 2}, set()],
        bytearray=bytearray(b"abc"),
        counter=Counter("abca"),
        ordered=OrderedDict([("x", 1)]),
    )


def bits(array):
    return array.tobytes()


def torch_bits(t):
    torch = pytest.importorskip("torch", reason="compares with PyTorch")
    return (
        bits(t.detach().contiguous().view(torch.uint8).numpy())
        if t.dim()
        else bits(t.detach().reshape(1).view(torch.uint8).numpy())
    )


def assert_same(ours, theirs, path="value"):
    """One value in both libraries: types, bits, shapes, strides, flags."""
    torch = pytest.importorskip("torch", reason="compares with PyTorch")
    import dptrain

    if isinstance(theirs, torch.Tensor):
        assert isinstance(ours, dptrain.Tensor), path
        assert isinstance(ours, dptrain.nn.Parameter) == isinstance(theirs, torch.nn.Parameter), (
            path
        )
        assert isinstance(ours, dptrain.nn.Buffer) == isinstance(theirs, torch.nn.Buffer), path
        assert str(ours.dtype).split(".")[1] == str(theirs.dtype).split(".")[1], path
        assert tuple(ours.shape) == tuple(theirs.shape), path
        assert ours.stride() == theirs.stride(), path
        assert ours.storage_offset() == theirs.storage_offset() or not theirs.numel(), path
        assert ours.requires_grad == theirs.requires_grad, path
        assert bits(ours._array) == torch_bits(theirs), path
    elif isinstance(theirs, torch.Size):
        assert type(ours) is dptrain.Size, path
        assert tuple(ours) == tuple(theirs), path
    elif isinstance(theirs, (torch.dtype, torch.layout)):
        assert str(ours).split(".")[1] == str(theirs).split(".")[1], path
    elif isinstance(theirs, torch.device):
        assert isinstance(ours, dptrain.device), path
        assert str(ours) == str(theirs), path
    elif isinstance(theirs, dict):
        assert type(ours) is type(theirs), path
        assert list(ours) == list(theirs), path
        for key in theirs:
            assert_same(ours[key], theirs[key], f"{path}[{key!r}]")
    elif isinstance(theirs, (list, tuple)):
        assert type(ours) is type(theirs), path
        assert len(ours) == len(theirs), path
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            assert_same(a, b, f"{path}[{i}]")
    else:
        assert type(ours) is type(theirs), path
        assert ours == theirs, path


@pytest.fixture
def same():
    return assert_same


@pytest.fixture
def everything():
    return values


@pytest.fixture
def written():
    """The bytes that a `save` writes: `written(torch.save, obj, **options)`."""

    def write(save, obj, **options):
        buffer = io.BytesIO()
        save(obj, buffer, **options)
        return buffer.getvalue()

    return write
