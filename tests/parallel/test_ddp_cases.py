"""DistributedDataParallel in less common use: freezing, several modules, copies, hooks, arguments."""

import copy
import pickle
import warnings

import numpy as np
import pytest
from thread_ranks import errors_on_ranks, on_ranks

import dptrain
from dptrain import nn, optim
from dptrain.parallel import DistributedDataParallel
from dptrain.parallel.comm_hooks import allreduce_hook

DTYPE = dptrain.float64


class Branches(nn.Module):
    """Uses those of its layers that are asked for."""

    def __init__(self, count=3):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(2, 1, bias=False) for _ in range(count))
        self.to(DTYPE)

    def forward(self, x, which):
        return sum(self.layers[i](x) for i in which)


def grads(module):
    return [None if p.grad is None else p.grad.numpy().copy() for p in module.parameters()]


def rows(comm, count=8, width=3):
    """This rank's part of a batch, and the whole batch."""
    x = np.random.default_rng(1).standard_normal((count, width))
    share = count // comm.world_size
    return dptrain.tensor(x[comm.rank * share : (comm.rank + 1) * share]), dptrain.tensor(x)


def test_what_is_used_may_change_from_step_to_step_and_from_rank_to_rank():
    used = [({0}, {0}), ({1}, {2}), ({0, 1, 2}, {2}), ({2}, {0, 1})]

    def rank(comm):
        model = DistributedDataParallel(Branches())
        found = []
        for by_rank in used:
            model.zero_grad()
            model(dptrain.ones(1, 2, dtype=DTYPE), by_rank[comm.rank]).sum().backward()
            found.append(grads(model))
        return found

    for steps in on_ranks(2, rank):
        for by_rank, found in zip(used, steps, strict=True):
            for i, g in enumerate(found):
                users = sum(i in part for part in by_rank)
                if users == 0:
                    assert g is None
                else:
                    np.testing.assert_array_equal(g, np.full((1, 2), users / 2))


def test_a_parameter_used_under_no_sync_only_takes_part_in_the_average():
    def rank(comm):
        model = DistributedDataParallel(Branches())
        x = dptrain.ones(1, 2, dtype=DTYPE)
        with model.no_sync():
            model(x, {comm.rank}).sum().backward()
        model(x, {2}).sum().backward()
        return grads(model)

    for found in on_ranks(2, rank):
        np.testing.assert_array_equal(np.concatenate(found), [[0.5, 0.5], [0.5, 0.5], [1, 1]])


def test_no_sync_counts_where_backward_runs():
    def rank(comm, inside):
        model = DistributedDataParallel(Branches())
        x = dptrain.full((1, 2), comm.rank + 1.0, dtype=DTYPE)
        if inside == "backward":
            out = model(x, {0}).sum()
            with model.no_sync():
                out.backward()
        else:
            with model.no_sync():
                out = model(x, {0}).sum()
            out.backward()
        return grads(model)[0]

    own = on_ranks(2, rank, "backward")
    np.testing.assert_array_equal(np.concatenate(own), [[1, 1], [2, 2]])
    mean = on_ranks(2, rank, "forward")
    np.testing.assert_array_equal(np.concatenate(mean), [[1.5, 1.5], [1.5, 1.5]])


def test_the_switch_behind_no_sync():
    def rank(comm):
        model = DistributedDataParallel(Branches(1))
        model.require_backward_grad_sync = False
        with model.no_sync():
            assert not model.require_backward_grad_sync
        assert not model.require_backward_grad_sync
        x = dptrain.full((1, 2), comm.rank + 1.0, dtype=DTYPE)
        model(x, {0}).sum().backward()
        local = grads(model)[0].tolist()
        model.require_backward_grad_sync = True
        model(x, {0}).sum().backward()
        return local, grads(model)[0].tolist()

    assert on_ranks(2, rank) == [([[1.0, 1.0]], [[3.0, 3.0]]), ([[2.0, 2.0]], [[3.0, 3.0]])]


@pytest.mark.parametrize(("steps", "every"), [(6, 3), (5, 2), (3, 1), (2, 5)])
def test_accumulate_averages_every_so_often_and_at_the_end(steps, every):
    def rank(comm):
        model = DistributedDataParallel(Branches(1))
        seen = []
        for step in range(steps):
            with model.accumulate(step, every, last=step + 1 == steps) as update:
                model(dptrain.full((1, 2), comm.rank + 1.0, dtype=DTYPE), {0}).sum().backward()
            if update:
                seen.append(grads(model)[0][0, 0])
                model.zero_grad()
        return seen, model.times.steps

    sizes = [min(every, steps - s) for s in range(0, steps, every)]
    for seen, averaged in on_ranks(2, rank):
        assert seen == [1.5 * size for size in sizes]
        assert averaged == len(sizes)
    (error,) = errors_on_ranks(
        1, lambda comm: DistributedDataParallel(Branches()).accumulate(0, 0).__enter__()
    )
    assert isinstance(error, ValueError)
    assert "every must be 1 or more" in str(error)


