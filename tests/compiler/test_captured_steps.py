"""Steps over a GPU's tensors as CUDA graphs, without a GPU: what is recorded, replayed, refused.

Over the stand-in for CuPy, in which a recording leaves no trace and a replay does the recorded work again
over the same memory (see `fake_cupy`), and the CUDA kernels run by g++. `test_compile_gpu.py` has the same
on a GPU.
"""

import pytest
from captured import (
    COMPILER,
    OPTIMIZERS,
    accumulator,
    assert_same,
    batch,
    held,
    launches,
    network,
    optimizer_of,
    stepper,
    train,
)
from training import F, nn

import dptrain
from dptrain.optim import lr_scheduler

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no g++ to run the CUDA kernels with")


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_count_their_steps_and_follow_a_schedule(gpu, name):
    schedule = lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, T_max=7)  # noqa: E731
    before = launches()
    assert_same(stepper(optimizer_of(name), schedule))
    assert launches() - before == 7


def sgd(params):
    return dptrain.optim.SGD(params, lr=0.1, momentum=0.9)


def test_batches_of_another_size_have_a_recording_of_their_own(gpu):
    sizes = [4, 4, 4, 4, 2, 2, 2, 2, 4, 2, 4]
    report = assert_same(stepper(optimizer_of("Adam")), len(sizes), 5, lambda i: batch(i, sizes[i]))
    assert report.recordings == 2


def test_gradients_accumulate_over_calls(gpu):
    # Calls that find gradients and calls that find none: two recordings of one kind, one of the other.
    assert_same(
        accumulator(optimizer_of("AdamW"), 3, 0.05), 21, 13, lambda i: (*batch(i), i % 3 == 2)
    )


@pytest.mark.parametrize("optimizing", [True, False])
def test_gradients_that_the_caller_forgets_and_uses(gpu, optimizing):
    def run(compiled):
        dptrain.manual_seed(0)
        model = network()
        optimizer = sgd(model.parameters()) if optimizing else None

        def passes(x, y):
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            return loss

        call = dptrain.compile(passes, fullgraph=True) if compiled else passes
        found = []
        for i in range(9):
            loss = call(*batch(i))
            grads = [p.grad.cpu().numpy().copy() for p in model.parameters()]
            found += [loss.item(), *(g.tobytes() for g in grads)]
            if i % 2 or optimizing:
                if optimizer is not None:
                    optimizer.step()
                model.zero_grad()
        return found, dptrain.compiler.explain(call).replays if compiled else None

    plain, replayed = run(False), run(True)
    assert replayed[0] == plain[0]
    assert replayed[1] >= 3


def test_gradients_without_an_optimizer_are_the_callers_own(gpu):
    weight = dptrain.ones(3, device="cuda").requires_grad_()

    @dptrain.compile(fullgraph=True)
    def passes(x):
        (weight * x).sum().backward()

    grads = []
    for i in range(6):
        weight.grad = None
        passes(dptrain.full((3,), float(i), device="cuda"))
        grads.append(weight.grad)
    assert [g.tolist() for g in grads] == [[float(i)] * 3 for i in range(6)]
    assert dptrain.compiler.explain(passes).replays == 3
    kept = grads[-1]  # and from here on they add up in place
    for _ in range(5):
        passes(dptrain.ones(3, device="cuda"))
    assert weight.grad is kept
    assert kept.tolist() == [10.0] * 3


def test_rates_that_the_user_sets_are_followed(gpu):
    def make():
        model, optimizer, step = stepper(optimizer_of("AdamW"))()
        count = iter(range(100))

        def outer(x, y):
            for group in optimizer.param_groups:
                group["lr"], group["weight_decay"] = 0.01 / (1 + next(count)), 0.02
            return inner(x, y)

        inner = dptrain.compile(step, fullgraph=True) if compiled else step
        inners.append(inner)
        return model, optimizer, outer

    inners, found = [], []
    for compiled in (False, True):  # noqa: B007
        found.append(train(make, 8, False)[:2])
    assert found[0] == found[1]
    assert dptrain.compiler.explain(inners[1]).replays == 5


