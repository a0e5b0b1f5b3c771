"""`dptrain.jit` and `dptrain.onnx`: guards and decorators pass, programs are refused."""

import pytest

import dptrain


def _guarded(lib):
    class Net(lib.nn.Module):
        scale: lib.jit.Final[int] = 2

        @lib.jit.ignore
        def one(self, x):
            return x + 1

        @lib.jit.ignore(drop=False)
        def two(self, x):
            return x + 2

        @lib.jit.unused
        def three(self, x):
            return x + 3

        @lib.jit.export
        def four(self, x):
            return x + 4

        def forward(self, x):
            if lib.jit.is_scripting() or lib.jit.is_tracing() or lib.onnx.is_in_onnx_export():
                return x
            found = lib.jit.annotate(list, [f(x) for f in (self.one, self.two, self.three)])
            return sum(found) * self.scale + self.four(x)

    net = Net()
    return net(lib.ones(2)).tolist(), isinstance(net, lib.jit.ScriptModule)


@pytest.mark.oracle
def test_guards_and_decorators_pass_as_in_eager_pytorch():
    torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
    assert _guarded(dptrain) == _guarded(torch)


@pytest.mark.parametrize(
    ("name", "use"),
    [
        ("jit.script", "dptrain.compile"),
        ("jit.trace", "dptrain.compile"),
        ("jit.ScriptModule", "dptrain.compile"),
        ("jit.save", "dptrain.save"),
        ("jit.load", "dptrain.load"),
        ("onnx.export", "dptrain.save"),
    ],
)
def test_programs_are_refused_with_what_to_use(name, use):
    room, _, call = name.partition(".")
    with pytest.raises(NotImplementedError, match=rf"{name}.*{use}"):
        getattr(getattr(dptrain, room), call)(dptrain.nn.Linear(2, 2), "model")
