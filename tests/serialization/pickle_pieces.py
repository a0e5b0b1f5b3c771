"""Opcodes of pickles, put together by hand."""

import pickle


def op(value):
    """The opcodes that push a plain value."""
    return pickle.dumps(value, 2)[2:-1]


class Raw(bytes):
    """Opcodes that are to stay as they are."""


def tuple_of(*items):
    return b"(" + b"".join(i if isinstance(i, Raw) else op(i) for i in items) + b"t"


def name(text):
    module, _, last = text.rpartition(".")
    return Raw(f"c{module}\n{last}\n".encode())


def call(text, *args):
    return Raw(name(text) + tuple_of(*args) + b"R")


def storage(key="0", numel=4, kind="torch.FloatStorage", place="cpu"):
    return Raw(tuple_of("storage", name(kind), key, place, numel) + b"Q")


def tensor(held=None, offset=0, size=(4,), stride=(1,), requires_grad=False):
    held = storage() if held is None else held
    return call("torch._utils._rebuild_tensor_v2", held, offset, size, stride, requires_grad, None)


def whole(*opcodes):
    return b"\x80\x02" + b"".join(opcodes) + b"."


#: A tuple of itself twice, sixty times over.
DOUBLED = Raw(b")" + b"q\x00h\x00\x86" * 60)
