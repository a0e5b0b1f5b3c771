"""Compiled modules and functions whose results are differentiated outside."""

import copy
import pickle

import numpy as np
import pytest
from training import F, batches, classes, nn, normal, state

import dptrain


def _model():
    return nn.Sequential(
        nn.Linear(6, 8), nn.Dropout(0.3), nn.ReLU(), nn.BatchNorm1d(8), nn.Linear(8, 3)
    )


def train(wrap, count=8, accumulate=False):
    dptrain.manual_seed(0)
    model = _model()
    called = wrap(model)
    optimizer = dptrain.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for i, (x, y) in enumerate(batches(count, normal(5, 6), classes(3, 5))):
        loss = F.cross_entropy(called(x), y)
        loss.backward()
        if not accumulate or i % 2:
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
    called.eval()
    with dptrain.no_grad():
        outputs = [called(x).numpy().tobytes() for _ in range(5)]
    return losses, outputs, state(model), called


@pytest.mark.parametrize("accumulate", [False, True])
def test_a_module_in_a_loop_of_training_and_evaluation(accumulate):
    *plain, _ = train(lambda m: m, accumulate=accumulate)
    *mine, called = train(dptrain.compile, accumulate=accumulate)
    assert mine == plain
    report = dptrain.compiler.explain(called)
    assert report.replays == 5 + 2
    assert report.recordings == 2


def test_an_optimized_module_is_its_module():
    model = _model()
    called = dptrain.compile(model)
    assert called._orig_mod is model
    assert isinstance(called, nn.Module)
    assert list(called.state_dict()) == [f"_orig_mod.{k}" for k in model.state_dict()]
    assert called[0] is model[0] if hasattr(type(called), "__getitem__") else True
    assert called.eval() is called
    assert not model.training


def test_gradients_of_arguments_and_through_a_longer_graph():
    weight = dptrain.ones(6, requires_grad=True)

    def function(x, y):
        return (x * weight).tanh() + y.exp()

    compiled = dptrain.compile(function)
    for seed in range(7):
        made = []
        for f in (function, compiled):
            weight.grad = None
            x, y = (dptrain.tensor(normal(4, 6)(np.random.default_rng([seed, k]))) for k in (0, 1))
            x.requires_grad_()
            (f(x * 2, y) * 3).sum().backward()
            made.append([x.grad.numpy().tobytes(), weight.grad.numpy().tobytes()])
        assert made[0] == made[1]
    assert dptrain.compiler.explain(compiled).replays == 4


def _ready(function, *arguments):
    compiled = dptrain.compile(function)
    for _ in range(4):
        compiled(*arguments).sum().backward()
    assert dptrain.compiler.explain(compiled).replays == 1
    return compiled


def test_the_graph_can_be_walked_twice_where_it_is_retained():
    weight = dptrain.rand(3, 3, requires_grad=True)
    x = dptrain.rand(2, 3)
    compiled = _ready(lambda x: (x @ weight).softmax(-1) * x, x)
    weight.grad = None
    out = compiled(x).square().sum()
    out.backward(retain_graph=True)
    once = weight.grad.clone()
    out.backward()
    assert dptrain.equal(weight.grad, once * 2)
    with pytest.raises(RuntimeError, match="second time"):
        out.backward()


def test_calls_whose_backward_is_still_to_come_keep_their_memory():
    weight = dptrain.rand(3, 3, requires_grad=True)

    def function(x):
        return (x @ weight).tanh()

    x = dptrain.rand(2, 3)
    compiled = _ready(function, x)

    def gradient(f):
        weight.grad = None
        first, second = f(x), f(x * 3)
        (first * second).sum().backward()
        return weight.grad.numpy().tobytes()

    assert gradient(compiled) == gradient(function)


def test_errors_of_the_backward_pass():
    weight = dptrain.rand(3, 3, requires_grad=True)
    x = dptrain.rand(2, 3)
    compiled = _ready(lambda x: (x @ weight).tanh(), x)
    out = compiled(x).sum()
    with dptrain.no_grad():
        weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace"):
        out.backward()
    del out
    grad = compiled(x).sum()
    with pytest.raises(RuntimeError, match="double backward"):
        dptrain.autograd.grad(grad, weight, create_graph=True)


def test_hooks_of_parameters_run_outside():
    weight, seen = dptrain.rand(3, 3, requires_grad=True), []
    x = dptrain.rand(2, 3)
    weight.register_hook(lambda g: seen.append(g) or g * 2)
    compiled = _ready(lambda x: (x @ weight).tanh(), x)
    weight.grad = None
    compiled(x).sum().backward()
    assert len(seen) == 5
    assert dptrain.equal(weight.grad, seen[-1] * 2)
    assert len({g.numpy().tobytes() for g in seen}) == 1


