"""Pickles that no `save` writes: opcodes by tables that name what is wrong, or at least unusual, in each."""

import struct

from pickle_pieces import DOUBLED, Raw, call, name, op, storage, tensor, tuple_of

TENSORS = {
    "size beyond": tensor(size=(5,)),
    "stride beyond": tensor(size=(2, 2), stride=(4, 1)),
    "offset beyond": tensor(offset=1),
    "offset negative": tensor(offset=-1, size=(3,)),
    "size negative": tensor(size=(-1,)),
    "stride negative": tensor(offset=3, size=(2,), stride=(-1,)),
    "size huge": tensor(size=(2**62,)),
    "sizes overflow": tensor(size=(2**33, 2**33), stride=(2**33, 1)),
    "expanded beyond an address": tensor(size=(2**61, 2**61), stride=(0, 0)),
    "stride overflows": tensor(size=(2,), stride=(2**62 - 1,)),
    "empty but far": tensor(offset=5, size=(0,)),
    "size of text": tensor(size=("a",)),
    "size of bools": tensor(size=(True,)),
    "size no tuple": tensor(size=4),
    "stride no tuple": tensor(stride=1),
    "size a float": tensor(size=(4.0,)),
    "strides missing": tensor(size=(2, 2), stride=(1,)),
    "too many dimensions": tensor(size=(1,) * 65, stride=(1,) * 65),
    "no storage": tensor(held=Raw(b"N")),
    "a list as storage": tensor(held=Raw(b"]")),
    "integers that require gradients": tensor(
        storage(kind="torch.LongStorage", numel=2), size=(2,), requires_grad=True
    ),
    "negative number of elements": tensor(storage(numel=-4)),
    "more elements than bytes": tensor(storage(numel=5)),
    "fewer elements than bytes": tensor(storage(numel=3), size=(3,)),
    "elements without end": tensor(storage(numel=2**62)),
    "elements of a float": tensor(storage(numel=4.0)),
    "elements of a bool": tensor(storage(numel=True)),
    "no such record": tensor(storage(key="7")),
    "key outside": tensor(storage(key="../data.pkl")),
    "key no text": tensor(storage(key=0)),
    "no storage type": tensor(storage(kind="torch.float32")),
    "a function as storage type": tensor(storage(kind="torch._utils._rebuild_tensor")),
    "one storage of two types": Raw(tensor() + tensor(storage(kind="torch.IntStorage")) + b"\x86"),
    "one storage of two sizes": Raw(tensor() + tensor(storage(numel=8)) + b"\x86"),
    "place no text": tensor(storage(place=3)),
    "place unknown": tensor(storage(place="moon")),
    "place not here": tensor(storage(place="cuda:0")),
    "id a text": Raw(op("storage") + b"Q"),
    "id a number": Raw(op(3) + b"Q"),
    "id of a module": Raw(tuple_of("module", 1, 2, 3) + b"Q"),
    "id too long": Raw(tuple_of("storage", 1, 2, 3, 4, 5, 6) + b"Q"),
    "id of something else": Raw(tuple_of("other", 1, "0", "cpu", 4) + b"Q"),
    "id empty": Raw(b")Q"),
    "parameter of a number": call("torch._utils._rebuild_parameter", 3, True, None),
    "attributes of the engine": call(
        "torch._utils._rebuild_parameter_with_state", tensor(), True, None, {"_array": 3}
    ),
    "attributes without names": call(
        "torch._utils._rebuild_parameter_with_state", tensor(), True, None, {3: 3}
    ),
    "type that is none": call(
        "torch._tensor._rebuild_from_type_v2",
        name("torch._utils._rebuild_tensor"),
        name("builtins.set"),
        (),
        {},
    ),
    "a function that makes no tensor": call(
        "torch._tensor._rebuild_from_type_v2", name("builtins.set"), name("torch.Tensor"), (), {}
    ),
    "itself": call(
        "torch._tensor._rebuild_from_type_v2",
        name("torch._tensor._rebuild_from_type_v2"),
        name("torch.Tensor"),
        (),
        {},
    ),
    "too few arguments": call("torch._utils._rebuild_tensor_v2", 1),
    "a dtype that is none": call(
        "torch._utils._rebuild_tensor_v3", storage(), 0, (1,), (1,), False, None, "float"
    ),
    "a wider dtype": call(
        "torch._utils._rebuild_tensor_v3",
        storage(),
        0,
        (4,),
        (1,),
        False,
        None,
        name("torch.float64"),
    ),
    "a lazy conjugate": call(
        "torch._utils._rebuild_tensor_v2", storage(), 0, (4,), (1,), False, None, {"conj": True}
    ),
}

