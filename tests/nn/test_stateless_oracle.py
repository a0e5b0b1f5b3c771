"""Modules called with other values, fused, skipped; gradients of convolutions; where attention may run."""

import numpy as np
import pytest
from scenarios import agree, attempt, collector, plain

import dptrain

pytestmark = pytest.mark.oracle
torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")

LIBRARIES = (dptrain, torch)
SCENARIOS, scenario = collector()


def net(lib):
    made = lib.nn.Sequential(lib.nn.Linear(2, 2), lib.nn.BatchNorm1d(2)).double()
    with lib.no_grad():
        for p in made.parameters():
            p.copy_(lib.arange(p.numel(), dtype=p.dtype).reshape(p.shape) + 1)
    return made


def data(lib, *shape):
    return lib.tensor(np.random.default_rng(0).standard_normal(shape))


@scenario
def functional_calls(lib):
    call, module, x = lib.func.functional_call, net(lib), data(lib, 3, 2)
    weight = lib.ones(2, 2, dtype=lib.float64, requires_grad=True)
    mean = lib.zeros(2, dtype=lib.float64)
    values = {"0.weight": weight, "1.running_mean": mean}
    out = call(module, values, x)
    (out**3).sum().backward()
    facts = [
        out,
        weight.grad,
        mean,
        values["1.running_mean"] is mean,
        module[0].weight.grad is None,
    ]
    facts += [module[0].weight, module[1].running_mean, module[1].num_batches_tracked]
    facts.append(call(module, ({"0.weight": weight}, {"0.bias": mean}), (x,)))
    facts.append(call(module[0], {"weight": weight}, kwargs={"input": x}))
    full = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    facts.append(call(module, full, x, strict=True))
    facts += [
        attempt(lambda: call(module, {"0.weight": weight}, x, strict=True)),
        attempt(lambda: call(module, {**full, "x": weight}, x, strict=True)),
        attempt(lambda: call(module, {"x.y": weight}, x))[0],
        attempt(lambda: call(module, {"0.weight": 3}, x))[0],
        attempt(lambda: call(module, 3, x))[0],
        attempt(lambda: call(module, [3], x)),
        attempt(lambda: call(module, [{"a": weight}, {"a": weight}], x)),
        attempt(lambda: call(module, {"0.weight": lib.ones(3, 3)}, x))[0],
        module[0].weight,
    ]
    return facts


@scenario
def functional_calls_of_tied_weights(lib):
    module = lib.nn.Module()
    module.a = module.b = lib.nn.Parameter(lib.ones(1))
    module.forward = lambda x: x * module.a + 10 * module.b
    call, x, two = lib.func.functional_call, lib.ones(1), lib.ones(1) * 2
    return [
        call(module, {"a": two}, x),
        call(module, {"a": two}, x, tie_weights=False),
        call(module, {"a": two, "b": two}, x),
        attempt(lambda: call(module, {"a": two, "b": x}, x)),
        call(module, {"a": two, "b": x}, x, tie_weights=False),
    ]


@scenario
def old_functional_call(lib):
    module = lib.nn.Linear(2, 1, bias=False)
    with pytest.warns(FutureWarning, match="functional_call"):
        out = lib.nn.utils.stateless.functional_call(
            module, {"weight": lib.ones(1, 2)}, lib.ones(1, 2)
        )
    return [out]


@scenario
def stacked_states(lib):
    models = [net(lib), net(lib)]
    params, buffers = lib.func.stack_module_state(models)
    stack = lib.func.stack_module_state
    frozen = net(lib).requires_grad_(False)
    return [
        params,
        buffers,
        [(p.requires_grad, p.is_leaf) for p in params.values()],
        attempt(lambda: stack([])),
        attempt(lambda: stack([net(lib), net(lib).eval()])),
        attempt(lambda: stack([net(lib), lib.nn.Linear(1, 1)])),
        attempt(lambda: stack([net(lib), frozen]))[0],
    ]


