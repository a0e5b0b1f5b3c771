"""`add_graph` draws what autograd recorded, and leaves the model as it was."""

import event_files
import numpy as np
import pytest

import dptrain
import dptrain.nn.functional as F
from dptrain import nn
from dptrain.comm import run_ranks, set_default
from dptrain.tensorboard import SummaryWriter
from dptrain.tensorboard.graph import graph
from dptrain.utils.checkpoint import checkpoint
from dptrain.vision.models import squeezenet1_1

pytest.importorskip("tensorboardX", reason="tensorboardX is not installed (extra `tensorboard`)")


def drawn(model, inputs):
    return {node.name: node for node in graph(model, inputs).node}


def shapes(node):
    return [[dim.size for dim in s.dim] for s in node.attr["_output_shapes"].list.shape]


def ancestors(nodes, name):
    found, waiting = set(), [name]
    while waiting:
        name = waiting.pop().partition(":")[0]
        if name not in found:
            found.add(name)
            waiting += nodes[name].input
    return found


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(inplace=True), nn.Dropout(0.5)
        )
        self.fc = nn.Linear(3 * 6 * 6, 4)

    def forward(self, image):
        image -= 0.5
        return F.log_softmax(self.fc(self.features(image).flatten(1)), 1)


def test_nodes_stand_under_their_module_with_their_shapes():
    nodes = drawn(Net(), dptrain.rand(2, 1, 8, 8))
    conv = nodes["Net/Sequential[features]/Conv2d[0]/Convolution"]
    assert conv.op == "Convolution"
    assert list(conv.input) == [
        "Net/Sub",
        "Net/Sequential[features]/Conv2d[0]/weight",
        "Net/Sequential[features]/Conv2d[0]/bias",
    ]
    assert shapes(conv) == [[2, 3, 6, 6]]
    assert conv.attr["dtype"].s == b"float32"
    assert conv.attr["module"].s == b"Conv2d(1, 3, kernel_size=(3, 3), stride=(1, 1))"
    assert shapes(nodes["Net/Linear[fc]/weight"]) == [[4, 108]]
    assert list(nodes["Net/Sub"].input) == ["input/image"]
    assert shapes(nodes["input/image"]) == [[2, 1, 8, 8]]
    assert list(nodes["output/output"].input) == ["Net/LogSoftmax"]
    assert ancestors(nodes, "output/output") == nodes.keys()


def test_the_model_and_the_run_are_as_they_were():
    model, image = Net(), dptrain.rand(2, 1, 8, 8)
    model.fc.eval()
    model.fc.bias.requires_grad_(False)
    kept, state = {k: v.clone() for k, v in model.state_dict().items()}, dptrain.get_rng_state()
    before = image.clone()
    with dptrain.no_grad():
        nodes = drawn(model, image)
    assert "Net/Linear[fc]/bias" in nodes
    assert dptrain.equal(image, before)
    assert not image.requires_grad
    assert all(dptrain.equal(v, kept[k]) for k, v in model.state_dict().items())
    assert dptrain.equal(dptrain.get_rng_state(), state)
    assert (model.training, model.fc.training, model.fc.bias.requires_grad) == (True, False, False)
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_forward_that_fails_leaves_the_model_as_it_was():
    model = Net()
    model.fc.bias.requires_grad_(False)
    with pytest.raises(RuntimeError):
        graph(model, dptrain.rand(2, 1, 9, 9))
    assert model.training
    assert not model.fc.bias.requires_grad
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_integers_buffers_and_frozen_parameters_are_found_where_backward_keeps_them():
    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(10, 4)
            self.register_buffer("mask", dptrain.rand(3, 4))

        def forward(self, words, scale):
            return self.embedding(words) * self.mask * scale["by"][0]

    model = Words().requires_grad_(False)
    nodes = drawn(model, (dptrain.tensor([[1, 2, 3]]), {"by": [dptrain.rand(1)]}))
    assert ancestors(nodes, "output/output") == {
        "output/output",
        "Words/Mul_1",
        "input/scale.by.0",
        "Words/Mul",
        "Words/mask",
        "Words/Embedding[embedding]/Embedding",
        "Words/Embedding[embedding]/weight",
        "input/words",
    }


def test_each_output_of_a_node_and_of_the_model():
    class Halves(nn.Module):
        def forward(self, *xs):
            upper, lower = dptrain.topk(xs[0], 2)
            a, b = dptrain.unbind(xs[1])
            return {"sum": (a + b, upper), "index": lower}

    nodes = drawn(Halves(), [dptrain.rand(3), dptrain.rand(2, 5)])
    assert set(nodes) >= {"input/xs.0", "input/xs.1", "output/output.sum.0", "output/output.index"}
    add = nodes["Halves/Add"]
    assert len(set(add.input)) == 2
    assert "input/xs.1" in ancestors(nodes, "Halves/Add")
    assert shapes(nodes["output/output.index"]) == [[2]]
    assert not nodes["output/output.index"].input


def test_a_module_that_is_used_twice_and_a_parameter_that_is_shared():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(3, 3), nn.Linear(3, 3)
            self.two.weight = self.one.weight

        def forward(self, x):
            return self.two(self.one(self.one(x)))

    nodes = drawn(Twice(), dptrain.rand(1, 3))
    weight = "Twice/Linear[one]/weight"
    users = [n for n, node in nodes.items() if weight in node.input]
    assert users == [
        "Twice/Linear[one]/Linear",
        "Twice/Linear[one]/Linear_1",
        "Twice/Linear[two]/Linear",
    ]


