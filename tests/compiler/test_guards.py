"""What a recording depends on: changed between calls, it must not be used; each has a test that changes it."""

import importlib
import sys

import numpy as np
import pytest
from training import F, batches, classes, classifier_step, nn, normal

import dptrain

X, Y = batches(1, normal(5, 6), classes(3, 5))[0]


def twins(build, changes, calls=4, arguments=(X, Y)):
    """Run plain and compiled steps, with `changes(model, optimizer, step)` made before some calls.

    Args:
        build: returns (model, optimizer, step).
        changes: by number of the call, what to do before it.
        calls: before the first change, and after the last.
        arguments: of the step.

    Returns:
        The compiled step.
    """
    histories = []
    for compiled in (False, True):
        dptrain.manual_seed(0)
        model, optimizer, step = build()
        step = dptrain.compile(step) if compiled else step
        history = []
        for i in range(2 * calls + len(changes)):
            if calls <= i < calls + len(changes):
                changes[i - calls](model, optimizer)
            history.append(step(*arguments).detach().numpy().tobytes())
        history += [v.detach().numpy().tobytes() for v in model.state_dict().values()]
        history += [
            None if p.grad is None else p.grad.numpy().tobytes() for p in model.parameters()
        ]
        histories.append(history)
    assert histories[0] == histories[1]
    return step


def build(**options):
    model = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.BatchNorm1d(8), nn.Linear(8, 3))
    optimizer = dptrain.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, **options)
    return model, optimizer, classifier_step(model, optimizer)


def rate(lr):
    def change(model, optimizer):
        optimizer.param_groups[0]["lr"] = lr

    return change


def replace_data(model, optimizer):
    model[0].weight.data = dptrain.ones(8, 6)


def replace_parameter(model, optimizer):
    model[3].bias = nn.Parameter(dptrain.ones(3))


def load(model, optimizer):
    halves = {k: v / 2 if v.is_floating_point() else v for k, v in model.state_dict().items()}
    model.load_state_dict(halves)


def in_place(model, optimizer):
    with dptrain.no_grad():
        model[0].weight.mul_(0.5)


def add_layer(model, optimizer):
    model.append(nn.Tanh())


CHANGES = {
    "learning rate": [rate(0.01)],
    "eval": [lambda m, o: m.eval()],
    "eval and train": [lambda m, o: m.eval(), lambda m, o: m.train()],
    "one layer's mode": [lambda m, o: m[1].eval()],
    "probability of dropout": [lambda m, o: setattr(m[1], "p", 0.1)],
    "momentum of batch norm": [lambda m, o: setattr(m[2], "momentum", 0.5)],
    "frozen": [lambda m, o: m[0].weight.requires_grad_(False)],
    "frozen and thawed": [
        lambda m, o: m[0].requires_grad_(False),
        lambda m, o: m[0].requires_grad_(True),
    ],
    "data": [replace_data],
    "parameter": [replace_parameter],
    "state": [load],
    "values": [in_place],
    "a layer more": [add_layer],
    "a layer instead": [lambda m, o: m.__setitem__(1, nn.ReLU())],
    "seed": [lambda m, o: dptrain.manual_seed(3)],
    "gradients": [lambda m, o: o.zero_grad()],
    "gradients in place": [lambda m, o: o.zero_grad(set_to_none=False)],
    "double": [lambda m, o: dptrain.rand(2)],
}


@pytest.mark.parametrize("name", CHANGES)
def test_changes_of_a_model(name):
    step = twins(build, CHANGES[name])
    assert dptrain.compiler.explain(step).replays > 1


def test_a_hook_is_called():
    def calls(compiled):
        model, _, step = build()
        step = dptrain.compile(step) if compiled else step
        seen = []
        for i in range(7):
            if i == 4:
                model[0].register_forward_hook(lambda *a: seen.append(1))
            if i == 5:
                model[0].weight.register_hook(lambda g: seen.append(2))
            if compiled and i == 4:
                with pytest.warns(UserWarning, match="has hooks"):
                    step(X, Y)
            else:
                step(X, Y)
        return seen

    assert calls(True) == calls(False)


def same(function, *changes, calls=4):
    """A function of X, plain and compiled, before and after each change."""
    compiled = dptrain.compile(function)
    for change in (lambda: None, *changes):
        change()
        for _ in range(calls):
            assert compiled(X).numpy().tobytes() == function(X).numpy().tobytes()
    return dptrain.compiler.explain(compiled)


FACTOR = 2.0
TABLE = dptrain.ones(6)


def test_global_numbers_and_tensors():
    def function(x):
        return x * FACTOR + TABLE

    def number():
        global FACTOR
        FACTOR = 3.0

    def other():
        global TABLE
        TABLE = dptrain.full((6,), 4.0)

    report = same(function, number, other, lambda: TABLE.mul_(2))
    assert report.recordings == 3
    assert report.replays > 8


def test_closures():
    factor, table = 2.0, dptrain.ones(6)

    def function(x):
        return x * factor + table

    def number():
        nonlocal factor
        factor = -1.0

    def other():
        nonlocal table
        table = dptrain.zeros(6)

    assert same(function, number, other).recordings == 3