# Rebuilding of all kinds, most of which loads.
REBUILT = {
    "by an id of Python 2": tensor(
        Raw(b"(U\x07storage" + name("torch.FloatStorage") + b"U\x010U\x03cpuK\x04tQ")
    ),
    "of its storage's type": call("torch._utils._rebuild_tensor", storage(), 0, (4,), (1,)),
    "one that is nobody's": call("torch._utils._rebuild_tensor", None, 0, (4,), (1,)),
    "of another type": call(
        "torch._utils._rebuild_tensor_v3", storage(), 0, (2,), (1,), False, None, name("torch.int64")
    ),
    "no elements": tensor(size=(0, 3), stride=(3, 1)),
    "with metadata": Raw(
        name("torch._utils._rebuild_tensor_v2")
        + tuple_of(storage(), 0, (4,), (1,), False, None, {"conj": False})
        + b"R"
    ),
    "with gradients": tensor(requires_grad=True),
    "parameter": call("torch._utils._rebuild_parameter", tensor(), True, None),
    "parameter with attributes": call(
        "torch._utils._rebuild_parameter_with_state", tensor(), True, None, {"mine": 3}
    ),
    "parameter with slots": call(
        "torch._utils._rebuild_parameter_with_state", tensor(), True, None, ({"mine": 3}, None)
    ),
    "parameter with slots that are held": call(
        "torch._utils._rebuild_parameter_with_state", tensor(), True, None, ({"mine": 3}, {"b": 1})
    ),
    "parameter with three states": call(
        "torch._utils._rebuild_parameter_with_state", tensor(), True, None, (1, 2, 3)
    ),
    "parameter without attributes": call(
        "torch._utils._rebuild_parameter_with_state", tensor(), True, None, None
    ),
    "attributes that are no names": call(
        "torch._utils._rebuild_parameter_with_state", tensor(), True, None, 3
    ),
    "of a class": call(
        "torch._tensor._rebuild_from_type_v2",
        name("torch._utils._rebuild_tensor_v2"),
        name("torch.nn.parameter.Parameter"),
        Raw(tuple_of(storage(), 0, (4,), (1,), True, None)),
        {"mine": 3},
    ),
    "of the class itself": call(
        "torch._tensor._rebuild_from_type_v2",
        name("torch._utils._rebuild_tensor"),
        name("torch.Tensor"),
        Raw(tuple_of(storage(), 0, (4,), (1,))),
        None,
    ),
    "from a device": call(
        "torch._utils._rebuild_device_tensor_from_cpu_tensor",
        tensor(), name("torch.float16"), "cuda:0", True,
    ),
    "from a device, by the device": call(
        "torch._utils._rebuild_device_tensor_from_cpu_tensor",
        tensor(), name("torch.float16"), call("torch.device", "cpu"), False,
    ),
    "from what is no device": call(
        "torch._utils._rebuild_device_tensor_from_cpu_tensor", tensor(), None, "moon", False
    ),
    "from what is no tensor": call(
        "torch._utils._rebuild_device_tensor_from_cpu_tensor", 3, name("torch.int8"), "cpu", False
    ),
    "on another host device": tensor(storage(place="cpu:1")),
    "on a host device that is not there": tensor(storage(place="cpu:7")),
    "on a place that is none": tensor(storage(place="cpu:x")),
}  # fmt: skip

