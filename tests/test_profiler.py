"""`dptrain.profiler`: what operations take, by the names and in the steps of PyTorch's."""

import gzip
import json

import pytest

import dptrain
from dptrain.autograd import profiler as autograd_profiler
from dptrain.core.capturing import recorders
from dptrain.profiler import (
    ProfilerAction,
    ProfilerActivity,
    profile,
    record_function,
    schedule,
    tensorboard_trace_handler,
)


def _oracle():
    return pytest.importorskip("torch", reason="extra `oracle` is not installed")


def _counts(lib):
    x = lib.ones(2, 3, requires_grad=True)
    w = lib.ones(2, 3)

    @lib.profiler.record_function("decorated")
    def scaled(y):
        return y.mul(w)

    class Twice(lib.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x + x

        @staticmethod
        def backward(ctx, grad):
            return grad + grad

    with lib.profiler.profile(record_shapes=True) as prof:
        with lib.profiler.record_function("mine"):
            y = scaled(x).exp() @ w.t()
        z = Twice.apply(y)
        scaled(w)
        z.sum().backward()
    averages = prof.key_averages()
    counts = {event.key: event.count for event in averages}
    shapes = {event.key: event.input_shapes for event in prof.events()}
    return counts, shapes


@pytest.mark.oracle
def test_operations_nodes_and_labels_are_counted_as_in_pytorch():
    torch = _oracle()
    (ours, our_shapes), (theirs, their_shapes) = _counts(dptrain), _counts(torch)
    names = ["mine", "decorated", "aten::exp", "aten::sum", "aten::matmul", "Twice"]
    names += ["SumBackward0", "TwiceBackward", "ExpBackward0", "MulBackward0"]
    names += ["torch::autograd::AccumulateGrad"]
    names += [f"autograd::engine::evaluate_function: {n}" for n in names[-5:]]
    assert [ours[n] for n in names] == [theirs[n] for n in names]
    for name in ("aten::exp", "aten::matmul", "mine"):
        assert our_shapes[name] == their_shapes[name]


def test_events_nest_and_their_times_add_up():
    x = dptrain.ones(64, 64, requires_grad=True)
    with profile() as prof:
        with record_function("outer"):
            with record_function("inner"):
                (x @ x).sum().backward()
            x.exp()
        x.sin()
    events = {event.name: event for event in prof.events()}
    outer, inner = events["outer"], events["inner"]
    assert inner.cpu_parent is outer
    assert events["aten::exp"].cpu_parent is outer
    assert events["aten::sin"].cpu_parent is None
    assert events["SumBackward0"].cpu_parent.cpu_parent is inner
    for event in prof.events():
        for child in event.cpu_children:
            assert event.time_range.start <= child.time_range.start
            assert child.time_range.end <= event.time_range.end
        assert event.self_cpu_time_total >= 0
    top = sum(e.cpu_time_total for e in prof.events() if e.cpu_parent is None)
    averages = prof.key_averages()
    assert averages.self_cpu_time_total == pytest.approx(top)
    assert averages.total_average().count == len(prof.events())


def test_results_are_the_same_under_a_profile_and_nothing_stays_behind():
    grads = []
    for on in (False, True, False):
        dptrain.manual_seed(0)
        net = dptrain.nn.Sequential(
            dptrain.nn.Conv2d(3, 4, 3),
            dptrain.nn.BatchNorm2d(4),
            dptrain.nn.ReLU(),
            dptrain.nn.Flatten(),
            dptrain.nn.Linear(144, 3),
        )
        with autograd_profiler.profile(enabled=on) as prof:
            loss = net(dptrain.randn(2, 3, 8, 8)).square().mean()
            loss.backward()
            dptrain.optim.SGD(net.parameters(), lr=0.1).step()
        grads.append([p.flatten().tolist() for p in net.parameters()])
        if prof is not None:
            keys = {event.key for event in prof.key_averages()}
            assert {
                "aten::convolution",
                "aten::linear",
                "aten::relu",
                "Optimizer.step#SGD.step",
            } <= keys
            assert len(prof.function_events) > 10
    assert grads[0] == grads[2]
    for a, b in zip(grads[0], grads[1], strict=True):
        assert a == pytest.approx(b, rel=1e-5, abs=1e-7)
    assert not recorders


@pytest.mark.oracle
@pytest.mark.parametrize(
    "options",
    [
        {"wait": 1, "warmup": 1, "active": 2},
        {"wait": 0, "warmup": 1, "active": 2, "repeat": 1, "skip_first": 3},
        {"wait": 2, "warmup": 1, "active": 1, "repeat": 2, "skip_first_wait": 1},
        {"wait": 1, "warmup": 1, "active": 9},
    ],
)
def test_the_steps_that_a_schedule_names_are_recorded(options):
    # PyTorch's own profile crashes when several are run in one process; its schedule is enough.
    torch = _oracle()
    theirs = torch.profiler.schedule(**options)
    ours = schedule(**options)
    actions = [theirs(i).name for i in range(20)]
    assert [ours(i).name for i in range(20)] == actions

    expected, window = [], []
    for step in range(10):  # the block ends in the tenth
        if actions[step].startswith("RECORD"):
            window.append(f"ProfilerStep#{step}")
        if window and (actions[step] == "RECORD_AND_SAVE" or step == 9):
            expected.append(window)
            window = []

    found = []

    def ready(prof):
        steps = [e for e in prof.events() if e.is_user_annotation]
        assert [c.name for s in steps for c in s.cpu_children] == ["aten::exp"] * len(steps)
        assert {s.name for s in steps} == {"ProfilerStep*"}
        found.append([s.trace_name for s in steps])

    x = dptrain.ones(2)
    with profile(schedule=ours, on_trace_ready=ready) as prof:
        for step in range(10):
            assert prof.step_num == step
            x.exp()
            if step < 9:
                prof.step()
    assert found == expected


@pytest.mark.parametrize(
    ("actions", "words"),
    [
        (["RECORD", "NONE"], "RECORD followed by NONE"),
        (["RECORD", "WARMUP"], "RECORD followed by WARMUP"),
        (["WARMUP", "NONE"], "WARMUP followed by NONE"),
    ],
)
def test_a_schedule_that_breaks_off_is_warned_of(actions, words):
    prof = profile(schedule=lambda step: ProfilerAction[actions[step]])
    prof.start()
    with pytest.warns(UserWarning, match=words):
        prof.step()
    prof.stop()


def test_traces_are_files_that_viewers_read(tmp_path):
    for gz in (False, True):
        with profile(
            record_shapes=True,
            with_stack=True,
            on_trace_ready=tensorboard_trace_handler(str(tmp_path), "worker", use_gzip=gz),
        ) as prof:
            prof.add_metadata_json("rank", "3")
            with record_function("mine"):
                dptrain.ones(2, 3).exp()
        (path,) = tmp_path.glob("worker.*.pt.trace.json.gz" if gz else "worker.*.pt.trace.json")
        raw = path.read_bytes()
        trace = json.loads(gzip.decompress(raw) if gz else raw)
        assert trace["rank"] == 3
        events = {e["name"]: e for e in trace["traceEvents"]}
        mine, exp = events["mine"], events["aten::exp"]
        assert (mine["ph"], mine["cat"], exp["cat"]) == ("X", "user_annotation", "cpu_op")
        assert exp["args"]["Input Dims"] == [[2, 3]]
        assert "test_profiler.py" in exp["args"]["Call stack"]
        assert mine["ts"] <= exp["ts"]
        assert exp["ts"] + exp["dur"] <= mine["ts"] + mine["dur"]
    prof.export_stacks(str(tmp_path / "stacks"))
    assert "test_profiler.py" in (tmp_path / "stacks").read_text()


@pytest.mark.oracle
def test_the_table_has_the_columns_of_pytorch():
    torch = _oracle()
    heads = []
    for lib in (dptrain, torch):
        with lib.profiler.profile(record_shapes=True) as prof:
            for n in (2, 3, 3):
                lib.ones(n).exp()
            lib.ones(2).sin()
        averages = prof.key_averages(group_by_input_shape=True)
        text = averages.table(sort_by="count", row_limit=1)
        assert "aten::exp" in averages.table()
        found = [e for e in averages if e.key == "aten::exp"]
        lines = text.splitlines()
        heads.append((lines[1].split(), sorted((e.count, str(e.input_shapes)) for e in found)))
        rows = [line for line in lines[3:] if line and not line.startswith(("-", "Self"))]
        assert len(rows) == 1
    assert heads[0] == heads[1]
    with pytest.raises(AttributeError):
        prof.key_averages().table(sort_by="nonsense")


@pytest.mark.parametrize(
    ("use", "error", "words"),
    [
        (lambda: profile().key_averages(), AssertionError, "initialized"),
        (lambda: profile(activities=[]), AssertionError, "No valid"),
        (lambda: schedule(wait=0, warmup=1, active=0), AssertionError, "Invalid profiler schedule"),
        (lambda: schedule(wait=0, warmup=0, active=1), UserWarning, "warmup"),
        (lambda: profile(profile_memory=True), UserWarning, "profile_memory has no effect"),
        (lambda: profile(activities=[ProfilerActivity.CUDA]), UserWarning, "CUDA|GPU"),
        (lambda: autograd_profiler.profile().table(), RuntimeError, "didn't finish"),
    ],
)
def test_what_cannot_be_had_is_told(use, error, words):
    with pytest.raises(error, match=words):
        use()


def test_one_profile_at_a_time():
    with profile() as outer:
        with pytest.raises(RuntimeError, match="already enabled"), profile():
            pass
        dptrain.ones(2).exp()
    assert [e.name for e in outer.events()].count("aten::exp") == 1


def test_an_error_inside_ends_its_event():
    with profile() as prof:
        with pytest.raises(RuntimeError), record_function("bad"):
            dptrain.ones(2) + dptrain.ones(3)
        dptrain.ones(2).exp()
    events = {e.name: e for e in prof.events()}
    assert events["aten::add"].cpu_parent is events["bad"]
    assert events["aten::exp"].cpu_parent is None


class _Watched(dptrain.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return int(bool(recorders))


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_are_events_and_workers_measure_nothing(workers):
    loader = dptrain.data.DataLoader(_Watched(), batch_size=2, num_workers=workers)
    with profile() as prof:
        seen = [batch.tolist() for batch in loader]
    assert seen == [[1, 1] if workers == 0 else [0, 0]] * 2
    assert [e.name for e in prof.events()].count("enumerate(DataLoader)") == 3
    assert all(e.thread == 1 for e in prof.events() if e.is_user_annotation)
