"""What eager code computes later, or on the way of something else, is computed at once in a recording."""

import pytest
from training import F, assert_same, batches, classes, classifier_step, nn, normal

import dptrain
from dptrain.core.pending import Pending


class Net(nn.Module):
    """Every way in which results are pending: batch norm, its ReLU, its sum, a ReLU's pool."""

    def __init__(self):
        super().__init__()
        self.stem, self.first = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.conv, self.second = nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.plain, self.head = nn.Conv2d(16, 16, 3, stride=2), nn.Linear(16, 4)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.first(self.stem(x))), 3, 2, 1)
        x = F.relu(self.second(self.conv(x)) + x)
        x = F.max_pool2d(F.relu(self.plain(x)), 2)
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("size", [16, 32])
def test_results_that_are_pending_in_eager_code(size):
    def make():
        model = Net()
        optimizer = dptrain.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        return model, classifier_step(model, optimizer)

    assert_same(make, batches(7, normal(4, 3, size, size), classes(4, 4)))


def _pending(seed):
    dptrain.manual_seed(seed)
    layer = nn.Conv2d(3, 8, 3)
    made = nn.BatchNorm2d(8)(layer(dptrain.rand(2, 3, 12, 12)))
    assert type(made) is Pending
    return made, layer


def test_an_argument_that_is_pending():
    def function(x):
        return (x.relu() * 2).sum((2, 3))

    def left_behind(f, seed):
        given, layer = _pending(seed)
        result = f(given)
        result.square().sum().backward()
        return result.detach().numpy().tobytes(), layer.weight.grad.numpy().tobytes()

    compiled = dptrain.compile(function)
    for seed in range(7):
        assert left_behind(compiled, seed) == left_behind(function, seed)
    assert dptrain.compiler.explain(compiled).replays == 4


@pytest.mark.parametrize("relu", [False, True])
def test_a_tensor_in_reach_that_is_pending(relu):
    def function_of(held):
        return lambda x: (held.relu() if relu else held).sum() + x

    function, compiled = (function_of(_pending(0)[0]) for _ in range(2))
    compiled, x = dptrain.compile(compiled), dptrain.ones(2)
    with pytest.warns(UserWarning, match="was made before the call"):
        found = [compiled(x) for _ in range(4)]
    assert all(dptrain.equal(f, function(x)) for f in found)
