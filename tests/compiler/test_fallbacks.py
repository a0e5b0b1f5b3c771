"""What cannot be replayed is found while it is recorded: right numbers, and a reason."""

import itertools
import random
import threading
import time

import numpy as np
import pytest
from training import F, batches, classes, classifier_step, nn, normal

import dptrain

X, Y = batches(1, normal(5, 6), classes(3, 5))[0]
kept: list = []
counter = itertools.count()


def branches(x):
    return x * 2 if (x * 3).sum() > 0 else x - 1


def reads(x):
    return x * x.mean().item()


def to_numpy(x):
    return x + float(np.sum((x * 2).numpy()))


def shapes_by_value(x):
    return x[x > 0].sum()


def keeps(x):
    kept.append(x * 2)
    return kept[-1] + 1


def prints(x):
    return x + len(repr(x + 1))


def draws(x):
    return x * random.random()


def counts(x):
    return x * next(counter)


def looks_at_the_clock(x):
    return x * time.perf_counter()


def changes_its_argument(x):
    return x.add_(1)


def returns_a_view(x):
    return x[1:]


class Doubling(dptrain.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * x.sum().item()

    @staticmethod
    def backward(ctx, grad):
        return grad


def own_function(x):
    return Doubling.apply(x)


UNSAFE = {
    reads: "a value was read|values were read",
    to_numpy: "values were read|memory was handed out",
    shapes_by_value: "depends on values",
    keeps: "kept outside",
    prints: "printed|values were read",
    counts: "differ",
    looks_at_the_clock: "differ",
    changes_its_argument: "changes an argument in place",
    returns_a_view: "returns a view",
    own_function: "a value was read|values were read",
}


def _compare(compiled, function):
    for i in range(5):
        x, y = (X + i).clone(), (X + i).clone()
        found = compiled(x)
        if function not in (counts, looks_at_the_clock):
            assert found.numpy().tobytes() == function(y).numpy().tobytes()
            assert x.numpy().tobytes() == y.numpy().tobytes()


@pytest.mark.parametrize("function", UNSAFE, ids=lambda f: f.__name__)
def test_reasons(function):
    compiled = dptrain.compile(function)
    with pytest.warns(UserWarning, match=UNSAFE[function]):
        _compare(compiled, function)
    report = dptrain.compiler.explain(compiled)
    assert report.replays == 0
    assert str(report).count("not replayed") == len(report.reasons) > 0
    kept.clear()


@pytest.mark.parametrize("function", [reads, keeps, changes_its_argument])
def test_fullgraph_makes_them_errors(function):
    compiled = dptrain.compile(function, fullgraph=True)
    compiled(X.clone())
    with pytest.raises(dptrain.compiler.Unsupported):
        list(map(compiled, [X.clone(), X.clone(), X.clone()]))
    kept.clear()


def test_numbers_of_python_are_drawn_at_each_call():
    compiled = dptrain.compile(draws)
    with pytest.warns(UserWarning, match="differ"):
        found = [compiled(X).numpy().tobytes() for _ in range(6)]
    assert len(set(found)) == 6


def test_decisions_by_arguments_are_checked_before_each_replay():
    compiled = dptrain.compile(branches)
    for sign in (1, 1, 1, 1, -1, -1, -1, -1, 1, -1, 1):
        x = X.abs() * sign
        assert compiled(x).numpy().tobytes() == branches(x).numpy().tobytes()
    report = dptrain.compiler.explain(compiled)
    assert report.recordings == 2
    assert report.replays == 6


def test_decisions_by_what_the_step_changes():
    def make():
        model = nn.Linear(6, 3)
        optimizer = dptrain.optim.SGD(model.parameters(), lr=0.1)

        def step(x, y):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            if loss > 1.0:
                optimizer.step()
            return loss

        return step

    dptrain.manual_seed(0)
    plain = make()
    dptrain.manual_seed(0)
    compiled = dptrain.compile(make())
    with pytest.warns(UserWarning, match="decides by a value"):
        assert [compiled(X, Y).item() for _ in range(8)] == [plain(X, Y).item() for _ in range(8)]


def test_errors_of_use_are_those_of_the_plain_call():
    model = nn.Linear(6, 3)
    step = dptrain.compile(classifier_step(model, dptrain.optim.SGD(model.parameters(), lr=0.1)))
    for _ in range(4):
        step(X, Y)
    with pytest.raises(IndexError, match="Target 7 is out of bounds"):
        step(X, dptrain.tensor([0, 1, 7, 0, 0]))
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        step(X[:, :3], Y)
    before = step(X, Y).item()
    assert step(X, Y).item() < before

    table = nn.Embedding(4, 2)
    look = dptrain.compile(lambda i: table(i).sum())
    with dptrain.no_grad():
        for _ in range(4):
            look(dptrain.tensor([0, 3]))
        with pytest.raises(IndexError, match="index 4"):
            look(dptrain.tensor([0, 4]))


def test_an_exception_in_the_recorded_call_leaves_tensors_as_they_are():
    weight = dptrain.ones(6, requires_grad=True)
    fails = {"now": False}

    def function(x):
        made = x * weight
        kept.append(made)
        if fails["now"]:
            raise KeyError("stop")
        kept.clear()
        return made.sum()

    compiled = dptrain.compile(function)
    with dptrain.no_grad():
        compiled(X)
        fails["now"] = True
        with pytest.raises(KeyError, match="stop"):
            compiled(X)
        fails["now"] = False
        assert type(weight._array) is type(X._array) is type(kept[0]._array) is np.ndarray
        kept.clear()
        for _ in range(4):
            assert compiled(X).item() == function(X).item()


def test_state_that_a_module_keeps_between_calls():
    class Remembers(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("total", dptrain.zeros(6))
            self.last = None
            self.calls = 0

        def forward(self, x):
            self.total.add_(x.sum(0))
            return self.total * 1

    class Counts(Remembers):
        def forward(self, x):
            self.calls += 1
            return x * self.calls

    class Keeps(Remembers):
        def forward(self, x):
            before = x if self.last is None else self.last
            self.last = x * 2
            return before + x

    for kind, warns in (
        (Remembers, None),
        (Counts, "changes a plain value"),
        (Keeps, "kept outside"),
    ):
        plain, module = kind(), kind()
        compiled = dptrain.compile(module)
        data = [X + i for i in range(40)]
        if warns is None:
            found = [compiled(x).numpy().tobytes() for x in data]
        else:
            with pytest.warns(UserWarning, match=warns):
                found = [compiled(x).numpy().tobytes() for x in data]
        assert found == [plain(x).numpy().tobytes() for x in data]
        assert module.calls == plain.calls


def test_distributed_data_parallel_runs_as_it_is():
    from dptrain.comm.serial import SerialCommunicator
    from dptrain.nn.parallel import DistributedDataParallel

    model = DistributedDataParallel(nn.Linear(6, 3), process_group=SerialCommunicator())
    optimizer = dptrain.optim.SGD(model.parameters(), lr=0.1)
    step = dptrain.compile(classifier_step(model, optimizer))
    with pytest.warns(UserWarning, match="communication is not recorded"):
        losses = [step(X, Y).item() for _ in range(5)]
    assert losses == sorted(losses, reverse=True)


def _outputs_and_gradients(function, model, evaluates):
    dptrain.manual_seed(0)
    made = []
    for _ in range(6):
        with dptrain.enable_grad():
            model.train()
            out = function(X)
            assert model.training is not evaluates
            made.append(out.detach().numpy().tobytes())
            if out.requires_grad:
                model.zero_grad()
                out.sum().backward()
                made.append(model[0].weight.grad.numpy().tobytes())
            del out
    return made


def test_side_effects_that_others_would_miss():
    model = nn.Sequential(nn.Linear(6, 3), nn.Dropout(0.5))

    def evaluates(x):
        model.eval()
        return model(x)

    def seeds(x):
        dptrain.manual_seed(1)
        return F.dropout(x, 0.5)

    def switches(x):
        dptrain.set_grad_enabled(False)
        return x * 2

    def checkpoints(x):
        weight = model[0].weight
        run = dptrain.utils.checkpoint.checkpoint
        return run(lambda v: F.dropout(v @ weight.T, 0.5), x, use_reentrant=False)

    for function, reason in (
        (evaluates, "changes a plain value"),
        (seeds, "seeds"),
        (switches, "changes a mode"),
        (checkpoints, "random generator|differ|kept outside|watched|several"),
    ):
        compiled = dptrain.compile(function)
        plain = _outputs_and_gradients(function, model, function is evaluates)
        with pytest.warns(UserWarning, match=reason):
            found = _outputs_and_gradients(compiled, model, function is evaluates)
        assert found == plain


def test_several_threads():
    weight = dptrain.ones(6)
    compiled = dptrain.compile(lambda x: (x * weight).softmax(-1))
    expected = [(X + i).softmax(-1).numpy().tobytes() for i in range(4)]
    wrong = []

    def work(i):
        for _ in range(50):
            if compiled(X + i).numpy().tobytes() != expected[i]:
                wrong.append(i)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_tensors_out_of_reach():
    holder = iter([dptrain.ones(6)] * 100)
    compiled = dptrain.compile(lambda x: x + next(holder))
    with pytest.warns(UserWarning, match="made before the call|differ"):
        found = [compiled(X).numpy().tobytes() for _ in range(5)]
    assert found == [(X + 1).numpy().tobytes()] * 5


def test_disabled_functions_and_compiling():
    seen = []

    @dptrain.compiler.disable
    def outside(x):
        seen.append(dptrain.compiler.is_compiling())
        return x + 1

    compiled = dptrain.compile(lambda x: outside(x) * 2)
    with pytest.warns(UserWarning, match="disabled"):
        list(map(compiled, [X] * 5))
    assert len(seen) == 5
    assert seen[1] is True
    assert seen[4] is False


def test_anomaly_detection():
    compiled = dptrain.compile(lambda x: x * 2)
    for _ in range(4):
        compiled(X)
    with dptrain.autograd.detect_anomaly(), pytest.warns(UserWarning, match="anomaly"):
        compiled(X)
