"""Lazy modules: shapes from the first input, the class afterwards, state before and after, errors."""

import copy
import pickle

import numpy as np
import pytest

import dptrain
from dptrain import nn
from dptrain.nn.parameter import is_lazy

pytestmark = pytest.mark.oracle
torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
LIBRARIES = (dptrain, torch)


def _sizes(rank, *lead):
    return (*lead, *range(5, 5 + rank))


LAYERS = {
    "LazyLinear": (lambda n: n.LazyLinear(3), (2, 4)),
    "LazyLinear without bias": (lambda n: n.LazyLinear(3, bias=False), (2, 5, 4)),
    **{
        f"LazyConv{r}d": (
            lambda n, r=r: getattr(n, f"LazyConv{r}d")(4, 3, groups=2),
            _sizes(r, 2, 6),
        )
        for r in (1, 2, 3)
    },
    "LazyConv2d unbatched": (lambda n: n.LazyConv2d(4, 3, padding=1), (3, 5, 5)),
    **{
        f"LazyConvTranspose{r}d": (
            lambda n, r=r: getattr(n, f"LazyConvTranspose{r}d")(4, 2, stride=2, groups=2),
            _sizes(r, 2, 6),
        )
        for r in (1, 2, 3)
    },
    **{
        f"Lazy{kind}{r}d": (lambda n, c=f"Lazy{kind}{r}d": getattr(n, c)(), _sizes(r, 2, 3))
        for r in (1, 2, 3)
        for kind in ("BatchNorm", "InstanceNorm")
    },
    "LazyBatchNorm1d plain": (lambda n: n.LazyBatchNorm1d(affine=False), (4, 3)),
    "LazyBatchNorm1d without bias": (lambda n: n.LazyBatchNorm1d(bias=False), (4, 3)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_the_first_call_makes_an_ordinary_layer(name):
    make, shape = LAYERS[name]
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    seen = []
    for lib in LIBRARIES:
        layer = make(lib.nn)
        facts = [
            repr(layer),
            {k: repr(v) for k, v in layer.state_dict().items() if k != "num_batches_tracked"},
        ]
        facts.append(layer.has_uninitialized_params())
        layer(lib.tensor(x))
        facts += [type(layer).__name__, repr(layer), len(layer._forward_pre_hooks)]
        facts.append({k: tuple(v.shape) for k, v in layer.state_dict().items()})
        facts.append(sorted(type(p).__name__ for p in (*layer.parameters(), *layer.buffers())))
        seen.append((facts, layer))
    assert seen[0][0] == seen[1][0]
    ours, theirs = seen[0][1], seen[1][1]
    ours.load_state_dict({k: v.numpy() for k, v in theirs.state_dict().items()})
    np.testing.assert_allclose(
        ours(dptrain.tensor(x)).detach().numpy(),
        theirs(torch.tensor(x)).detach().numpy(),
        rtol=1e-4,
        atol=1e-5,
    )


def _nets(lib):
    return lib.nn.Sequential(lib.nn.LazyLinear(3), lib.nn.BatchNorm1d(3), lib.nn.LazyBatchNorm1d())


@pytest.mark.parametrize("lib", LIBRARIES)
def test_state_goes_between_lazy_and_initialised_modules(lib):
    ready, fresh = _nets(lib), _nets(lib)
    x = lib.ones(4, 2)
    assert "Uninit" in repr(fresh.state_dict()["0.weight"])
    fresh.load_state_dict(fresh.state_dict())  # lazy into lazy: nothing happens
    assert fresh[0].has_uninitialized_params()
    ready(x)
    with pytest.raises(RuntimeError, match="uninitialized parameter"):
        ready.load_state_dict(fresh.state_dict())
    fresh.load_state_dict(ready.state_dict())  # initialised into lazy
    assert not fresh[0].has_uninitialized_params()
    assert type(fresh[0]).__name__ == "LazyLinear"  # until it is called
    ready.eval(), fresh.eval()
    assert (fresh(x) == ready(x)).all()
    assert type(fresh[0]) is lib.nn.Linear
    assert fresh[0].in_features == 2


@pytest.mark.parametrize("lib", LIBRARIES)
def test_lazy_modules_are_copied_and_converted(lib):
    for make in (copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), lambda m: m.double()):
        layer = make(lib.nn.LazyLinear(3))
        assert layer.has_uninitialized_params()
        wanted = layer.weight.dtype
        layer(lib.ones(2, 4, dtype=wanted))
        assert layer.weight.dtype == wanted
        assert tuple(layer.weight.shape) == (3, 4)
    assert wanted == lib.float64


@pytest.mark.parametrize("lib", LIBRARIES)
@pytest.mark.parametrize(
    ("use", "kind"),
    [
        (lambda lib, p: p + 1, ValueError),
        (lambda lib, p: p.sum(), ValueError),
        (lambda lib, p: lib.ones(1) * p, ValueError),
        (lambda lib, p: p.detach(), ValueError),
        (lambda lib, p: p.shape, RuntimeError),
        (lambda lib, p: lib.nn.LazyConv2d(2, 3)(lib.ones(2, 3)), RuntimeError),
        (lambda lib, p: lib.nn.LazyConv2d(4, 3, groups=2)(lib.ones(3, 5, 5)), ValueError),
        (lambda lib, p: lib.nn.LazyLinear(2).share_memory(), RuntimeError),
    ],
)
def test_a_parameter_without_a_shape_refuses_use(lib, use, kind):
    with pytest.raises(kind):
        use(lib, lib.nn.UninitializedParameter())


def test_is_lazy():
    assert is_lazy(nn.UninitializedParameter())
    assert is_lazy(nn.UninitializedBuffer())
    assert not is_lazy(nn.Parameter())
    buffer = nn.UninitializedBuffer(dtype=dptrain.float64)
    buffer.materialize((2, 3))
    assert type(buffer) is dptrain.Tensor
    assert buffer.shape == (2, 3)
    assert buffer.dtype is dptrain.float64


@pytest.mark.parametrize("lib", LIBRARIES)
def test_an_own_lazy_module(lib):
    class Scale(lib.nn.modules.lazy.LazyModuleMixin, lib.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = lib.nn.UninitializedParameter()

        def initialize_parameters(self, x, factor=1.0):
            self.scale.materialize(x.shape)
            with lib.no_grad():
                self.scale.fill_(factor)

        def forward(self, x, factor=1.0):
            return x * self.scale

    module = Scale()
    assert module(lib.ones(3), factor=2.0).tolist() == [2.0] * 3
    assert type(module) is Scale  # cls_to_become is None
    assert not hasattr(module, "_initialize_hook")

    class Forgetful(Scale):
        def initialize_parameters(self, x):
            pass

    with pytest.raises(RuntimeError, match="has not been fully initialized"):
        Forgetful()(lib.ones(3))


@pytest.mark.parametrize("lib", LIBRARIES)
@pytest.mark.parametrize("kind", ["SGD", "Adam", "AdamW", "RMSprop"])
def test_an_optimizer_may_be_made_before_the_first_call(lib, kind):
    layer = lib.nn.LazyLinear(1)
    optimizer = getattr(lib.optim, kind)(layer.parameters(), lr=0.1)
    optimizer.zero_grad()
    optimizer.step()  # nothing has a gradient yet
    layer(lib.ones(2, 3)).sum().backward()
    before = layer.weight.detach().clone()
    optimizer.step()
    assert (layer.weight < before).all()
    assert optimizer.param_groups[0]["params"][0] is layer.weight


def test_data_parallel_refuses_parameters_without_a_shape():
    from dptrain.comm.serial import SerialCommunicator

    with pytest.raises(
        RuntimeError, match=r"uninitialized parameters can't be used with `Distributed"
    ):
        nn.parallel.DistributedDataParallel(nn.LazyLinear(2), process_group=SerialCommunicator())