def test_data_parallel_around_a_compiled_module():
    from dptrain.comm.serial import SerialCommunicator
    from dptrain.nn.parallel import DistributedDataParallel

    def wrap(model):
        return DistributedDataParallel(dptrain.compile(model), process_group=SerialCommunicator())

    *plain, _ = train(lambda m: m)
    losses, outputs, held, called = train(wrap)
    assert losses == plain[0]
    assert outputs == plain[1]
    assert held == plain[2]
    assert dptrain.compiler.explain(called.module).replays > 3


def test_results_of_several_kinds():
    scale = dptrain.ones(3)

    @dptrain.compile
    def function(x, how):
        total = x.sum(0) * scale
        return {"total": total, "same": scale, "how": how, "pair": (x, [total + 1, None])}

    x = dptrain.rand(2, 3)
    for _ in range(6):
        found = function(x, "text")
        assert found["same"] is scale
        assert found["pair"][0] is x
        assert found["how"] == "text"
        assert found["pair"][1][1] is None
        assert dptrain.equal(found["pair"][1][0], found["total"] + 1)
    assert dptrain.compiler.explain(function).replays == 3


def test_methods_and_decorators():
    class Holder:
        def __init__(self):
            self.factor = dptrain.full((3,), 2.0)

        @dptrain.compile
        def run(self, x):
            """Doc."""
            return x * self.factor

    holder, other = Holder(), Holder()
    other.factor = dptrain.zeros(3)
    x = dptrain.rand(3)
    for _ in range(6):
        assert dptrain.equal(holder.run(x), x * 2)
        assert dptrain.equal(other.run(x), x * 0)
    assert Holder.run.__doc__ == "Doc."

    @dptrain.compile(fullgraph=True, dynamic=False)
    def double(x):
        return x + x

    assert dptrain.equal(double(x), x * 2)


def test_options_are_pytorchs():
    def function(x):
        return x

    assert dptrain.compile(function, disable=True) is function
    assert dptrain.compile(function, backend="eager") is function
    with pytest.raises(RuntimeError, match="mode=fast"):
        dptrain.compile(function, mode="fast")
    with pytest.raises(RuntimeError, match="both"):
        dptrain.compile(function, mode="default", options={})
    with pytest.raises(TypeError, match="expects a function"):
        dptrain.compile(3)
    with pytest.raises(TypeError, match="what compile"):
        dptrain.compiler.explain(function)


def test_images_keep_the_order_in_memory_that_they_show():
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU())
    head = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    first, second = dptrain.compile(model), dptrain.compile(lambda x: head(x) + x.sum())
    for (x,) in batches(6, normal(3, 2, 6, 6)):
        gradients = []
        for body, end in ((model, lambda x: head(x) + x.sum()), (first, second)):
            model.zero_grad()
            made = body(x)
            assert made.stride() == (64, 16, 4, 1)
            end(made).sum().backward()
            gradients.append([p.grad.numpy().tobytes() for p in model.parameters()])
            del made
        assert gradients[0] == gradients[1]
    assert dptrain.compiler.explain(first).replays == 3
    assert dptrain.compiler.explain(second).replays == 3


def stacked():
    dptrain.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.BatchNorm1d(4), nn.Linear(4, 2))


def test_a_module_compiled_in_place_trains_bit_for_bit_as_before():
    plain, compiled = stacked(), stacked()
    assert compiled.compile() is None
    x = dptrain.randn(5, 3)
    for i in range(5):
        outs = [m(x + i) for m in (plain, compiled)]
        assert outs[0].tolist() == outs[1].tolist()
        for out in outs:
            out.sum().backward()
    for p, q in zip(plain.parameters(), compiled.parameters(), strict=True):
        assert p.grad.tolist() == q.grad.tolist()
    assert dptrain.compiler.explain(compiled).replays > 0
    assert repr(compiled) == repr(plain)
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    assert compiled.eval()(x).tolist() == plain.eval()(x).tolist()


def test_copies_and_files_hold_the_module_without_recordings():
    compiled = stacked()
    compiled.compile()
    x = dptrain.randn(5, 3)
    expected = compiled.eval()(x).tolist()
    for made in (copy.deepcopy(compiled), pickle.loads(pickle.dumps(compiled))):
        assert made._compiled_call_impl is None
        assert made(x).tolist() == expected


def test_options_of_compile_in_place_are_those_of_compile():
    module = stacked()
    with pytest.raises(RuntimeError, match="Unrecognized mode=fast"):
        module.compile(mode="fast")
    assert module._compiled_call_impl is None
    module.compile(backend="eager")
    assert module(dptrain.randn(5, 3)).shape == (5, 2)
    seen = []
    module.register_forward_hook(lambda m, args, out: seen.append(out.shape))
    module(dptrain.randn(4, 3))
    assert seen == [(4, 2)]
