"""What code makes a module run as it is, and what code may be left out."""

import time

import numpy as np
import pytest
from replayed import AHEAD
from training import nn

import dptrain
from dptrain.compiler import explain
from dptrain.compiler.plainness import why_not_plain

COUNT = [0]
SEEN = {}
TOTAL = 0


def helper(x):
    COUNT[0] += 1
    return x


class Base(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.calls = 0
        self.log, self.table, self.kept = [], {"x": 0}, set()


class Prints(Base):
    def forward(self, x):
        print("here")
        return self.layer(x)


class Counts(Base):
    def forward(self, x):
        self.calls += 1
        return self.layer(x)


class CountsInAGlobal(Base):
    def forward(self, x):
        global TOTAL
        TOTAL += 1
        return self.layer(x)


class CountsElsewhere(Base):
    def forward(self, x):
        return self.layer(helper(x))


class CountsInAMethod(Base):
    def forward(self, x):
        return self.layer(self.note(x))

    def note(self, x):
        self.table["x"] += 1
        return x


class CountsInAProperty(Base):
    @property
    def width(self):
        self.calls += 1
        return 2

    def forward(self, x):
        return self.layer(x.view(-1, self.width))


class Keeps(Base):
    def forward(self, x):
        self.last = x
        return self.layer(x)


class KeepsInAGlobal(Base):
    def forward(self, x):
        SEEN.update(x=x)
        return self.layer(x)


class KeepsInASet(Base):
    def forward(self, x):
        self.kept.add(x)
        return self.layer(x)


class DrawsOfNumPy(Base):
    def forward(self, x):
        return self.layer(x) * np.random.rand()


class KeepsInACell(Base):
    def __init__(self):
        super().__init__()
        count = 0

        def counted(x):
            nonlocal count
            count += 1
            return count * x

        self.counted = counted

    def forward(self, x):
        return self.counted(self.layer(x))


class ReadsAClock(Base):
    def forward(self, x):
        return self.layer(x) * (1 + 0 * time.time())


class ReadsAValue(Base):
    def forward(self, x):
        return self.layer(x) / x.abs().max().item()


class Imports(Base):
    def forward(self, x):
        import math

        return self.layer(x) * math.pi


class Hooks(Base):
    def forward(self, x):
        h = self.layer(x)
        h.register_hook(lambda g: g * 2)
        return h


class Catches(Base):
    def forward(self, x):
        try:
            return self.layer(x)
        except RuntimeError:
            return x


class CallsItself(Base):
    def __call__(self, x):
        self.calls += 1
        return super().__call__(x)

    def forward(self, x):
        return self.layer(x)


class MakesUp(Base):
    def __getattr__(self, name):
        if name == "magic":
            self.calls += 1
            return 2
        return super().__getattr__(name)

    def forward(self, x):
        return self.magic * self.layer(x)


class Inside(Base):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(Counts(), nn.ReLU())

    def forward(self, x):
        return self.inner(x)


class AClassOfTheUser:
    def __init__(self, x):
        COUNT[0] += 1


class Constructs(Base):
    def forward(self, x):
        AClassOfTheUser(x)
        return self.layer(x)


class Iterates(Base):
    def __iter__(self):
        self.calls += 1
        return iter([self.layer])

    def forward(self, x):
        for layer in self:
            x = layer(x)
        return x


class CallsADefault(Base):
    def forward(self, x, say=print):
        say("here")
        return self.layer(x)


class Truth:
    def __init__(self):
        self.asked = 0

    def __bool__(self):
        self.asked += 1
        return True


class AsksAnObject(Base):
    def __init__(self):
        super().__init__()
        self.truth = Truth()

    def forward(self, x):
        return self.layer(x) if self.truth else x


class HoldsItself(Base):
    def __init__(self):
        super().__init__()
        self.table["table"] = self.table

    def forward(self, x):
        return self.layer(x) * self.table["x"]


class Later(Base):
    async def forward(self, x):
        return self.layer(x)


def of_a_module_named_as_one_of_pythons():
    """A class whose module is `code`, which recordings take for Python's."""
    names = {"__name__": "code.models", "Base": Base}
    text = "class Named(Base):\n    def forward(self, x):\n        return self.layer(x)\n"
    exec(text, names)
    return names["Named"]()


class Subclass(nn.TransformerEncoderLayer):
    """A layer of ours of which a part was replaced."""

    calls = 0

    def _ff_block(self, x):
        type(self).calls += 1
        return super()._ff_block(x)


@pytest.mark.parametrize(
    "kind",
    [
        *(
            Prints,
            Counts,
            CountsInAGlobal,
            CountsElsewhere,
            CountsInAMethod,
            CountsInAProperty,
            Keeps,
        ),
        *(
            KeepsInAGlobal,
            KeepsInASet,
            DrawsOfNumPy,
            KeepsInACell,
            ReadsAClock,
            ReadsAValue,
            Imports,
            Hooks,
            Catches,
            CallsItself,
        ),
        *(MakesUp, Inside, Constructs, Iterates, CallsADefault, AsksAnObject, HoldsItself, Later),
        of_a_module_named_as_one_of_pythons,
    ],
)
def test_code_that_does_more_than_compute(kind):
    assert why_not_plain(kind()) is not None


def test_code_that_does_more_than_compute_runs_every_time(capsys):
    x = dptrain.ones(3, 2)
    for kind in (
        Prints,
        Counts,
        CountsElsewhere,
        Inside,
        CallsItself,
        Constructs,
        Iterates,
        CallsADefault,
    ):
        model = kind()
        COUNT[0] = 0
        for _ in range(AHEAD + 5):
            model(x).sum().backward()
        inner = model.inner[0] if kind is Inside else model
        printed = capsys.readouterr().out.count("here")
        assert inner.calls + COUNT[0] + printed == AHEAD + 5, kind
        assert explain(model).replays == 0


class Plain(Base):
    """What stays within computing: comprehensions, messages of errors, branches on shapes and modes."""

    def forward(self, x, *rest, scale=1.0):
        if x.dim() != 2 or not all(r.shape == x.shape for r in rest):
            raise ValueError(f"expected two dimensions, got {tuple(x.shape)}")
        y = x / np.sqrt(x.size(1)) + 0 * x.detach() / x.numel()
        parts = [layer(y) * scale for layer in (self.layer, self.layer)]
        parts.append(dptrain.sin(x) if self.training else x)
        total = sum(p.mean(dim=1, keepdim=True) for p in parts)
        names = {"a": total, "b": total + 1}
        return dptrain.cat([v for k, v in names.items() if k != "c"], dim=-1)[:, :2] @ self.square(
            x.size(1)
        )

    def square(self, n):
        return dptrain.eye(n) * super().extra_repr().count("x") + dptrain.ones(n, n)


def test_code_that_computes_only():
    assert why_not_plain(Plain()) is None
    model, x = Plain(), dptrain.ones(3, 2)
    for _ in range(AHEAD + 1):
        model(x, x, scale=2.0).sum().backward()
    assert explain(model).replays == 1
    with pytest.raises(ValueError, match="two dimensions"):
        model(x, dptrain.ones(1))


def test_a_part_of_a_layer_that_was_replaced_is_read():
    assert why_not_plain(nn.TransformerEncoderLayer(4, 2, 8)) is None
    assert why_not_plain(Subclass(4, 2, 8)) is not None