def trained(lib, kind, bias, rank=0):
    layer = {
        "linear": lambda: lib.nn.Linear(3, 4, bias=bias),
        "conv": lambda: getattr(lib.nn, f"Conv{rank}d")(3, 4, 2, bias=bias),
        "transposed": lambda: getattr(lib.nn, f"ConvTranspose{rank}d")(3, 4, 2, bias=bias),
    }[kind]()
    norm = getattr(lib.nn, f"BatchNorm{rank or 1}d")(4)
    rng = np.random.default_rng(1)
    for module in (layer.double(), norm.double()):
        values = {k: rng.uniform(0.5, 2, tuple(v.shape)) for k, v in module.state_dict().items()}
        values.pop("num_batches_tracked", None)
        module.load_state_dict({k: lib.tensor(v) for k, v in values.items()}, strict=False)
    return layer.eval(), norm.eval()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("kind", "rank"), [("linear", 0), ("conv", 1), ("conv", 2), ("transposed", 2), ("conv", 3)]
)
def test_fused_layers_do_what_both_did(kind, rank, bias):
    found = []
    for lib in LIBRARIES:
        layer, norm = trained(lib, kind, bias, rank)
        utils, x = lib.nn.utils, data(lib, 2, 3, *[4] * rank)
        fuse = utils.fuse_linear_bn_eval if kind == "linear" else utils.fuse_conv_bn_eval
        fused = fuse(layer, norm, True) if kind == "transposed" else fuse(layer, norm)
        np.testing.assert_allclose(
            fused(x).detach().numpy(), norm(layer(x)).detach().numpy(), rtol=1e-9
        )
        found.append(
            [plain(fused.state_dict()), [p.requires_grad for p in fused.parameters()], repr(fused)]
        )
        with pytest.raises(AssertionError, match="Fusion only for eval!"):
            fuse(layer.train(), norm)
    assert found[0][1:] == found[1][1:]
    for name, values in found[1][0].items():
        np.testing.assert_allclose(found[0][0][name], values, rtol=1e-9)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_gradients_of_convolutions(rank):
    found = []
    for lib in LIBRARIES:
        x, weight = data(lib, 2, 4, *[6] * rank), data(lib, 6, 2, *[3] * rank)
        options = {"stride": 2, "padding": 1, "dilation": 1, "groups": 2}
        out = getattr(lib.nn.functional, f"conv{rank}d")(x, weight, None, **options)
        g = lib.cos(out).requires_grad_()
        by_input = getattr(lib.nn.grad, f"conv{rank}d_input")(x.shape, weight, g, **options)
        by_weight = getattr(lib.nn.grad, f"conv{rank}d_weight")(x, weight.shape, g, **options)
        (by_input.sum() + (by_weight**2).sum()).backward()
        found.append([t.detach().numpy() for t in (by_input, by_weight, g.grad)])
    for ours, theirs in zip(*found, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-9)


@scenario
def where_attention_may_run(lib):
    backends, x = lib.nn.attention.SDPBackend, lib.ones(1, 1, 2, 4)

    def run(allowed):
        with lib.nn.attention.sdpa_kernel(allowed):
            return lib.nn.functional.scaled_dot_product_attention(x, x, x).sum().item()

    return [
        run(backends.MATH),
        run([backends.FLASH_ATTENTION]),
        attempt(lambda: run(backends.CUDNN_ATTENTION))[0],
        attempt(lambda: run([]))[0],
        attempt(lambda: run(3))[0],
        lib.nn.functional.scaled_dot_product_attention(x, x, x).sum().item(),
        str(backends.MATH),
    ]


@scenario
def skipped_initial_values(lib):
    skip = lib.nn.utils.skip_init
    before = lib.get_rng_state()
    made = skip(lib.nn.Linear, 3, 4, bias=False)
    return [
        bool((lib.get_rng_state() == before).all()),
        repr(made),
        tuple(made.weight.shape),
        attempt(lambda: skip(int))[0],
        attempt(lambda: skip(lib.nn.ReLU)),
    ]


def adaptive(lib, bias=True):
    made = lib.nn.AdaptiveLogSoftmaxWithLoss(4, 9, [2, 5], div_value=2.0, head_bias=bias).double()
    rng = np.random.default_rng(2)
    state = {k: rng.standard_normal(tuple(v.shape)) for k, v in made.state_dict().items()}
    made.load_state_dict({k: lib.tensor(v) for k, v in state.items()})
    return made


