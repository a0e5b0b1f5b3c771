"""What a caller sees of modules' attributes and conversions, each scenario run in both libraries."""

import pytest
from scenarios import agree, attempt, collector, filled, net, state

import dptrain

pytestmark = pytest.mark.oracle
torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")

SCENARIOS, scenario = collector()


# ---- attributes ------------------------------------------------------------------------------------


@scenario
def errors_of_attributes(lib):
    nn, module = lib.nn, net(lib)

    class Early(nn.Module):
        def __init__(self, what):
            self.x = what()

    def early(what):
        return attempt(lambda: Early(what) and None)

    return [
        attempt(lambda: module.nothing),
        attempt(lambda: nn.Linear(1, 1).wait),
        attempt(lambda: delattr(module, "nothing")),
        attempt(lambda: setattr(module, "scale", lib.zeros(2))),
        attempt(lambda: setattr(module, "scale", 3)),
        attempt(lambda: setattr(module, "first", 3)),
        attempt(lambda: setattr(module, "seen", 3)),
        attempt(lambda: setattr(module, "scale", None)),
        attempt(lambda: module.add_module("first", 3)),
        attempt(lambda: module.add_module("a.b", nn.ReLU())),
        attempt(lambda: module.add_module("", nn.ReLU())),
        attempt(lambda: module.add_module("forward", nn.ReLU())),
        attempt(lambda: module.add_module(3, nn.ReLU())),
        attempt(lambda: module.add_module("none", None)),
        attempt(lambda: module.register_parameter("forward", None)),
        attempt(lambda: module.register_parameter("seen", nn.Parameter(lib.zeros(1)))),
        attempt(lambda: module.register_parameter("p", lib.zeros(1))),
        attempt(lambda: module.register_parameter(3, None)),
        attempt(lambda: module.register_parameter("a.b", None)),
        attempt(lambda: module.register_buffer("scale", lib.zeros(1))),
        attempt(lambda: module.register_buffer("b", 3)),
        attempt(lambda: module.register_buffer("", None)),
        early(lambda: nn.Parameter(lib.zeros(1))),
        early(lambda: nn.ReLU()),
        early(lambda: 3),
        early(lambda: nn.Buffer(lib.zeros(1))),
        attempt(lambda: nn.Module(3)),
        attempt(lambda: nn.Module(a=3)),
        attempt(lambda: nn.Module()(3)),
        attempt(lambda: module.train(3)),
    ]


@scenario
def kinds_of_assignment(lib):
    nn, module = lib.nn, net(lib)
    module.scale = nn.Parameter(lib.zeros(3))
    module.first = None
    module.seen = None
    module.norm = nn.ReLU()
    module.plain = lib.zeros(1)
    module.plain = nn.Parameter(lib.zeros(1))
    module.count = nn.Buffer(lib.ones(2))
    module.cache = nn.Buffer(lib.ones(2), persistent=False)
    names = [list(module._parameters), list(module._buffers), list(module._modules)]
    module.count = lib.zeros(2)
    module.hidden = nn.Parameter(lib.zeros(1))
    names.append([list(module._parameters), list(module._buffers)])
    del module.scale, module.norm, module.count
    names.append([list(module._parameters), list(module._buffers), list(module._modules)])
    buffer = nn.Buffer(lib.zeros(1))
    return [
        names,
        list(module.state_dict()),
        "plain" in module.__dict__,
        isinstance(buffer, nn.Buffer),
        isinstance(lib.zeros(1), nn.Buffer),
        isinstance(buffer, lib.Tensor),
        repr(module),
    ]


@scenario
def paths(lib):
    module = lib.nn.Sequential(net(lib))
    module.set_submodule("0.norm", lib.nn.ReLU())
    module.set_submodule("0.new", lib.nn.Tanh())
    return [
        type(module.get_submodule("0.norm")).__name__,
        type(module.get_submodule("0.new")).__name__,
        module.get_submodule("") is module,
        module.get_parameter("0.first.weight"),
        module.get_buffer("0.seen"),
        *(
            attempt(action)
            for action in (
                lambda: module.get_submodule("0.x"),
                lambda: module.get_submodule("0.scale"),
                lambda: module.get_submodule("x.y"),
                lambda: module.get_parameter("0.seen"),
                lambda: module.get_parameter("0.x"),
                lambda: module.get_parameter("x.y"),
                lambda: module.get_buffer("0.scale"),
                lambda: module.get_buffer("0.x"),
                lambda: module.set_submodule("", lib.nn.ReLU()),
                lambda: module.set_submodule("0.other", lib.nn.ReLU(), strict=True),
                lambda: module.set_submodule("0.scale", lib.nn.ReLU()),
                lambda: module.set_submodule("0.norm", 3)[0],
                lambda: module.set_submodule("x.y", lib.nn.ReLU()),
            )
        ),
    ]


