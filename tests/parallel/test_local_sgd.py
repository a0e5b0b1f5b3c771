"""Hooks that quantise, hooks by name, and averagers of parameters: what the ported scripts do not show."""

from __future__ import annotations

import numpy as np
import pytest
from thread_ranks import on_ranks

import dptrain
import dptrain.distributed as dist
from dptrain import nn, optim
from dptrain.distributed.algorithms import ddp_comm_hooks
from dptrain.distributed.algorithms.ddp_comm_hooks import DDPCommHookType, register_ddp_comm_hook
from dptrain.parallel import DistributedDataParallel, local_sgd
from dptrain.parallel.local_sgd import (
    HierarchicalModelAverager,
    PeriodicModelAverager,
    PostLocalSGDOptimizer,
    PostLocalSGDState,
    average_parameters,
    get_params_to_average,
    post_localSGD_hook,
)
from dptrain.parallel.quantization_hooks import (
    quantization_perchannel_hook,
    quantization_pertensor_hook,
)


def gradients(comm, shape=(40, 30)):
    values = np.random.default_rng(comm.rank).standard_normal(shape) * 10.0 ** (comm.rank - 1)
    return values.astype(np.float32)


def reduced(comm, hook, dtype=dptrain.float32, state=None):
    """What a hook makes of known gradients of a layer without bias."""
    grad = gradients(comm)
    layer = nn.Linear(grad.shape[1], grad.shape[0], bias=False).to(dtype)
    model = DistributedDataParallel(layer)
    model.register_comm_hook(state, hook)
    (model.module.weight * dptrain.tensor(grad).to(dtype)).sum().backward()
    return layer.weight.grad.numpy().copy()


@pytest.mark.oracle
@pytest.mark.parametrize("row", [None, 512, 16])
def test_quantised_gradients_are_pytorchs_observers_numbers(row):
    """PyTorch's hooks run on NCCL alone; its observers and fake quantisation run here."""
    torch = pytest.importorskip("torch", reason="compares with PyTorch")

    def hook(state, bucket):
        if row is None:
            return quantization_pertensor_hook(state, bucket)
        return quantization_perchannel_hook(state, bucket, bucket_size=row)

    results = on_ranks(3, lambda comm: (gradients(comm), reduced(comm, hook)))
    total = 0
    for grad, _ in results:
        flat = torch.from_numpy(grad).reshape(-1)
        if row is None:
            observer = torch.ao.quantization.MinMaxObserver()
            observer(flat)
            scale, zero = observer.calculate_qparams()
            total += torch.fake_quantize_per_tensor_affine(flat, scale, zero.int(), 0, 255)
        else:
            padded = torch.nn.functional.pad(flat, (0, -flat.numel() % row)).view(-1, row)
            observer = torch.ao.quantization.PerChannelMinMaxObserver()
            observer(padded)
            scale, zero = observer.calculate_qparams()
            found = torch.fake_quantize_per_channel_affine(padded, scale, zero.int(), 0, 0, 255)
            total += found.reshape(-1)[: flat.numel()]
    for grad, found in results:
        wanted = (total / 3).numpy().reshape(grad.shape)
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [dptrain.float64, dptrain.float32, dptrain.bfloat16])
def test_quantisation_is_as_close_as_its_scale_and_closer_with_more_scales(dtype):
    def rank(comm):
        whole = reduced(comm, quantization_pertensor_hook, dtype)
        rows = reduced(comm, quantization_perchannel_hook, dtype)
        return gradients(comm), whole.astype(np.float64), rows.astype(np.float64)

    results = on_ranks(2, rank)
    mean = np.mean([grad for grad, _, _ in results], axis=0, dtype=np.float64)
    half_a_step = np.mean([np.ptp(grad) for grad, _, _ in results]) / 255 / 2
    rounding = 0.01 if dtype is dptrain.bfloat16 else 1e-5
    for _, whole, rows in results:
        assert np.abs(whole - mean).max() <= half_a_step * 1.01 + rounding * np.abs(mean).max()
        if dtype is not dptrain.bfloat16:
            assert np.square(rows - mean).mean() < np.square(whole - mean).mean()
        np.testing.assert_array_equal(whole, results[0][1])


def test_gradients_of_one_sign_or_all_zero_survive_quantisation():
    def rank(comm):
        found = []
        for value in (0.0, 3.0, -2.0):
            layer = nn.Linear(2, 2, bias=False)
            model = DistributedDataParallel(layer)
            model.register_comm_hook(None, quantization_perchannel_hook)
            (model.module.weight * value).sum().backward()
            found.append(layer.weight.grad.numpy().copy())
        return found

    for found in on_ranks(2, rank):
        for grad, value in zip(found, (0.0, 3.0, -2.0), strict=True):
            np.testing.assert_allclose(grad, np.full((2, 2), value), rtol=1e-5)


@pytest.mark.parametrize("kind", list(DDPCommHookType), ids=lambda kind: kind.name)
def test_every_hook_can_be_had_by_name(kind):
    def rank(comm):
        layer = nn.Linear(6, 4)
        model = DistributedDataParallel(layer)
        register_ddp_comm_hook(kind, model, dist.group.WORLD)
        with pytest.raises(RuntimeError, match="only be called once"):
            register_ddp_comm_hook(kind, model)
        model(dptrain.full((2, 6), comm.rank + 1.0)).sum().backward()
        return layer.weight.grad.numpy().copy()

    for r, grad in enumerate(on_ranks(2, rank)):
        wanted = 2 * (r + 1.0) if kind is DDPCommHookType.NOOP else 3.0
        np.testing.assert_allclose(grad, np.full((4, 6), wanted), rtol=0.01)


