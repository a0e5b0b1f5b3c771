"""Training under autocast with a scaler: the losses of PyTorch under its own, from the same weights."""

import numpy as np
import pytest

import dptrain

pytestmark = pytest.mark.oracle
STEPS = 10
#: Of a loss: products in 8 (bfloat16) or 11 (float16) bits, rounded in another order.
TOLERANCE = {"bfloat16": 2e-2, "float16": 4e-3}


def mlp(L):
    nn = L.nn
    return nn.Sequential(
        nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 5)
    )


def lenet(L):
    nn = L.nn
    return nn.Sequential(
        nn.Unflatten(1, (1, 12, 12)),
        nn.Conv2d(1, 6, 5, padding=2), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AvgPool2d(2),
        nn.Flatten(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 5),
    )  # fmt: skip


def transformer(L):
    nn = L.nn
    layer = nn.TransformerEncoderLayer(20, 4, dim_feedforward=32, dropout=0.0, batch_first=True)
    return nn.Sequential(
        nn.Unflatten(1, (6, 20)), layer, nn.LayerNorm(20), nn.Flatten(), nn.Linear(120, 5)
    )


def recurrent(L):
    nn = L.nn

    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(20, 16, batch_first=True)
            self.out = nn.Linear(16, 5)

        def forward(self, x):
            return self.out(self.lstm(x.unflatten(1, (6, 20)))[0][:, -1])

    return Last()


def train(L, net, x, y, kind, make_optimizer):
    optimizer = make_optimizer(L, net)
    scaler = L.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=4)
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        with L.autocast("cpu", dtype=getattr(L, kind)):
            out = net(L.tensor(x))
            loss = L.nn.functional.cross_entropy(out, L.tensor(y))
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    kinds = {
        str(out.dtype).split(".")[1],
        *(str(p.grad.dtype).split(".")[1] for p in net.parameters()),
    }
    return losses, scaler.get_scale(), kinds


CASES = {
    f"{build.__name__}-{kind}": (build, size, kind)
    for build, size in ((mlp, 20), (lenet, 144), (transformer, 120), (recurrent, 120))
    for kind in TOLERANCE
    if (build, kind) != (recurrent, "float16")  # PyTorch has no such LSTM on the CPU
}


@pytest.mark.parametrize("case", CASES)
def test_ten_steps_follow_pytorch(case):
    build, size, kind = CASES[case]
    torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
    torch.manual_seed(0)
    draw = np.random.default_rng(0)
    x = draw.standard_normal((16, size)).astype(np.float32)
    y = draw.integers(0, 5, 16)
    theirs, ours = build(torch), build(dptrain)
    ours.load_state_dict({k: dptrain.tensor(v.numpy()) for k, v in theirs.state_dict().items()})

    def optimizer(L, net):
        return L.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)

    expected = train(torch, theirs, x, y, kind, optimizer)
    found = train(dptrain, ours, x, y, kind, optimizer)
    assert found[1:] == expected[1:]
    assert found[0][-1] < 0.85 * found[0][0]
    np.testing.assert_allclose(found[0], expected[0], rtol=TOLERANCE[kind], atol=TOLERANCE[kind])
