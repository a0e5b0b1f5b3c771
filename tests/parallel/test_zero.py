"""ZeroRedundancyOptimizer: the numbers of the undivided optimizer, state that is divided, errors."""

import numpy as np
import pytest
from thread_ranks import errors_on_ranks, on_ranks

import dptrain
from dptrain import nn, optim
from dptrain.data import DataLoader, TensorDataset
from dptrain.parallel import DistributedDataParallel, ZeroRedundancyOptimizer
from dptrain.parallel.join import Join

DTYPE = dptrain.float64
OPTIMIZERS = [
    (optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    (optim.Adam, {"lr": 0.01, "amsgrad": True}),
    (optim.AdamW, {"lr": 0.01}),
    (optim.Adagrad, {"lr": 0.1, "initial_accumulator_value": 0.1}),
    (optim.RMSprop, {"lr": 0.01, "momentum": 0.5, "centered": True}),
    (optim.NAdam, {"lr": 0.01}),
    (optim.Adafactor, {"lr": 0.05}),
]


def net():
    return nn.Sequential(
        nn.Linear(4, 7), nn.Tanh(), nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 3)
    ).to(DTYPE)


def step(model, optimizer, number):
    stream = np.random.default_rng(number)
    x = dptrain.tensor(stream.standard_normal((4, 4)))

    def closure():
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        return loss

    return closure


def train(model, optimizer, first=0, last=6):
    for number in range(first, last):
        step(model, optimizer, number)()
        optimizer.step()


def values(model):
    return [p.detach().numpy().copy() for p in model.parameters()]


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize(("kind", "options"), OPTIMIZERS, ids=lambda v: getattr(v, "__name__", ""))
@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_the_numbers_are_those_of_the_undivided_optimizer(kind, options, world_size):
    """Bitwise, as the gradients are: those that DistributedDataParallel has averaged."""

    def rank(comm):
        model = DistributedDataParallel(net())
        plain = DistributedDataParallel(net())
        plain.load_state_dict(model.state_dict())
        divided = ZeroRedundancyOptimizer(model.parameters(), kind, **options)
        train(model, divided)
        train(plain, kind(plain.parameters(), **options))
        return values(model), values(plain)

    for ours, theirs in on_ranks(world_size, rank):
        assert same(ours, theirs)


@pytest.mark.parametrize("zero_first", [True, False])
@pytest.mark.parametrize("world_size", [2, 3])
def test_different_batches_groups_schedules_and_clipping(zero_first, world_size):
    """Against the undivided optimizer on the same averaged gradients."""

    def rank(comm, divide):
        module = net()

        def made():
            groups = [
                {"params": list(module[0].parameters()), "lr": 0.02},
                {"params": list(module[2].parameters())},
            ]
            if divide:
                return ZeroRedundancyOptimizer(groups, optim.AdamW, lr=0.01)
            return optim.AdamW(groups, lr=0.01)

        optimizer = made() if zero_first else None
        model = DistributedDataParallel(module)
        optimizer = optimizer or made()
        schedule = optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
        for number in range(6):
            if number == 3:
                optimizer.add_param_group({"params": list(module[4].parameters()), "lr": 0.03})
            step(model, optimizer, number * 10 + comm.rank)()
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
            schedule.step()
        return values(model), [g["lr"] for g in optimizer.param_groups]

    divided, whole = on_ranks(world_size, rank, True), on_ranks(world_size, rank, False)
    for (ours, rates), (theirs, wanted) in zip(divided, whole, strict=True):
        assert rates == wanted
        assert same(ours, theirs)
        assert same(ours, divided[0][0])


def test_a_closure_is_called_and_its_loss_returned():
    def rank(comm):
        model = DistributedDataParallel(net())
        optimizer = ZeroRedundancyOptimizer(model.parameters(), optim.SGD, lr=0.1)
        closure = step(model, optimizer, 1)
        return [optimizer.step(closure).item() for _ in range(3)]

    for losses in on_ranks(2, rank):
        assert losses[2] < losses[1] < losses[0]


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_a_rank_keeps_state_for_its_share_alone(world_size):
    """12 equal layers: bytes of Adam's buffers, and the parameters that have state."""

    def rank(comm):
        module = nn.Sequential(*[nn.Linear(32, 32) for _ in range(12)])
        optimizer = ZeroRedundancyOptimizer(module.parameters(), optim.Adam)
        module(dptrain.ones(1, 32)).sum().backward()
        optimizer.step()
        held = {
            id(t._array.base): t._array.base for s in optimizer.state.values() for t in s.values()
        }
        return sum(a.nbytes for a in held.values()), len(optimizer.state)

    wanted = 2 * 12 * (32 * 32 + 32) * 4 / world_size
    results = on_ranks(world_size, rank)
    assert sum(count for _, count in results) == 24
    for nbytes, _ in results:
        assert wanted <= nbytes <= 1.02 * wanted + 1024