def test_attributes_and_containers():
    class Scale:
        share = 0.5

        def __init__(self):
            self.by = [1.0, {"table": dptrain.ones(6)}]

        def __call__(self, x):
            return x * self.by[0] * self.share + self.by[1]["table"]

    scale = Scale()
    report = same(
        scale,
        lambda: scale.by.__setitem__(0, 5.0),
        lambda: scale.by[1].update(table=dptrain.zeros(6)),
        lambda: setattr(Scale, "share", 0.25),
        lambda: setattr(scale, "share", 0.125),
    )
    assert report.recordings == 5


def test_arguments_of_other_kinds():
    function = dptrain.compile(lambda x, how, by: x.sum(how) * by[0])

    def plain(x, how, by):
        return x.sum(how) * by[0]

    for how, by in ((0, [2.0]), (1, [2.0]), (1, [3.0]), (0, (2.0,))):
        for _ in range(4):
            assert function(X, how, by).numpy().tobytes() == plain(X, how, by).numpy().tobytes()
    assert dptrain.compiler.explain(function).recordings == 4


@pytest.mark.parametrize(
    "other",
    [
        dptrain.ones(4, 6),
        dptrain.ones(5, 6, dtype=dptrain.float64),
        dptrain.ones(6, 5).T,
        dptrain.ones(5, 12)[:, ::2],
        dptrain.ones(5, 1).expand(5, 6),
    ],
    ids=["shape", "dtype", "transposed", "strided", "expanded"],
)
def test_tensors_of_another_form(other):
    def function(x):
        return (x.softmax(-1) + x).sum(0)

    compiled = dptrain.compile(function)
    for x in [X] * 5 + [other] * 5 + [X] * 2:
        assert compiled(x).numpy().tobytes() == function(x).numpy().tobytes()
    assert dptrain.compiler.explain(compiled).recordings == 2


def test_grad_mode_autocast_threads_and_default_dtype():
    weight = dptrain.ones(6, 2, requires_grad=True)

    def function(x):
        return (x @ weight) * dptrain.tensor(2.0)

    compiled = dptrain.compile(function)
    contexts = [
        dptrain.enable_grad(),
        dptrain.no_grad(),
        dptrain.autocast("cpu", dptrain.bfloat16),
        dptrain.inference_mode(),
    ]
    for context in contexts:
        for _ in range(5):
            with context:
                mine, plain = compiled(X), function(X)
            assert mine.requires_grad == plain.requires_grad
            assert mine.dtype is plain.dtype
            assert (
                mine.detach().float().numpy().tobytes() == plain.detach().float().numpy().tobytes()
            )
            del mine, plain


def test_an_argument_that_is_a_parameter_or_given_twice():
    weight = dptrain.ones(5, 6, requires_grad=True)

    def function(x, y):
        return x * y

    compiled = dptrain.compile(function)
    with dptrain.no_grad():
        for x, y in [(X, X)] * 5 + [(X, weight)] * 5 + [(weight, weight)] * 5 + [(X, X + 1)] * 4:
            assert compiled(x, y).numpy().tobytes() == function(x, y).numpy().tobytes()


def test_an_argument_that_looks_into_what_the_step_changes():
    def make():
        model = nn.Linear(6, 6)
        optimizer = dptrain.optim.SGD(model.parameters(), lr=0.1)

        def step(x):
            optimizer.zero_grad()
            loss = model(x).square().sum()
            loss.backward()
            optimizer.step()
            return (x * 1).sum()

        return model, step

    results = []
    for compiled in (False, True):
        dptrain.manual_seed(0)
        model, step = make()
        step = dptrain.compile(step) if compiled else step
        results.append([step(x).item() for x in [X] * 4 + [model.weight.data] * 3])
    assert results[0] == results[1]


def test_too_many_recordings_end_in_plain_calls():
    state = {"n": 0}

    def function(x):
        return x + state["n"]

    compiled = dptrain.compile(function)

    def both(n):
        state["n"] = n // 3
        return compiled(X).numpy().tobytes(), function(X).numpy().tobytes()

    with pytest.warns(UserWarning, match="has changed more than"):
        pairs = [both(n) for n in range(40)]
    assert all(mine == plain for mine, plain in pairs)


def test_a_generator_of_another_context():
    def function(x):
        return F.dropout(x, 0.5)

    compiled = dptrain.compile(function)
    own = dptrain.Generator().manual_seed(5)
    from dptrain.core.random import use_generator

    def draw(f):
        dptrain.manual_seed(0)
        own.manual_seed(5)
        made = [f(X).numpy().tobytes() for _ in range(4)]
        with use_generator(own):
            made += [f(X).numpy().tobytes() for _ in range(5)]
        return [*made, f(X).numpy().tobytes()]

    assert draw(compiled) == draw(function)
    assert np.isfinite(compiled(X).numpy()).all()


def test_a_module_that_bears_the_name_of_one_of_pythons(tmp_path, monkeypatch):
    name = "antigravity"  # nobody has imported Python's
    assert name in sys.stdlib_module_names
    assert name not in sys.modules
    (tmp_path / f"{name}.py").write_text(
        "FACTOR = 2.0\n\n\ndef scaled(x):\n    return x * FACTOR\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    ours = importlib.import_module(name)
    try:
        called = dptrain.compile(ours.scaled)
        assert [called(dptrain.ones(1)).item() for _ in range(5)] == [2] * 5
        assert dptrain.compiler.explain(called).replays == 2
        ours.FACTOR = 3.0
        assert called(dptrain.ones(1)).item() == 3
    finally:
        del sys.modules[name]