@pytest.mark.parametrize("target", [[0, 1, 1], [0, 3, 8], [7, 8, 6], [2, 2, 2]])
def test_adaptive_softmax(target):
    found = []
    for lib in LIBRARIES:
        module, x = adaptive(lib), data(lib, 3, 4).requires_grad_()
        result = module(x, lib.tensor(target))
        (result.loss + (result.output**2).sum()).backward()
        grads = [p.grad for p in module.parameters()]
        single = module(x[0], lib.tensor(target[0]))
        values = [result.output, result.loss, x.grad, *grads, *single]
        values += [module.log_prob(x), module.predict(x), module.predict(x * 10)]
        found.append([None if v is None else v.detach().numpy() for v in values])
        np.testing.assert_allclose(module.log_prob(x).exp().sum(1).detach().numpy(), 1)
    for ours, theirs in zip(*found, strict=True):
        if theirs is None or ours is None:  # a cluster that no target fell into
            assert not np.any(ours if theirs is None else theirs)
        else:
            np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)


@scenario
def text_and_errors_of_adaptive_softmax(lib):
    def make(*args):
        return attempt(lambda: lib.nn.AdaptiveLogSoftmaxWithLoss(*args))[0]

    module, x = adaptive(lib), data(lib, 3, 4)
    return [
        repr(module),
        list(adaptive(lib).state_dict()),
        type(module(x, lib.tensor([1, 2, 3]))).__name__,
        *(make(4, 9, cutoffs) for cutoffs in ([], [3, 2], [0, 2], [2, 9], [2, 2], [1.5])),
        attempt(lambda: module(x, lib.tensor([1, 2]))),
        attempt(lambda: module(x[0], lib.tensor([1, 2, 3, 4]))),
        attempt(lambda: module(x, lib.tensor(1))),
        attempt(lambda: module(x, lib.tensor([[1]]))),
        attempt(lambda: module(x, lib.tensor([1, 2, 9]))),
        attempt(lambda: module(x, lib.tensor([1, -2, 3]))),
    ]


@pytest.mark.parametrize("size", [1, 3, 4, 5])
@pytest.mark.parametrize("channels", [1, 3, 9])
def test_cross_map_lrn(size, channels):
    ours, theirs = (lib.nn.CrossMapLRN2d(size, alpha=0.5, beta=0.6, k=2) for lib in LIBRARIES)
    x = data(dptrain, 2, channels, 3, 2).requires_grad_()
    wanted = theirs(torch.tensor(x.detach().numpy())).numpy()
    np.testing.assert_allclose(ours(x).detach().numpy(), wanted, rtol=1e-9)
    assert dptrain.autograd.gradcheck(ours, (x,))  # PyTorch's gradient is not that of its result
    assert repr(ours) == repr(theirs)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", SCENARIOS)
def test_both_libraries_agree(name):
    agree(SCENARIOS[name])


def test_pytorchs_files_are_found():
    from dptrain.nn.modules.batchnorm import _BatchNorm
    from dptrain.nn.modules.instancenorm import _InstanceNorm
    from dptrain.nn.modules.loss import _Loss, _WeightedLoss
    from dptrain.nn.modules.utils import _pair, _quadruple, _single, _triple

    from dptrain.nn.common_types import _size_2_t
    from dptrain.nn.modules import Linear, conv

    assert _size_2_t
    assert Linear is dptrain.nn.Linear
    assert issubclass(dptrain.nn.Conv2d, conv._ConvNd)
    assert issubclass(dptrain.nn.BatchNorm2d, _BatchNorm)
    assert not issubclass(dptrain.nn.InstanceNorm2d, _BatchNorm)
    assert issubclass(dptrain.nn.InstanceNorm2d, _InstanceNorm)
    assert issubclass(dptrain.nn.MSELoss, _Loss)
    assert issubclass(dptrain.nn.NLLLoss, _WeightedLoss)
    assert [f(3) for f in (_single, _pair, _triple, _quadruple)] == [(3,) * n for n in (1, 2, 3, 4)]
    assert _pair([1, 2]) == (1, 2)
    with pytest.raises(AttributeError):
        conv.NoSuchLayer  # noqa: B018
    with pytest.raises(ImportError):
        from dptrain.nn.modules.conv import Linear


def test_every_place_of_a_module_is_pytorchs():
    """Each name of `nn.modules` is in the same file there, and resolves."""
    import importlib

    from dptrain.nn import modules

    for file, names in modules._NAMES.items():
        ours = importlib.import_module(f"dptrain.nn.modules.{file}")
        theirs = importlib.import_module(f"torch.nn.modules.{file}")
        for name in names.split():
            assert getattr(ours, name) is not None
            assert hasattr(theirs, name), (file, name)