PICKLES = {
    "os.system": call("os.system", "touch /tmp/never"),
    "posix.system": call("posix.system", "x"),
    "sys.exit": call("sys.exit"),
    "os.path": call("os.path.join", "x"),
    "eval": call("builtins.eval", "1"),
    "eval of python 2": call("__builtin__.eval", "1"),
    "getattr": call("builtins.getattr", 1, "real"),
    "import": call("importlib.import_module", "os"),
    "load": call("dptrain.load", "x"),
    "numpy": call("numpy.core.multiarray._reconstruct", name("numpy.ndarray"), (0,), b"b"),
    "a newline in a name": Raw(b"cos\r\nsystem\n"),
    "dotted name": Raw(b"ctorch\nSize.__class__\n"),
    "new object of a class that is allowed to be called": Raw(
        name("collections.OrderedDict") + b")\x81"
    ),
    "new object of a number": Raw(b"K\x01)\x81"),
    "new tensor": Raw(name("torch.Tensor") + b")\x81"),
    "state of a tensor": Raw(tensor() + b"}b"),
    "state of a dict": Raw(b"}" + op({"a": 1}) + b"b"),
    "state of an OrderedDict that is a list": Raw(call("collections.OrderedDict") + b"]b"),
    "call of a dict": Raw(b"})R"),
    "call of a tensor": Raw(tensor() + b")R"),
    "call of a dtype": Raw(name("torch.float32") + b")R"),
    "call with a number": Raw(name("builtins.set") + op(3) + b"R"),
    "append to a tuple": Raw(b")" + op(3) + b"a"),
    "append to a tensor": Raw(tensor() + op(3) + b"a"),
    "item of a list": Raw(op([1]) + op(0) + op(2) + b"s"),
    "item of a tensor": Raw(tensor() + op(0) + op(2) + b"s"),
    "odd items": Raw(b"}(" + op(1) + b"u"),
    "unhashable key": Raw(b"}]" + op(1) + b"s"),
    "unhashable member": call("builtins.set", [[1]]),
    "bytearray of a number": call("builtins.bytearray", 10**12),
    "codec": call("_codecs.encode", "x" * 100, "zip"),
    "codec of no text": call("_codecs.encode", b"x", "latin1"),
    "size of texts": call("torch.Size", ["a"]),
    "device": call("torch.device", "moon"),
    "layout": call("torch.serialization._get_layout", "torch.sparse_coo"),
    "memo that is empty": Raw(b"h\x05"),
    "memo of nothing": Raw(b"q\x05"),
    "mark missing": Raw(b"t"),
    "stack empty": Raw(b"0"),
    "tuple of nothing": Raw(b"\x87"),
    "no opcode": Raw(b"\xff"),
    "text opcode": Raw(b"S'os'\n"),
    "instance opcode": Raw(b"(ios\nsystem\n"),
    "extension opcode": Raw(b"\x82\x01"),
    "text too long": Raw(b"X\xff\xff\xff\xff"),
    "text far too long": Raw(b"\x8d" + b"\xff" * 8),
    "bytes far too long": Raw(b"\x8e" + struct.pack("<Q", 2**40)),
    "negative string": Raw(b"T\xff\xff\xff\xff"),
    "negative long": Raw(b"\x8b\xff\xff\xff\xff"),
    "text that is none": Raw(b"X\x02\x00\x00\x00\xff\xff"),
    "protocol": Raw(b"\x80\xff"),
    "name without end": Raw(b"c" + b"a" * 70000),
}

DEAR = {
    "id": Raw(DOUBLED + b"Q"),
    "id inside": Raw(b"(" + op("storage") + DOUBLED * 4 + b"tQ"),
    "device": call("torch.device", DOUBLED),
    "device of a tensor": call(
        "torch._utils._rebuild_device_tensor_from_cpu_tensor", tensor(), DOUBLED, DOUBLED, False
    ),
    "layout": call("torch.serialization._get_layout", DOUBLED),
    "size": call("torch._utils._rebuild_tensor_v2", storage(), 0, DOUBLED, DOUBLED, False, None),
    "parameter": call("torch._utils._rebuild_parameter", DOUBLED, True, None),
    "state": call("torch._utils._rebuild_parameter_with_state", tensor(), True, None, DOUBLED),
    "called": Raw(DOUBLED + b")R"),
    "built": Raw(DOUBLED + b")b"),
    "a tensor of sizes": call("torch.Tensor", 2**40),
}

PAIR = Raw(tuple_of("a", 1))
CALLS = {
    "OrderedDict of pairs": call("collections.OrderedDict", Raw(b"](" + PAIR + b"e")),
    "OrderedDict of a dict": call("collections.OrderedDict", {"a": 1}),
    "OrderedDict of a number": call("collections.OrderedDict", 3),
    "OrderedDict with attributes": Raw(call("collections.OrderedDict") + op({"a": 1}) + b"b"),
    "Counter": call("collections.Counter", {"a": 1}),
    "Counter of a list": call("collections.Counter", ["a", "a"]),
    "Counter filled": Raw(call("collections.Counter") + op("a") + op(1) + b"s"),
    "set": call("builtins.set", [1, (2, "x")]),
    "set of a dict": call("builtins.set", {"a": 1}),
    "complex": call("builtins.complex", 1.0, 2.0),
    "Size": call("torch.Size", (1, 2)),
    "Size of a number": call("torch.Size", 3),
    "device of two": call("torch.device", "cuda", 1),
    "device of a number": call("torch.device", 1),
    "device of two texts": call("torch.device", "cuda", "1"),
    "layout": call("torch.serialization._get_layout", "torch.strided"),
    "layout of a number": call("torch.serialization._get_layout", 3),
    "encode": call("_codecs.encode", "\xff", "latin1"),
    "encode by default": call("_codecs.encode", "x"),
    "bytearray": call("builtins.bytearray", Raw(b"C\x02ab")),
    "bytearray of a text": call("builtins.bytearray", "\xff", "latin-1"),
    "bytearray of a text without encoding": call("builtins.bytearray", "x"),
    "bytearray of nothing": call("builtins.bytearray"),
    "a large key": Raw(b"}(" + b"N" * 1001 + b"t" + b"Ns"),
    "a wide key": Raw(b"}(" + (b"(" + b"N" * 400 + b"t") * 3 + b"t" + b"Ns"),
    "copies": Raw(
        op("x" * 5000) + b"q\x000" + (name("_codecs.encode") + b"h\x00\x85R0") * 400 + b"N"
    ),
    "a storage of no type here": storage(kind="torch.ComplexFloatStorage"),
    "an object of PyTorch's": name("torch.quint8"),
    "a kind of tensor not here": name("torch._utils._rebuild_sparse_tensor"),
    "a program": name("torch.jit._pickle.build_intlist"),
    "a model": name("torchvision.models.resnet.ResNet"),
    "a module": name("torch.nn.modules.linear.Linear"),
    "a function of PyTorch's": name("torch._utils.other"),
    "a class of PyTorch's": name("torch.Generator"),
    "renamed since Python 2": call("__builtin__.set", [1]),
    "a function renamed since Python 2": name("__builtin__.xrange"),
    "a module renamed since Python 2": name("copy_reg._reconstructor"),
}