def test_what_wraps_a_model_is_not_drawn_and_asks_no_other_rank(tmp_path):
    def rank(communicator):
        set_default(communicator)
        model = nn.parallel.DistributedDataParallel(Net())
        with SummaryWriter(tmp_path) as writer:
            writer.add_graph(model, dptrain.rand(2, 1, 8, 8))
        return communicator.all_gather_object(communicator.rank)

    assert run_ranks(2, rank) == [[0, 1]] * 2
    (event,) = [e for e in event_files.events(tmp_path)["."] if e.graph_def]
    assert event_files.accumulated(tmp_path).Graph().node[0].name == "input/image"
    assert len(event.graph_def) > 0
    names = [n.name for n in graph(nn.DataParallel(Net()), dptrain.rand(2, 1, 8, 8)).node]
    assert "Net/Linear[fc]/Linear" in names


class Square(dptrain.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, grad):
        return 2 * ctx.saved_tensors[0] * grad


class InPlace(nn.Module):
    def forward(self, x):
        y = dptrain.zeros(2, 3)
        y[:, 0] = x[:, 0]
        y[:, 1:] += Square.apply(x)[:, 1:]
        return y


class Checkpointed(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])

    def forward(self, x):
        return self.layers[1](checkpoint(self.layers[0], x, use_reentrant=False))


@pytest.mark.parametrize(
    ("model", "shapes"),
    [
        (InPlace(), [(2, 3)]),
        (Checkpointed(), [(2, 3)]),
        (nn.GRU(4, 3, 2, bidirectional=True), [(3, 2, 4)]),
        (nn.Transformer(8, 2, 1, 1, 16), [(3, 1, 8), (2, 1, 8)]),
        (squeezenet1_1(num_classes=4), [(1, 3, 32, 32)]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_graphs_of_all_kinds_hang_together(model, shapes):
    nodes = graph(model, tuple(dptrain.rand(shape) for shape in shapes)).node
    seen = set()
    for node in nodes:
        assert node.name not in seen
        assert all(name.partition(":")[0] in seen for name in node.input), node.name
        seen.add(node.name)
    by_name = {node.name: node for node in nodes}
    inputs = {name for name in by_name if name.startswith("input/")}
    assert len(inputs) == len(shapes)
    for name in by_name:
        if name.startswith("output/"):
            assert inputs & ancestors(by_name, name)


def test_on_another_device(host_devices):
    host_devices(2)
    nodes = drawn(Net().to("cpu:1"), dptrain.rand(2, 1, 8, 8, device="cpu:1"))
    assert ancestors(nodes, "output/output") == nodes.keys()


def test_long_graphs_are_drawn_without_recursion():
    class Long(nn.Module):
        def forward(self, x):
            for _ in range(3000):
                x = x + 1
            return x

    nodes = drawn(Long(), dptrain.rand(1))
    assert len(nodes) == 3002
    assert len(ancestors(nodes, "output/output")) == 3002


def test_what_cannot_be_drawn_is_an_error(tmp_path):
    class Nothing(nn.Module):
        def forward(self, x):
            with dptrain.no_grad():
                return x + 1

    with pytest.raises(RuntimeError, match="forward of Nothing recorded nothing"):
        graph(Nothing(), dptrain.rand(1))
    with pytest.raises(TypeError, match=r"must be a dptrain.nn.Module, got function"):
        graph(lambda x: x, dptrain.rand(1))
    with pytest.raises(TypeError, match="argument"):
        graph(Net())


def test_verbose_prints_the_nodes(capsys):
    graph(nn.Linear(2, 2), dptrain.rand(1, 2), verbose=True)
    assert (
        "Linear/Linear = Linear(input/input, Linear/weight, Linear/bias)" in capsys.readouterr().out
    )


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore:.torch.jit.trace:DeprecationWarning")
def test_the_same_layers_as_pytorch(tmp_path):
    """PyTorch's graph of the same model has the same leaf modules with parameters of the same shapes."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed (extra `oracle`)")
    event_files.reader()
    from torch.utils.tensorboard._pytorch_graph import graph as their_graph

    theirs = torch.nn.Sequential(
        torch.nn.Conv2d(1, 3, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(108, 4)
    )
    ours = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 4))
    expected, _ = their_graph(theirs, torch.rand(2, 1, 8, 8), use_strict_trace=True)

    def scopes(nodes):
        return {
            n.name.rpartition("/")[0] for n in nodes if n.op != "prim::GetAttr" and "[" in n.name
        }

    found = graph(ours, dptrain.rand(2, 1, 8, 8))
    assert scopes(found.node) == scopes(expected.node)
    sizes = {n.name: shapes(n) for n in found.node if n.op == "Parameter"}
    assert sizes == {
        f"Sequential/{layer}/{name}": [list(p.shape)]
        for layer, module in (("Conv2d[0]", theirs[0]), ("Linear[3]", theirs[3]))
        for name, p in module.named_parameters()
    }
    np.testing.assert_equal(found.versions.producer, expected.versions.producer)