def test_results_and_arguments_are_the_callers_own(gpu):
    @dptrain.compile(fullgraph=True)
    def double(x, scale=2):
        return {"double": x * scale, "sum": x.sum(), "x": x, "scale": scale}

    inputs = [dptrain.full((3,), float(i), device="cuda") for i in range(6)]
    outs = [double(x) for x in inputs]
    assert [o["double"].tolist() for o in outs] == [[2.0 * i] * 3 for i in range(6)]
    assert [o["sum"].item() for o in outs] == [3.0 * i for i in range(6)]
    assert all(o["x"] is x and o["scale"] == 2 for o, x in zip(outs, inputs, strict=True))
    assert [x.tolist() for x in inputs] == [[float(i)] * 3 for i in range(6)]
    assert dptrain.compiler.explain(double).replays == 3


def test_work_behind_a_constant_of_the_host_is_recorded_too(gpu):
    @dptrain.compile(fullgraph=True)
    def shifted(x):
        return (x + dptrain.tensor([1.0, 2.0, 3.0], device="cuda")) * x

    for i in range(6):
        x = dptrain.full((3,), float(i), device="cuda")
        assert shifted(x).tolist() == [i * (i + k) for k in (1.0, 2.0, 3.0)]
    assert dptrain.compiler.explain(shifted).replays == 3


def test_arrays_are_joined_without_the_hosts_help(gpu):
    def join(x):
        return dptrain.cat([x, x[1:] * 2, x], 0), dptrain.stack([x, -x], -1), dptrain.cat([x, x], 1)

    call = dptrain.compile(join, fullgraph=True)
    inputs = [dptrain.full((3, 2), float(i)).cuda() for i in range(6)]
    for x in inputs:
        for found, expected in zip(call(x), join(x), strict=True):
            assert found.tolist() == expected.tolist()
    assert dptrain.compiler.explain(call).replays == 3


def test_a_seed_and_a_state_of_the_generator_are_followed(gpu):
    x = dptrain.ones(50, device="cuda")
    plain = lambda x: F.dropout(x)  # noqa: E731
    drop = dptrain.compile(plain, fullgraph=True)

    def draws(call):
        found = []
        dptrain.manual_seed(3)
        found += [call(x).tolist() for _ in range(5)]
        dptrain.manual_seed(4)
        found += [call(x).tolist() for _ in range(2)]
        state = dptrain.cuda.get_rng_state()
        found += [call(x).tolist() for _ in range(2)]
        dptrain.cuda.set_rng_state(state)
        found += [call(x).tolist() for _ in range(2)]
        dptrain.cuda.manual_seed(9)
        return [*found, *(f(x).tolist() for f in (call, F.dropout, call))]

    expected = draws(plain)
    assert draws(drop) == expected
    assert dptrain.compiler.explain(drop).replays == 13 - 3
    assert len({tuple(d) for d in expected[:7]}) == 7


def test_eval_mode_and_grad_mode_are_kinds_of_their_own(gpu):
    model = network()
    seen = []
    call = dptrain.compile(model, fullgraph=True)
    for training in (True, False, True, False):
        model.train(training)
        for i in range(4):
            dptrain.manual_seed(i)
            with dptrain.no_grad():
                seen.append(call(batch(i)[0]).tolist())
                dptrain.manual_seed(i)
                state = {k: v.clone() for k, v in model.state_dict().items()}
                if not training:
                    assert seen[-1] == model(batch(i)[0]).tolist()
                    assert all(dptrain.equal(v, state[k]) for k, v in model.state_dict().items())
    report = dptrain.compiler.explain(call)
    assert report.replays >= 8, str(report)