@pytest.mark.parametrize(("kind", "options"), OPTIMIZERS, ids=lambda v: getattr(v, "__name__", ""))
def test_state_goes_to_the_undivided_optimizer_and_back_on_another_number_of_ranks(kind, options):
    def first(comm):
        model = DistributedDataParallel(net())
        optimizer = ZeroRedundancyOptimizer(model.parameters(), kind, **options)
        train(model, optimizer, 0, 3)
        optimizer.consolidate_state_dict(to=1)
        if comm.rank == 1:
            return model.state_dict(), optimizer.state_dict()
        return None

    def plain(comm):
        model = net()
        optimizer = kind(model.parameters(), **options)
        train(model, optimizer, 0, 3)
        before = optimizer.state_dict()
        train(model, optimizer, 3, 6)
        return before, values(model)

    weights, state = on_ranks(2, first)[1]
    ((wanted, final),) = on_ranks(1, plain)
    assert state["param_groups"] == wanted["param_groups"]
    assert list(state["state"]) == list(wanted["state"])

    def second(comm, divide):
        model = net()
        model.load_state_dict(weights)
        params = model.parameters()
        optimizer = (
            ZeroRedundancyOptimizer(params, kind, **options) if divide else kind(params, **options)
        )
        optimizer.load_state_dict(state)
        train(model, optimizer, 3, 6)
        return values(model)

    for found in [*on_ranks(4, second, True), *on_ranks(1, second, False)]:
        assert same(found, final)


def test_frozen_unfrozen_and_unused_parameters():
    def rank(comm, divide):
        module = net()
        module[2].requires_grad_(False)
        params = list(module.parameters())
        optimizer = (
            ZeroRedundancyOptimizer(params, optim.Adam, lr=0.01)
            if divide
            else optim.Adam(params, lr=0.01)
        )
        train(module, optimizer, 0, 2)
        module[2].requires_grad_(True)
        train(module, optimizer, 2, 4)
        x = dptrain.ones(2, 4, dtype=DTYPE)
        optimizer.zero_grad()
        module[0](x).sum().backward()  # the others have no gradient: no step, no decay
        optimizer.step()
        return values(module)

    (wanted,) = on_ranks(1, rank, False)
    for found in on_ranks(3, rank, True):
        assert same(found, wanted)


def test_state_that_was_not_collected_is_not_handed_out():
    def rank(comm):
        model = DistributedDataParallel(net())
        optimizer = ZeroRedundancyOptimizer(model.parameters(), optim.Adam)
        train(model, optimizer, 0, 1)
        texts = []
        for collect in (False, True):
            if collect:
                optimizer.consolidate_state_dict(to=0)
            try:
                optimizer.state_dict()
                texts.append("")
            except RuntimeError as error:
                texts.append(str(error))
        train(model, optimizer, 1, 2)
        with pytest.raises(RuntimeError, match="has not been consolidated"):
            optimizer.state_dict()
        return texts

    (before, after), (before_1, after_1) = on_ranks(2, rank)
    assert before.startswith("[rank 0/2] Optimizer state has not been consolidated on this rank")
    assert after == ""
    assert "consolidate_state_dict(to=1)" in before_1
    assert "consolidate_state_dict(to=1)" in after_1