def test_places_of_the_hooks_and_averagers():
    averaging = dist.algorithms.model_averaging
    assert ddp_comm_hooks.post_localSGD_hook.post_localSGD_hook is post_localSGD_hook
    assert ddp_comm_hooks.quantization_hooks.quantization_pertensor_hook is (
        quantization_pertensor_hook
    )
    assert averaging.averagers.PeriodicModelAverager is PeriodicModelAverager
    assert averaging.hierarchical_model_averager.HierarchicalModelAverager is (
        HierarchicalModelAverager
    )
    assert averaging.utils.average_parameters is average_parameters
    assert dist.optim.PostLocalSGDOptimizer is PostLocalSGDOptimizer
    assert next(iter(DDPCommHookType)).name == "ALLREDUCE"


def test_parameters_are_averaged_where_they_have_gradients_and_in_their_own_dtypes():
    def rank(comm):
        half = nn.Linear(2, 1, bias=False).to(dptrain.bfloat16)
        model = nn.ModuleList([nn.Linear(2, 2), nn.Linear(1, 3).double(), half, nn.Linear(1, 1)])
        optimizer = optim.SGD(model.parameters(), lr=0.1)
        with dptrain.no_grad():
            for p in model.parameters():
                p.fill_(comm.rank + 1.0)
        for layer in list(model)[:3]:
            for p in layer.parameters():
                p.grad = dptrain.zeros_like(p)
        versions = [p._version for p in model.parameters()]
        assert len(get_params_to_average(optimizer.param_groups)) == 5
        local_sgd.average_parameters_or_parameter_groups(optimizer.param_groups, None)
        changed = [p._version > v for p, v in zip(model.parameters(), versions, strict=True)]
        with pytest.raises(NotImplementedError, match="input of type <class 'str'>"):
            get_params_to_average(["weight"])
        average_parameters(model.parameters(), dist.GroupMember.NON_GROUP_MEMBER)
        kinds = [str(p.dtype) for p in model.parameters()]
        return [p.float().mean().item() for p in model.parameters()], changed, kinds

    for r, (means, changed, kinds) in enumerate(on_ranks(2, rank)):
        assert means == [1.5] * 5 + [r + 1.0] * 2
        assert changed == [True] * 5 + [False] * 2
        assert len(set(kinds)) == 3


def test_local_steps_follow_groups_and_ranks_end_equal_after_averaging():
    """Four ranks in pairs: gradients over all, then over a pair, parameters over all every second step."""

    def rank(comm):
        pair, _ = dist.new_subgroups(group_size=2)
        model = DistributedDataParallel(nn.Linear(3, 1, bias=False).double())
        with dptrain.no_grad():
            model.module.weight.zero_()
        state = PostLocalSGDState(None, pair, start_localSGD_iter=1)
        model.register_comm_hook(state, post_localSGD_hook)
        local = optim.SGD(model.parameters(), lr=1.0)
        optimizer = PostLocalSGDOptimizer(local, PeriodicModelAverager(2, warmup_steps=2))
        scheduler = optim.lr_scheduler.StepLR(optimizer, 100)
        seen = []
        for _ in range(3):
            optimizer.zero_grad()
            model(dptrain.full((1, 3), 2.0**comm.rank).double()).sum().backward()
            optimizer.step()
            scheduler.step()
            seen.append(-model.module.weight[0, 0].item())
        return seen

    # Gradients are 1, 2, 4, 8: 3.75 over all; 1.5 and 6 over the pairs, whose mean is 3.75.
    results = on_ranks(4, rank)
    for r, seen in enumerate(results):
        own = 1.5 if r < 2 else 6.0
        assert seen == [3.75, 3.75 + own, 3 * 3.75]


def test_the_optimizer_saves_the_averagers_step_and_prints_as_the_one_inside():
    def rank(comm):
        layer = nn.Linear(2, 1)

        def made():
            inner = optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
            return PostLocalSGDOptimizer(inner, PeriodicModelAverager(period=3))

        optimizer = made()
        for _ in range(4):
            layer(dptrain.ones(1, 2)).sum().backward()
            optimizer.step()
        saved = optimizer.state_dict()
        assert saved["step"] == 4
        again = made()
        again.load_state_dict(saved)
        assert again.averager.step == 4
        assert again.state is again.optim.state
        assert len(again.state) == 2
        with pytest.warns(UserWarning, match="does not contain a step counter"):
            again.load_state_dict(optimizer.optim.state_dict())
        assert again.averager.step == 0
        assert repr(again) == repr(again.optim)
        extra = nn.Linear(1, 1)
        again.add_param_group({"params": list(extra.parameters()), "lr": 0.5})
        assert again.param_groups[1]["lr"] == 0.5
        again.zero_grad()
        assert layer.weight.grad is None

    on_ranks(2, rank)


def test_bad_periods_are_refused_as_pytorch_does():
    def rank(comm):
        cases = [
            (lambda: PeriodicModelAverager(2, warmup_steps=-1), "must be a non-negative number"),
            (lambda: PeriodicModelAverager(0), "must be a positive value"),
            (lambda: HierarchicalModelAverager(), "must not be empty"),
            (lambda: HierarchicalModelAverager({0: 2}), "minimum period"),
            (lambda: HierarchicalModelAverager({2: 1}), "must be equal to the size"),
            (lambda: HierarchicalModelAverager({2: 2}, warmup_steps=-1), "non-negative"),
        ]
        for call, words in cases:
            with pytest.raises(ValueError, match=words):
                call()
        with pytest.warns(UserWarning, match="period of 1"):
            PeriodicModelAverager(1)

    on_ranks(2, rank)
    with pytest.raises(ValueError, match="has not been initialized"):
        PeriodicModelAverager(2)