OPCODES = {
    "frame": Raw(b"\x95" + bytes(8) + b"N"),
    "stack global": Raw(b"\x8c\x05torch\x8c\x04Size\x93)R"),
    "stack global of a number": Raw(b"\x8c\x05torchK\x01\x93"),
    "stack global of a module that is a number": Raw(b"K\x01\x8c\x05torch\x93"),
    "list": Raw(b"(K\x01K\x02l"),
    "dict": Raw(b"(K\x01K\x02d"),
    "dict of a half": Raw(b"(K\x01d"),
    "set": Raw(b"\x8f(K\x01K\x02\x90"),
    "add to a list": Raw(b"](K\x01\x90"),
    "append": Raw(b"]K\x01a"),
    "extend a tuple": Raw(b")(K\x01e"),
    "tuples": Raw(b"K\x01\x85K\x02K\x03\x86K\x04K\x05K\x06\x87\x87"),
    "numbers": Raw(b"(J\xff\xff\xff\xffK\x01M\x01\x02G" + bytes(8) + b"\x8a\x01\x80\x8b\x01\0\0\0\x01\x8a\0t"),
    "bools": Raw(b"(\x88\x89Nt"),
    "texts": Raw(b"(\x8c\x01aX\x01\0\0\0b\x8d\x01\0\0\0\0\0\0\0ct"),
    "bytes": Raw(b"(C\x01aB\x01\0\0\0b\x8e\x01\0\0\0\0\0\0\0ct"),
    "bytes of Python 2": Raw(b"(U\x01aT\x01\0\0\0bt"),
    "bytes of Python 2 that are no text": Raw(b"U\x02\xff\xff"),
    "bytearray": Raw(b"\x96\x01\0\0\0\0\0\0\0a"),
    "memo": Raw(b"(K\x01q\x01h\x01r\x02\0\0\0j\x02\0\0\0\x94h\x03t"),
    "pop": Raw(b"NN0"),
    "pop the mark": Raw(b"N(0"),
    "pop to the mark": Raw(b"N(NN1"),
    "twice": Raw(b"N2\x86"),
}  # fmt: skip

# Classes that the user allowed.


class Own:
    """A class that the user allowed."""


class OwnWithSlots:
    __slots__ = ("__dict__", "held")


class OwnWithState(dict):
    """What brings its own way to take its state."""

    def __setstate__(self, state):
        self.state = state


OWN_CLASSES = [Own, OwnWithSlots, OwnWithState]


def own(kind, *args):
    return Raw(name(f"{kind.__module__}.{kind.__qualname__}") + tuple_of(*args) + b"\x81")


OBJECTS = {
    "made": own(Own),
    "called": call(f"{__name__}.Own"),
    "made with too much": own(Own, 1),
    "with attributes": Raw(own(Own) + op({"a": 1}) + b"b"),
    "with no attributes": Raw(own(Own) + b"}b"),
    "with slots": Raw(own(OwnWithSlots) + tuple_of({"a": 1}, {"held": 2}) + b"b"),
    "with slots only": Raw(own(OwnWithSlots) + tuple_of(None, {"held": 2}) + b"b"),
    "with slots that are none": Raw(own(OwnWithSlots) + tuple_of(None, {"other": 2}) + b"b"),
    "with three states": Raw(own(Own) + op((1, 2, 3)) + b"b"),
    "with a state that is none": Raw(own(Own) + op(3) + b"b"),
    "with a state of its own": Raw(own(OwnWithState) + op({"a": 1}) + b"b"),
    "with items": Raw(own(OwnWithState) + op("a") + op(1) + b"s"),
    "by name and keyword": Raw(name(f"{__name__}.OwnWithState") + b")}\x92"),
    "by keywords that are none": Raw(name(f"{__name__}.Own") + b")N\x92"),
    "type of a tensor": call(
        "torch._tensor._rebuild_from_type_v2",
        name("torch._utils._rebuild_tensor_v2"),
        name(f"{__name__}.Own"),
        (),
        {},
    ),
}  # fmt: skip