def test_what_cannot_be_divided_is_refused():
    def made(*args, **options):
        return lambda comm: ZeroRedundancyOptimizer(*args, **options)

    params = list(net().parameters())
    cases = [
        (made(params, optim.LBFGS), ValueError, "LBFGS updates all parameters together"),
        (
            made(params, "Adam"),
            TypeError,
            "'optimizer_class' (position 2) must be type of Optimizer, not str",
        ),
        (made(params, optim.SGD, overlap_with_ddp=True, lr=1), ValueError, "overlap_with_ddp=True"),
        (made([], optim.SGD, lr=1), ValueError, "empty parameter list"),
        (made(params, optim.SGD, lr=-1), ValueError, "Invalid learning rate"),
        (made(params, optim.SGD, speed=1), TypeError, "speed"),
        (made([params[0] * 2], optim.SGD, lr=1), ValueError, "non-leaf"),
    ]
    for function, kind, words in cases:
        (error,) = errors_on_ranks(1, function)
        assert isinstance(error, kind)
        assert words in str(error)
    with pytest.raises(RuntimeError, match="init_process_group"):
        ZeroRedundancyOptimizer(params, optim.SGD, lr=1)

    def loads(comm):
        optimizer = ZeroRedundancyOptimizer(net().parameters(), optim.SGD, lr=1)
        optimizer.load_state_dict({"state": {}, "param_groups": [{"params": [0]}]})

    def collects(comm):
        ZeroRedundancyOptimizer(net().parameters(), optim.SGD, lr=1).consolidate_state_dict(to=5)

    for function, words in (
        (loads, r"its groups have [1] parameters, the optimizer's [6]"),
        (collects, "to=5 is no rank of the group of 2"),
    ):
        for error in errors_on_ranks(2, function):
            assert isinstance(error, ValueError)
            assert words in str(error)


def test_ranks_that_run_out_of_data_are_an_error_that_says_so():
    def uneven(comm):
        model = DistributedDataParallel(net())
        optimizer = ZeroRedundancyOptimizer(model.parameters(), optim.SGD, lr=0.1)
        data = TensorDataset(dptrain.ones(2 - comm.rank, 4, dtype=DTYPE))
        for (x,) in DataLoader(data, batch_size=1):
            model(x).sum().backward()
            optimizer.step()

    for error in errors_on_ranks(2, uneven):
        assert "ZeroRedundancyOptimizer parameters of rank" in str(error)


@pytest.mark.parametrize("by_all", [True, False])
def test_joined_with_its_model_it_gives_the_undivided_optimizers_numbers(by_all):
    """Ranks with 1, 3 and 5 batches: those without data go on updating their part."""

    def rank(comm):
        def run(make, joined):
            dptrain.manual_seed(3)
            model = DistributedDataParallel(net())
            optimizer = make(model.parameters())
            steps = 0
            with Join(joined(model, optimizer), divide_by_initial_world_size=by_all):
                for step in range(1 + 2 * ((comm.rank + 1) % 3)):
                    optimizer.zero_grad()
                    x = np.random.default_rng((comm.rank, step)).standard_normal((3, 4))
                    model(dptrain.tensor(x)).square().mean().backward()
                    optimizer.step()
                    steps += 1
            return steps, [p.detach().numpy().copy() for p in model.parameters()]

        def divided(params):
            return ZeroRedundancyOptimizer(params, optim.AdamW, lr=0.01)

        def whole(params):
            return optim.AdamW(params, lr=0.01)

        steps, found = run(divided, lambda model, optimizer: [model, optimizer])
        return steps, found, run(whole, lambda model, optimizer: [model])[1]

    results = on_ranks(3, rank)
    assert [steps for steps, _, _ in results] == [3, 5, 1]
    for _, found, wanted in results:
        for a, b, first in zip(found, wanted, results[0][1], strict=True):
            np.testing.assert_array_equal(a, first)
            # One way divides the sum, the other the ranks' parts, unless all ranks count.
            np.testing.assert_allclose(a, b, rtol=0 if by_all else 1e-10)


def test_joined_around_loaders_of_different_lengths():
    def rank(comm):
        model = DistributedDataParallel(net())
        optimizer = ZeroRedundancyOptimizer(model.parameters(), optim.SGD, lr=0.1, momentum=0.9)
        data = TensorDataset(dptrain.ones(2 + comm.rank, 4, dtype=DTYPE))
        with Join([model, optimizer]):
            for (x,) in DataLoader(data, batch_size=1):
                optimizer.zero_grad()
                model(x).square().mean().backward()
                optimizer.step()
        model.check_replicas()

    on_ranks(3, rank)


def test_a_model_that_cannot_be_joined_with_it_says_why():
    def refused(comm, **options):
        layers = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).to(DTYPE)
        model = DistributedDataParallel(layers, **options)
        optimizer = ZeroRedundancyOptimizer(model.parameters(), optim.SGD, lr=0.1)
        Join([model, optimizer])

    for options in ({}, {"weighted": True, "forward_sync_buffers": False}):
        for error in errors_on_ranks(2, lambda comm, options=options: refused(comm, **options)):
            assert isinstance(error, ValueError)
            assert "forward_sync_buffers=False" in str(error)
    assert errors_on_ranks(2, lambda comm: refused(comm, forward_sync_buffers=False)) == [None] * 2