def test_layers_may_be_frozen_and_unfrozen_after_wrapping():
    def rank(comm):
        net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).to(DTYPE)
        net[0].requires_grad_(False)
        model = DistributedDataParallel(net)
        mine, whole = rows(comm)
        found = []
        for frozen in (0, None, 1, None):
            for i, layer in enumerate(net):
                layer.requires_grad_(i != frozen)
            model.zero_grad()
            model(mine).square().mean().backward()
            averaged = grads(net)
            net.zero_grad()
            with model.no_sync():
                net(whole).square().mean().backward()
            found.append((averaged, grads(net)))
        return found

    for steps in on_ranks(2, rank):
        for averaged, alone in steps:
            for a, b in zip(averaged, alone, strict=True):
                assert (a is None) == (b is None)
                if a is not None:
                    np.testing.assert_allclose(a, b, rtol=1e-12)


def test_an_optimizer_made_before_a_layer_was_frozen_does_not_matter():
    def rank(comm):
        net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).to(DTYPE)
        optimizer = optim.SGD(net.parameters(), lr=0.1)
        net[1].requires_grad_(False)
        before = net[1].weight.detach().clone()
        model = DistributedDataParallel(net)
        model(rows(comm)[0]).square().mean().backward()
        optimizer.step()
        return net[1].weight.grad is None and bool((net[1].weight == before).all())

    assert all(on_ranks(2, rank))


@pytest.mark.parametrize("wrapped_second", [False, True])
def test_what_is_not_wrapped_stays_local_though_one_optimizer_has_both(wrapped_second):
    def rank(comm):
        a, b = nn.Linear(3, 3).to(DTYPE), nn.Linear(3, 1).to(DTYPE)
        optimizer = optim.SGD([*a.parameters(), *b.parameters()], lr=0.1)
        first = DistributedDataParallel(a)
        second = DistributedDataParallel(b) if wrapped_second else b
        mine, whole = rows(comm)
        for _ in range(2):
            optimizer.zero_grad()
            second(first(mine)).square().mean().backward()
        averaged, local = grads(a), grads(b)
        optimizer.zero_grad()
        with first.no_sync():
            if wrapped_second:
                with second.no_sync():
                    b(a(whole)).square().mean().backward()
            else:
                b(a(whole)).square().mean().backward()
        return averaged, local, grads(a), grads(b)

    results = on_ranks(2, rank)
    for averaged, local, whole_a, whole_b in results:
        for x, y in zip(averaged, whole_a, strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-12)
        if wrapped_second:
            for x, y in zip(local, whole_b, strict=True):
                np.testing.assert_allclose(x, y, rtol=1e-12)
    if not wrapped_second:
        assert not np.allclose(results[0][1][0], results[1][1][0])


def test_two_modules_that_share_a_layer():
    def rank(comm):
        shared = nn.Linear(3, 3)
        one = nn.Sequential(shared, nn.Linear(3, 1)).to(DTYPE)
        two = nn.Sequential(shared, nn.Linear(3, 1)).to(DTYPE)
        models = [DistributedDataParallel(one), DistributedDataParallel(two)]
        mine, whole = rows(comm)
        found = []
        for model, plain in zip(models, (one, two), strict=True):
            plain.zero_grad()
            model(mine).square().mean().backward()
            averaged = grads(plain)
            plain.zero_grad()
            with models[0].no_sync(), models[1].no_sync():
                plain(whole).square().mean().backward()
            found.append((averaged, grads(plain)))
        return found

    for pairs in on_ranks(2, rank):
        for averaged, alone in pairs:
            for a, b in zip(averaged, alone, strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-12)


def test_wrapping_again_leaves_the_first_wrapper_behind():
    def rank(comm):
        net = Branches(1)
        DistributedDataParallel(net)
        model = DistributedDataParallel(net)
        calls = []
        comm.add_listener(lambda work: calls.append(work.name))
        model(dptrain.ones(1, 2, dtype=DTYPE), {0}).sum().backward()
        return calls

    for calls in on_ranks(2, rank):
        assert calls == ["DDP(Branches) bucket 0"]