def test_a_state_that_is_loaded_is_recorded_anew(gpu):
    dptrain.manual_seed(0)
    model, optimizer, step = stepper(optimizer_of("Adam"))()
    call = dptrain.compile(step, fullgraph=True)
    for i in range(4):
        call(*batch(i))
    saved = [{k: v.clone() for k, v in model.state_dict().items()}, optimizer.state_dict()]
    import copy

    saved[1], seeds = copy.deepcopy(saved[1]), dptrain.get_rng_state()
    runs = []
    for run in (call, step):
        model.load_state_dict(saved[0])
        optimizer.load_state_dict(copy.deepcopy(saved[1]))
        dptrain.set_rng_state(seeds)
        runs.append(([run(*batch(i)).item() for i in range(6)], held(model, optimizer)))
    assert runs[0] == runs[1]
    assert dptrain.compiler.explain(call).replays >= 3


def counting():
    numbers = iter(range(1, 100))
    return lambda x: x * next(numbers)


def constants():
    numbers = iter(range(1, 100))
    return lambda x: x * dptrain.tensor([1.0, next(numbers), 2.0]).cuda()


def pending():
    weight = dptrain.ones(3).cuda().requires_grad_()
    return lambda x: (x * weight).sum()


def keeping():
    kept = []

    def keep(x):
        kept.append(x * 2)
        return kept[-1] + 1

    return keep


def scaling():
    p = nn.Parameter(dptrain.ones(3).cuda())
    optimizer, scaler = sgd([p]), dptrain.amp.GradScaler("cuda")

    def step(x):
        optimizer.zero_grad()
        loss = (p * x).sum()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        return loss

    return step


def reaching_past():
    """What an operation may not do: copy from the host by CuPy itself."""
    from dptrain.core import cuda
    from dptrain.core.tensor import wrap

    return lambda x: x * wrap(cuda.library().cupy.array([1.0, 2.0, 3.0], dtype="float32"))


