"""Layers under autocast: PyTorch's types, values and gradients within what 16 bits can say."""

import numpy as np
import pytest

import dptrain

torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("ignore::UserWarning")]


def after_conv(*layers):
    return lambda L: L.nn.Sequential(
        L.nn.Conv1d(5, 4, 3), *[getattr(L.nn, n)(*a) for n, a in layers]
    )


def layer(name, *args, **kwargs):
    return lambda L: getattr(L.nn, name)(*args, **kwargs)


def one(L, m, x):
    return m(x)


def packed(L, m, x):
    return m(L.nn.utils.rnn.pack_padded_sequence(x, [5, 4, 2], batch_first=True))[0].data


def first(L, m, x):
    return m(x[0])


def logits(loss):
    return lambda L, m, x: loss(L, L.nn.functional, m(x), x)


LINEAR = layer("Linear", 8, 8)
ATTENTION = layer("MultiheadAttention", 8, 2, batch_first=True)
#: Name -> (how the module is made, how it is called with x of shape (3, 5, 8)).
CASES = {
    "attention with weights": (ATTENTION, lambda L, m, x: m(x, x, x)),
    "attention": (ATTENTION, lambda L, m, x: m(x, x, x, need_weights=False)[0]),
    "attention of three": (layer("MultiheadAttention", 8, 2), lambda L, m, x: m(x, x + 1, x * 2)),
    "attention, number mask": (
        ATTENTION, lambda L, m, x: m(x, x, x, attn_mask=L.ones(5, 5), need_weights=False)[0]),
    "attention, padding": (
        layer("MultiheadAttention", 8, 2, batch_first=True, add_bias_kv=True, add_zero_attn=True),
        lambda L, m, x: m(x, x, x, key_padding_mask=x[:, :, 0] > 1)),
    "encoder layer": (layer("TransformerEncoderLayer", 8, 2, 16, 0.0, batch_first=True), one),
    "decoder layer": (
        layer("TransformerDecoderLayer", 8, 2, 16, 0.0, batch_first=True), lambda L, m, x: m(x, x)),
    "lstm": (layer("LSTM", 8, 6, 2, batch_first=True, bidirectional=True), one),
    "lstm, 16-bit input": (layer("LSTM", 8, 6), lambda L, m, x: m(x.bfloat16())),
    "lstm, projected": (layer("LSTM", 8, 6, proj_size=3), one),
    "lstm, packed": (layer("LSTM", 8, 6, batch_first=True), packed),
    "lstm, states": (
        layer("LSTM", 8, 6, batch_first=True),
        lambda L, m, x: m(x, (L.ones(1, 3, 6), L.ones(1, 3, 6)))),
    "gru": (layer("GRU", 8, 6, 2), one),
    "gru, 16-bit input": (layer("GRU", 8, 6), lambda L, m, x: m(x.bfloat16())),
    "rnn": (layer("RNN", 8, 6), one),
    "lstm cell": (layer("LSTMCell", 8, 6), first),
    "gru cell": (layer("GRUCell", 8, 6), first),
    "rnn cell": (layer("RNNCell", 8, 6), first),
    "bilinear": (layer("Bilinear", 8, 8, 4), lambda L, m, x: m(x, x)),
    "embedding": (layer("Embedding", 8, 4), lambda L, m, x: m(L.tensor([1, 2]))),
    "batch norm": (after_conv(("BatchNorm1d", (4,))), one),
    "batch norm, eval": (lambda L: after_conv(("BatchNorm1d", (4,)))(L).eval(), one),
    "instance norm": (after_conv(("InstanceNorm1d", (4, 1e-5, 0.1, True))), one),
    "group norm": (after_conv(("GroupNorm", (2, 4))), one),
    "layer norm": (after_conv(("LayerNorm", (6,))), one),
    "rms norm": (after_conv(("RMSNorm", (6,))), one),
    "local response norm": (after_conv(("LocalResponseNorm", (2,))), one),
    "prelu": (after_conv(("PReLU", (4,))), one),
    "prelu alone": (layer("PReLU", 5), one),
    "reflecting convolution": (layer("Conv1d", 5, 4, 3, padding=1, padding_mode="reflect"), one),
    "circular convolution": (layer("Conv1d", 5, 4, 3, padding=1, padding_mode="circular"), one),
    "transposed convolution": (layer("ConvTranspose1d", 5, 4, 3), one),
    "upsampling": (after_conv(("Upsample", (None, 2, "linear"))), one),
    "adaptive pooling": (after_conv(("AdaptiveAvgPool1d", (2,))), one),
    "weight norm": (lambda L: L.nn.utils.parametrizations.weight_norm(L.nn.Linear(8, 4)), one),
    "joined": (LINEAR, lambda L, m, x: L.cat([m(x), x])),
    "added": (LINEAR, lambda L, m, x: m(x) + x),
    "chosen": (LINEAR, lambda L, m, x: L.where(x > 0, m(x), x)),
    "cross entropy": (
        LINEAR, logits(lambda L, F, y, x: F.cross_entropy(y.flatten(0, 1), L.arange(15) % 8))),
    "cross entropy, smoothed": (
        LINEAR,
        logits(lambda L, F, y, x: F.cross_entropy(y[0], x[0].softmax(-1), label_smoothing=0.1))),
    "binary cross entropy": (
        LINEAR, logits(lambda L, F, y, x: F.binary_cross_entropy(y.sigmoid(), (x > 0).float()))),
    "mean square": (LINEAR, logits(lambda L, F, y, x: F.mse_loss(y, x.bfloat16()))),
    "gaussian": (LINEAR, logits(lambda L, F, y, x: F.gaussian_nll_loss(y, x, L.ones(3, 5, 8)))),
    "float64": (LINEAR, lambda L, m, x: x.double() @ x.double().transpose(1, 2)),
}  # fmt: skip


def leaves(value):
    return [t for v in value for t in leaves(v)] if isinstance(value, (tuple, list)) else [value]


def run(L, module, call, values):
    x = L.tensor(values, requires_grad=True)
    with L.autocast("cpu", dtype=L.bfloat16):
        outs = [t for t in leaves(call(L, module, x)) if t is not None]
    sum(t.double().sin().sum() for t in outs if t.requires_grad).backward()
    grads = [p.grad for p in (*module.parameters(), x) if p.grad is not None]
    kinds = [str(t.dtype).split(".")[1] for t in (*outs, *grads)]
    return kinds, [t.detach().double().numpy() for t in (*outs, *grads)]


@pytest.mark.parametrize("name", CASES)
def test_layers_have_pytorchs_types_and_values(name):
    make, call = CASES[name]
    torch.manual_seed(0)
    theirs, ours = make(torch), make(dptrain)
    ours.load_state_dict({k: dptrain.tensor(v.numpy()) for k, v in theirs.state_dict().items()})
    values = np.random.default_rng(0).standard_normal((3, 5, 8)).astype(np.float32)
    kinds, expected = run(torch, theirs, call, values)
    found_kinds, found = run(dptrain, ours, call, values)
    assert found_kinds == kinds
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=0.05 * max(1.0, np.abs(b).max()))