def test_several_forwards_before_one_backward_and_evaluation_in_between():
    def rank(comm):
        net = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).to(DTYPE)
        model = DistributedDataParallel(net)
        mine, _ = rows(comm)
        one = model(mine)
        with dptrain.no_grad():
            model.eval()
            if comm.rank == 0:  # nobody else evaluates: nothing may be communicated
                model(mine)
            model.train()
        two = model(mine * 2)
        (one.square().mean() + two.square().mean()).backward()
        ours = grads(net)
        net.zero_grad()
        with model.no_sync():
            (net(mine).square().mean() + net(mine * 2).square().mean()).backward()
        return ours, grads(net)

    results = on_ranks(2, rank)
    for ours, _ in results:
        for i, g in enumerate(ours):
            np.testing.assert_allclose(
                g, (results[0][1][i] + results[1][1][i]) / 2, rtol=1e-12, atol=1e-15
            )


def test_clipping_by_the_global_norm_sees_the_averages():
    def rank(comm):
        net = nn.Linear(3, 2).to(DTYPE)
        model = DistributedDataParallel(net)
        mine, whole = rows(comm)
        model(mine).square().mean().backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 0.01)
        clipped = grads(net)
        net.zero_grad()
        with model.no_sync():
            net(whole).square().mean().backward()
        alone = nn.utils.clip_grad_norm_(net.parameters(), 0.01)
        return float(norm) - float(alone), clipped, grads(net)

    for difference, clipped, alone in on_ranks(4, rank):
        assert abs(difference) < 1e-12
        for a, b in zip(clipped, alone, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-10)


@pytest.mark.parametrize("how", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_average_on_their_own(how):
    def rank(comm):
        model = DistributedDataParallel(nn.Linear(3, 2).to(DTYPE))
        twin = how(model)
        with dptrain.no_grad():
            twin.module.weight.mul_(2)
        mine, whole = rows(comm)
        found = []
        for wrapped in (twin, model):
            wrapped(mine).square().mean().backward()
            averaged = grads(wrapped)
            wrapped.zero_grad()
            with wrapped.no_sync():
                wrapped.module(whole).square().mean().backward()
            found.append((averaged, grads(wrapped)))
        return found, comm.rank == 1 and copy.deepcopy(model).module is not model.module

    for pairs, _ in on_ranks(2, rank):
        for averaged, alone in pairs:
            for a, b in zip(averaged, alone, strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-12)


def test_a_module_of_another_group_is_not_pickled():
    def rank(comm):
        model = DistributedDataParallel(nn.Linear(2, 1), process_group=comm.split(0))
        pickle.dumps(model)

    for error in errors_on_ranks(2, rank):
        assert isinstance(error, RuntimeError)
        assert "default process group" in str(error)


def test_forward_and_backward_hooks_of_wrapper_and_module_run():
    def rank(comm):
        model = DistributedDataParallel(nn.Linear(3, 2).to(DTYPE))
        seen = []
        model.register_forward_pre_hook(lambda m, args: seen.append("before"))
        model.register_forward_hook(lambda m, args, out: seen.append("after"))
        model.module.register_full_backward_hook(lambda m, gi, go: seen.append("backward"))
        model(rows(comm)[0]).sum().backward()
        return seen

    assert on_ranks(2, rank) == [["before", "after", "backward"]] * 2


def test_buffers_are_sent_or_averaged_or_left_alone():
    def rank(comm, policy):
        net = nn.Linear(2, 1)
        net.register_buffer("seen", dptrain.zeros(2))
        net.register_buffer("count", dptrain.tensor(0))
        model = DistributedDataParallel(net, forward_sync_buffers=policy)
        net.seen.fill_(comm.rank + 1.0)
        net.count.fill_(comm.rank + 1)
        model(dptrain.ones(1, 2))
        return net.seen[0].item(), net.count.item()

    assert on_ranks(2, rank, True) == [(1.0, 1), (1.0, 1)]
    assert on_ranks(2, rank, "average") == [(1.5, 1), (1.5, 1)]
    assert on_ranks(2, rank, False) == [(1.0, 1), (2.0, 2)]


def test_arguments_of_pytorch_without_effect_are_accepted():
    def rank(comm):
        net = nn.Linear(2, 1)
        named = list(net.named_parameters())
        model = DistributedDataParallel(
            net,
            device_ids=None,
            output_device=None,
            find_unused_parameters=True,
            check_reduction=True,
            gradient_as_bucket_view=True,
            static_graph=True,
            delay_all_reduce_named_params=named[:1],
            param_to_hook_all_reduce=net.bias,
            skip_all_reduce_unused_params=True,
            bucket_cap_mb_list=[1, 2],
            batched_grad_copy=True,
        )
        model(dptrain.ones(1, 2)).sum().backward()
        return DistributedDataParallel(nn.Linear(2, 1), device_ids=["cpu"], bucket_cap_mb=0).times

    on_ranks(1, rank)


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"device_ids": [0, 1]}, ValueError, "can only be None or contain a single element"),
        ({"output_device": 1}, ValueError, "output_device 1, and module parameters"),
        ({"dim": 1}, ValueError, "dim=1"),
        ({"mixed_precision": "bf16"}, ValueError, "mixed_precision='bf16' is not supported"),
        ({"delay_all_reduce_named_params": []}, ValueError, "set at the same time"),
        ({"bucket_cap_mb": -1}, ValueError, "0 or more MiB"),
        ({"forward_sync_buffers": "sum"}, ValueError, "got 'sum'"),
        ({"process_group": "world"}, TypeError, "got str"),
    ],
)
def test_arguments_that_cannot_be_honoured_are_named(options, kind, words):
    (error,) = errors_on_ranks(1, lambda comm: DistributedDataParallel(nn.Linear(2, 1), **options))
    assert isinstance(error, kind)
    assert words in str(error)