@scenario
def cooperative_init(lib):
    class Other:
        def __init__(self, a, b=0):
            self.sum = a + b

    class Both(lib.nn.Module, Other):
        call_super_init = True

    return Both(1, b=2).sum, Both(1).training


# ---- conversions -----------------------------------------------------------------------------------


@scenario
def conversions(lib):
    def kinds(module):
        return [str(t.dtype) for t in (*module.parameters(), *module.buffers())]

    module = net(lib)
    module.first.weight.grad = lib.ones(2, 2)
    facts = [kinds(module.half()), kinds(module.bfloat16()), kinds(module.double())]
    facts.append(str(module.first.weight.grad.dtype))
    facts += [kinds(module.to(lib.float32)), kinds(module.type(lib.float64))]
    facts.append(attempt(lambda: module.to(lib.int64))[0])
    empty = module.to_empty(device="cpu")
    facts += [empty is module, [tuple(p.shape) for p in empty.parameters()]]
    facts.append([p.requires_grad for p in module.requires_grad_(False).parameters()])
    shared = filled(lib, lib.nn.Linear(2, 2))
    weight = shared.weight
    shared.share_memory()
    facts += [state(shared), shared.weight is weight]
    module.zero_grad()
    return [*facts, module.first.weight.grad is None]


@scenario
def own_apply(lib):
    said = []

    class Loud(lib.nn.Linear):
        def _apply(self, fn, recurse=True):
            said.append("apply")
            return super()._apply(fn, recurse)

    lib.nn.Sequential(Loud(1, 1)).double()
    order = []
    lib.nn.Sequential(lib.nn.ReLU(), lib.nn.Sequential(lib.nn.Tanh())).apply(
        lambda m: order.append(type(m).__name__)
    )
    return said, order


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SCENARIOS)
def test_both_libraries_agree(name):
    agree(SCENARIOS[name])


@pytest.mark.parametrize("kind", ["half", "bfloat16"])
@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda n: n.Linear(4, 4), (2, 4)),
        (lambda n: n.Conv2d(4, 4, 3), (2, 4, 5, 5)),
        (lambda n: n.ConvTranspose1d(4, 4, 3), (2, 4, 5)),
        (lambda n: n.BatchNorm2d(4), (3, 4, 2, 2)),
        (lambda n: n.LayerNorm(4), (3, 4)),
        (lambda n: n.GroupNorm(2, 4), (3, 4, 5)),
        (lambda n: n.TransformerEncoderLayer(4, 2, 8, dropout=0.0), (3, 2, 4)),
        (lambda n: n.LSTM(4, 3), (3, 2, 4)),
    ],
)
def test_sixteen_bits_stay_sixteen_bits(make, shape, kind):
    theirs = make(torch.nn)
    values = {k: v.numpy() for k, v in theirs.state_dict().items()}
    data = torch.randn(shape, generator=torch.Generator().manual_seed(0)).numpy()
    found = []
    for lib in (dptrain, torch):
        module = make(lib.nn)
        module.load_state_dict({k: lib.tensor(v) for k, v in values.items()})
        getattr(module, kind)()
        x = getattr(lib.tensor(data), kind)().requires_grad_()
        result = module(x)
        outs = [result] if isinstance(result, lib.Tensor) else [result[0], *result[1]]
        sum((out.float() ** 2).sum() for out in outs).backward()
        tensors = [*outs, x.grad, *(p.grad for p in module.parameters()), *module.buffers()]
        found.append([(str(t.dtype).split(".")[-1], t.detach().float().numpy()) for t in tensors])
    ours, theirs = found
    assert [name for name, _ in ours] == [name for name, _ in theirs]
    tolerance = 0.02 if kind == "half" else 0.1
    for (_, a), (_, b) in zip(ours, theirs, strict=True):
        assert abs(a - b).max() <= tolerance * (1 + abs(b).max())
