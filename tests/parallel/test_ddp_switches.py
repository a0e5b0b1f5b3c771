"""What PyTorch's users set and ask besides the arguments of DistributedDataParallel."""

import numpy as np
import pytest
from thread_ranks import on_ranks

import dptrain
import dptrain.distributed as dist
from dptrain import nn
from dptrain.parallel import DistributedDataParallel


def net():
    return nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)).double()


def batch(comm):
    return dptrain.tensor(np.random.default_rng(comm.rank).standard_normal((4, 3)) + comm.rank)


def test_what_is_to_be_ignored_stays_each_ranks_own():
    own = ["0.weight", "0.bias", "1.running_mean", "1.running_var"]

    def rank(comm):
        module = net()
        with dptrain.no_grad():
            for p in module.parameters():
                p.add_(float(comm.rank))
        before = module[0].weight.detach().numpy().copy()
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, own)
        model = DistributedDataParallel(module)
        kept = np.array_equal(before, module[0].weight.detach().numpy())
        shared = module[2].weight.detach().numpy().copy()
        model(batch(comm)).square().sum().backward()
        grads = [p.grad.numpy().copy() for p in model.parameters()]
        model.eval()
        model(batch(comm))
        buffers = [b.numpy().copy() for b in model.buffers()]
        return kept, shared, grads, buffers, list(module.state_dict())

    (a, b) = on_ranks(2, rank)
    assert a[0]
    assert b[0]
    assert np.array_equal(a[1], b[1])  # what is shared came from rank 0
    for i, (left, right) in enumerate(zip(a[2], b[2], strict=True)):
        assert np.array_equal(left, right) == (i >= 2), i
    assert not np.array_equal(a[3][0], b[3][0])
    assert not np.array_equal(a[3][1], b[3][1])
    assert a[4] == b[4] == list(net().state_dict())


def test_ignored_parameters_have_this_ranks_gradient():
    def rank(comm):
        layer = nn.Linear(2, 1, bias=False)
        module = nn.ModuleDict({"own": layer, "shared": nn.Linear(2, 1, bias=False)})
        module._ddp_params_and_buffers_to_ignore = ["own.weight"]
        module.forward = lambda x: module["own"](x) + module["shared"](x)
        model = DistributedDataParallel(module)
        model(dptrain.full((1, 2), comm.rank + 1.0)).sum().backward()
        return [p.grad.tolist()[0][0] for p in module.parameters()]

    assert on_ranks(2, rank) == [[1.0, 1.5], [2.0, 1.5]]


def test_a_module_of_which_all_is_ignored_needs_no_wrapper():
    def rank(comm):
        layer = nn.Linear(1, 1)
        layer._ddp_params_and_buffers_to_ignore = ["weight", "bias"]
        with pytest.raises(RuntimeError, match="is not needed when a module doesn't have any"):
            DistributedDataParallel(layer)

    on_ranks(2, rank)


@pytest.mark.parametrize("kind", list(dist.BuiltinCommHookType), ids=lambda kind: kind.name)
def test_built_in_hooks_by_their_kind(kind):
    def rank(comm):
        model = DistributedDataParallel(nn.Linear(2, 1, bias=False))
        model._register_builtin_comm_hook(kind)
        with pytest.raises(RuntimeError, match="only be called once"):
            model._register_builtin_comm_hook(kind)
        model._set_static_graph()
        model(dptrain.full((1, 2), comm.rank + 1.0)).sum().backward()
        return model.module.weight.grad.tolist(), str(model.device), model.static_graph

    for found in on_ranks(2, rank):
        assert found == ([[1.5, 1.5]], "cpu", True)


def test_replicas_that_have_drifted_apart_are_named():
    def rank(comm):
        model = DistributedDataParallel(net())
        model.check_replicas()
        model(batch(comm)).square().sum().backward()  # buffers differ now, and may
        model.check_replicas()
        with dptrain.no_grad():
            if comm.rank == 1:  # one bit of one number
                model.module[2].weight[1, 2] = np.nextafter(model.module[2].weight[1, 2].item(), 9)
        with pytest.raises(RuntimeError) as caught:
            model.check_replicas()
        with dptrain.no_grad():
            model.module[0].bias.add_(float(comm.rank == 2))
        with pytest.raises(RuntimeError, match=r"differ, 2 of 6: .* '0.bias', .* than ranks \[2\]"):
            model.check_replicas()
        return str(caught.value)

    for r, message in enumerate(on_ranks(3, rank)):
        assert message.startswith(f"[rank {r}/3] the ranks' parameters differ, 1 of 6")
        assert "the first is '2.weight', which rank 0 has otherwise than ranks [1]" in message