def test_the_old_name_of_an_argument_still_decides_and_warns():
    def rank(comm):
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            model = DistributedDataParallel(nn.Linear(2, 1), broadcast_buffers=False)
        return model.forward_sync_buffers, [(w.category, w.filename) for w in seen]

    assert on_ranks(1, rank) == [(False, [(FutureWarning, __file__)])]


def test_parameters_are_named_in_messages():
    def rank(comm):
        model = DistributedDataParallel(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1)))
        model.module[1].to(DTYPE)
        model.module[1](model.module[0](dptrain.ones(1, 2)).to(DTYPE)).sum().backward()

    for rank_number, error in enumerate(errors_on_ranks(2, rank)):
        assert f"[rank {rank_number}/2] parameter '1." in str(error)
    (error,) = errors_on_ranks(1, lambda comm: DistributedDataParallel(3))
    assert "expected a Module, got int" in str(error)


def test_logging_data_and_times_tell_of_buckets():
    def rank(comm):
        model = DistributedDataParallel(
            nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 1)), bucket_cap_mb=0
        )
        for _ in range(3):
            model(dptrain.ones(1, 8)).sum().backward()
        return model.get_ddp_logging_data(), str(model.times), model.times.last

    for data, text, last in on_ranks(2, rank):
        assert data["world_size"] == 2
        assert data["iteration"] == 3
        assert data["buckets"] == [["1.bias"], ["1.weight"], ["0.bias"], ["0.weight"]]
        assert data["bucket_sizes"] == "4, 32, 32, 256"
        assert data["total_parameter_size_bytes"] == 324
        assert len(data["times"]["buckets"]) == 4
        assert "hidden" in text
        assert len(text.splitlines()) == 7
        for bucket in last.buckets:
            assert bucket.ready_ns <= bucket.launched_ns <= bucket.started_ns
            assert bucket.started_ns <= bucket.met_ns <= bucket.finished_ns
            assert bucket.finished_ns <= last.waited_until_ns
            assert 0 <= last.hidden(bucket) <= 1


@pytest.mark.parametrize("dtype", [dptrain.bfloat16, dptrain.float16, dptrain.float32])
@pytest.mark.parametrize("mode", ["plain", "hook", "weighted", "join"])
def test_parameters_of_several_types_at_once(dtype, mode):
    """A model of two types: a section of each, whose small numbers are exact in any of them."""

    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.low = nn.Linear(2, 1, bias=False).to(dtype)
            self.high = nn.Linear(2, 1, bias=False).to(DTYPE)
            self.unused = nn.Linear(2, 1, bias=False).to(dtype)

        def forward(self, x):
            return self.low(x.to(dtype)).to(DTYPE) + self.high(x)

    def rank(comm):
        model = DistributedDataParallel(Mixed(), weighted=mode == "weighted")
        if mode == "hook":
            model.register_comm_hook(None, allreduce_hook)
        x = dptrain.full((1, 2), comm.rank * 2.0 + 1, dtype=DTYPE)
        if mode == "join":
            with model.join():
                model(x).sum().backward()
        else:
            model(x).sum().backward()
        return [
            None if p.grad is None else (p.grad.dtype, p.grad.tolist()) for p in model.parameters()
        ]

    for found in on_ranks(2, rank):
        assert found == [(dtype, [[2.0, 2.0]]), (DTYPE, [[2.0, 2.0]]), None]