REFUSED = {
    "a copy past us": (reaching_past, "HostCopyError: 12 bytes of the host"),
    "item": (lambda: lambda x: x * x.sum().item(), "are read on the host"),
    "a condition": (lambda: lambda x: x * 2 if x.sum() > 0 else -x, "are read on the host"),
    "shapes": (lambda: lambda x: x[x > 1].sum(), "CUDA graph cannot hold it"),
    "the host's draws": (lambda: lambda x: x + dptrain.rand(3).cuda(), "random numbers on the CPU"),
    "a view": (lambda: lambda x: x[1:], "a view of what existed before"),
    "in place": (lambda: lambda x: x.add_(1) * 2, "changes an argument in place"),
    "pending": (pending, "backward pass is still to come"),
    "numbers that change": (counting, "two calls in a row differ"),
    "constants that change": (constants, "two calls in a row differ"),
    "what is kept": (keeping, "changes a plain value, an object or a container"),
    "a scaler": (scaling, "a GradScaler decides on the host"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_recorded_runs_as_it_is_and_says_why(gpu, name):
    make, reason = REFUSED[name]

    def run(function):
        dptrain.manual_seed(0)
        return [function(dptrain.tensor([1.0, float(i), 3.0]).cuda()).tolist() for i in range(6)]

    expected, call = run(make()), dptrain.compile(make())
    with pytest.warns(UserWarning, match=reason):
        assert run(call) == expected
    report = dptrain.compiler.explain(call)
    assert report.replays == 0
    assert any(reason in r for r in report.reasons), report


def test_tensors_on_the_cpu_are_refused(gpu):
    x, scale = dptrain.ones(3).cuda(), dptrain.tensor(2.0)
    call = dptrain.compile(lambda x, w: x * w)
    with pytest.warns(UserWarning, match="an argument is a tensor on the CPU"):
        assert [call(x, dptrain.tensor(float(i))).tolist()[0] for i in range(4)] == [0, 1, 2, 3]
    reader = dptrain.compile(lambda x: x * scale)
    with pytest.warns(UserWarning, match=r"computes with a tensor of shape .* on the CPU"):
        assert [reader(x).tolist()[0] for _ in range(4)] == [2.0] * 4
    scale.fill_(5.0)
    assert reader(x).tolist() == [5.0] * 3


def test_an_error_in_a_recording_leaves_everything_as_it_was(gpu):
    dptrain.manual_seed(0)
    model, optimizer, plain = stepper(
        optimizer_of("Adam"), lambda o: lr_scheduler.StepLR(o, 1, 0.5)
    )()
    fail = []

    def step(x, y):
        loss = plain(x, y)
        if fail:
            raise KeyError("no")
        return loss

    call = dptrain.compile(step)
    for i in range(3):
        call(*batch(i))
    before, rate = held(model, optimizer), optimizer.param_groups[0]["lr"]
    versions = [p._version for p in model.parameters()]
    fail_at_capture = dptrain.compiler.function.capture

    def failing(*args, **kwargs):
        fail.append(1)
        try:
            return fail_at_capture(*args, **kwargs)
        finally:
            fail.clear()
            assert held(model, optimizer) == before
            assert optimizer.param_groups[0]["lr"] == rate
            assert [p._version for p in model.parameters()] == versions
            assert not dptrain.cuda.is_current_stream_capturing()

    dptrain.compiler.function.capture = failing
    try:
        with pytest.warns(UserWarning, match=r"cannot hold it \(KeyError"):
            call(*batch(3))
    finally:
        dptrain.compiler.function.capture = fail_at_capture
    assert optimizer.param_groups[0]["lr"] == rate / 2


def test_an_error_of_the_step_itself_is_the_callers(gpu):
    def step(x, n):
        return x.reshape(n, -1)

    call = dptrain.compile(step, fullgraph=True)
    for _ in range(3):
        with pytest.raises(RuntimeError, match="shape"):
            call(dptrain.ones(3).cuda(), 2)


def test_versions_and_counters_advance_as_in_the_plain_step(gpu):
    counts = []
    for compiled in (False, True):
        dptrain.manual_seed(0)
        model, optimizer, step = stepper(optimizer_of("Adam"))()
        call = dptrain.compile(step, fullgraph=True) if compiled else step
        for i in range(6):
            call(*batch(i))
        counts.append(
            (
                [p._version for p in model.parameters()],
                [int(e["step"]) for e in optimizer.state.values()],
                [b._version for b in model.buffers()],
            )
        )
    assert counts[0] == counts[1]
    assert counts[0][1][0] == 6


def test_an_optimizer_in_a_graph_made_by_hand(gpu):
    def run(graphed):
        dptrain.manual_seed(0)
        p = nn.Parameter(dptrain.arange(5.0).cuda())
        optimizer = dptrain.optim.Adam([p], lr=0.1, capturable=True)
        x = dptrain.ones(5).cuda()

        def step():
            optimizer.zero_grad()
            (p * x).square().sum().backward()
            optimizer.step()

        step()
        if graphed:
            graph = dptrain.cuda.CUDAGraph()
            with dptrain.cuda.graph(graph):
                step()
            assert int(optimizer.state[p]["step"]) == 1
        for i in range(4):
            optimizer.param_groups[0]["lr"] = 0.1 * (i + 1)
            x.copy_(dptrain.full((5,), i + 0.5).cuda())
            graph.replay() if graphed else step()
        return p.tolist(), int(optimizer.state[p]["step"])

    assert run(True) == run(False)
    assert run(True)[1] == 5


def test_optimizers_that_a_graph_made_by_hand_cannot_hold(gpu):
    p = nn.Parameter(dptrain.ones(3).cuda())
    p.grad = dptrain.ones(3).cuda()

    def record(optimizer):
        with dptrain.cuda.graph(dptrain.cuda.CUDAGraph()):
            optimizer.step()

    with pytest.raises(RuntimeError, match="capturable is False"):
        record(dptrain.optim.Adam([p]))
    with pytest.raises(RuntimeError, match="comes into being in their first step"):
        record(dptrain.optim.Adam([p], capturable=True))
    with pytest.raises(RuntimeError, match="more than one kernel"):
        record(dptrain.optim.Adafactor([p]))
    host = nn.Parameter(dptrain.ones(3))
    host.grad = dptrain.ones(3)
    with pytest.raises(AssertionError, match="supported devices"):
        dptrain.optim.Adam([host], capturable=True).step()
