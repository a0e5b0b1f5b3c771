"""Recurrent layers, attention and transformers against PyTorch."""

import numpy as np
import pytest
from layer_oracle import agree, convert, flatten, same_state, same_text_and_state, spread_agrees

import dptrain

torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
pytestmark = [
    pytest.mark.oracle,
    pytest.mark.filterwarnings("ignore:.*batch_first was not True"),
    pytest.mark.filterwarnings("ignore:.*enable_nested_tensor is True"),
    pytest.mark.filterwarnings("ignore:.*nested tensors is in prototype stage"),
    pytest.mark.filterwarnings("ignore:.*mismatched src_key_padding_mask and mask"),
    pytest.mark.filterwarnings("ignore:.*mismatched key_padding_mask and attn_mask"),
]
RNG = np.random.default_rng(12)
LIBRARIES = (dptrain, torch)


def x(*shape):
    return RNG.standard_normal(shape)


SEQUENCE = x(5, 3, 4)  # (L, N, features)
PADDING = np.array([[False] * 5, [False] * 3 + [True] * 2, [False] * 4 + [True]])
CAUSAL = np.triu(np.ones((5, 5), bool), 1)
MASK = np.where(CAUSAL, -np.inf, 0.0)

LAYERS = {
    "RNN": (lambda n: n.RNN(4, 3), [SEQUENCE], {}),
    "RNN relu": (
        lambda n: n.RNN(4, 3, 2, nonlinearity="relu", bias=False, batch_first=True),
        [SEQUENCE, x(2, 5, 3)],
        {},
    ),
    "RNN unbatched": (lambda n: n.RNN(4, 3, bidirectional=True), [x(5, 4), x(2, 3)], {}),
    "LSTM": (lambda n: n.LSTM(4, 3), [SEQUENCE], {}),
    "LSTM deep": (
        lambda n: n.LSTM(4, 3, 2, bidirectional=True, batch_first=True),
        [SEQUENCE, (x(4, 5, 3), x(4, 5, 3))],
        {},
    ),
    "LSTM projected": (
        lambda n: n.LSTM(4, 3, 2, proj_size=2, bidirectional=True, bias=False),
        [SEQUENCE],
        {},
    ),
    "GRU": (lambda n: n.GRU(4, 3, 2), [SEQUENCE, x(2, 3, 3)], {}),
    "GRU both": (lambda n: n.GRU(4, 3, bidirectional=True, bias=False), [SEQUENCE], {}),
    "RNNCell": (lambda n: n.RNNCell(4, 3), [x(2, 4), x(2, 3)], {}),
    "RNNCell relu": (lambda n: n.RNNCell(4, 3, nonlinearity="relu"), [x(4)], {}),
    "LSTMCell": (lambda n: n.LSTMCell(4, 3), [x(2, 4), (x(2, 3), x(2, 3))], {}),
    "LSTMCell unbatched": (lambda n: n.LSTMCell(4, 3, bias=False), [x(4), (x(3), x(3))], {}),
    "GRUCell": (lambda n: n.GRUCell(4, 3), [x(2, 4)], {}),
    "Attention": (lambda n: n.MultiheadAttention(4, 2), [SEQUENCE, x(6, 3, 4), x(6, 3, 4)], {}),
    "Attention sizes": (
        lambda n: n.MultiheadAttention(4, 2, kdim=3, vdim=5, batch_first=True),
        [x(3, 5, 4), x(3, 6, 3), x(3, 6, 5)],
        {"average_attn_weights": False},
    ),
    "Attention extras": (
        lambda n: n.MultiheadAttention(4, 2, add_bias_kv=True, add_zero_attn=True),
        [SEQUENCE, SEQUENCE + 1, SEQUENCE * 2, PADDING],
        {},
    ),
    "Attention masks": (
        lambda n: n.MultiheadAttention(4, 2, bias=False),
        [SEQUENCE, SEQUENCE + 1, SEQUENCE * 2, PADDING, False, CAUSAL],
        {},
    ),
    "Attention by head": (
        lambda n: n.MultiheadAttention(4, 2),
        [SEQUENCE, SEQUENCE + 1, SEQUENCE * 2, None, True, x(6, 5, 5)],
        {},
    ),
    "Attention causal": (
        lambda n: n.MultiheadAttention(4, 2),
        [SEQUENCE, SEQUENCE + 1, SEQUENCE * 2, None, False, CAUSAL],
        {"is_causal": True},
    ),
    "Attention unbatched": (
        lambda n: n.MultiheadAttention(4, 2),
        [x(5, 4), x(6, 4), x(6, 4)],
        {},
    ),
    "EncoderLayer": (
        lambda n: n.TransformerEncoderLayer(4, 2, 6, dropout=0.0),
        [SEQUENCE, CAUSAL, PADDING],
        {},
    ),
    "EncoderLayer first": (
        lambda n: n.TransformerEncoderLayer(
            4, 2, 6, dropout=0.0, norm_first=True, batch_first=True, bias=False
        ),
        [SEQUENCE],
        {},
    ),
    "DecoderLayer": (
        lambda n: n.TransformerDecoderLayer(4, 2, 6, dropout=0.0),
        [SEQUENCE, x(6, 3, 4), CAUSAL],
        {},
    ),
    "DecoderLayer first": (
        lambda n: n.TransformerDecoderLayer(4, 2, 6, 0.0, "relu", norm_first=True),
        [SEQUENCE, x(6, 3, 4)],
        {},
    ),
    "Encoder": (
        lambda n: n.TransformerEncoder(
            n.TransformerEncoderLayer(4, 2, 6, 0.0), 2, n.LayerNorm(4), enable_nested_tensor=False
        ),
        [SEQUENCE],
        {},
    ),
    "Decoder": (
        lambda n: n.TransformerDecoder(n.TransformerDecoderLayer(4, 2, 6, 0.0), 2),
        [SEQUENCE, x(6, 3, 4)],
        {},
    ),
    "Transformer": (
        lambda n: n.Transformer(4, 2, 1, 2, 6, 0.0),
        [x(6, 3, 4), SEQUENCE],
        {},
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_text_keys_and_shapes_are_those_of_pytorch(name):
    same_text_and_state(LAYERS[name][0])


@pytest.mark.parametrize("name", LAYERS)
def test_outputs_and_gradients_are_those_of_pytorch(name):
    make, args, kwargs = LAYERS[name]
    # PyTorch's evaluation mode has paths of its own that differ in what they return for masks.
    agree(make, args, kwargs, modes=(True,))


def test_causal_mask_is_recognised():
    make = LAYERS["Transformer"][0]
    ours, theirs = make(dptrain.nn).double(), make(torch.nn).double()
    same_state(ours, theirs)
    ends = []
    for lib, net in zip(LIBRARIES, (ours, theirs), strict=True):
        mask = lib.nn.Transformer.generate_square_subsequent_mask(5, dtype=lib.float64)
        source, target = lib.tensor(LAYERS["Transformer"][1][0]), lib.tensor(SEQUENCE)
        ends.append((mask.numpy(), net(source, target, tgt_mask=mask).detach().numpy()))
    for got, expected in zip(*ends, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
@pytest.mark.parametrize("ordered", [True, False])
def test_packed_sequences_equal_pytorch(kind, ordered):
    lengths = [5, 3, 3, 1] if ordered else [3, 5, 1, 3]
    value, start = x(4, 5, 4), x(4, 4, 3)
    results = []
    nets = [getattr(lib.nn, kind)(4, 3, 2, bidirectional=True).double() for lib in LIBRARIES]
    same_state(*nets)
    for lib, net in zip(LIBRARIES, nets, strict=True):
        rnn = lib.nn.utils.rnn
        (inputs,) = convert(lib, [value])
        packed = rnn.pack_padded_sequence(inputs, lengths, batch_first=True, enforce_sorted=ordered)
        hidden = lib.tensor(start)
        out, last = net(packed, (hidden, hidden * 2) if kind == "LSTM" else hidden)
        padded, sizes = rnn.pad_packed_sequence(
            out, batch_first=True, padding_value=-1.0, total_length=6
        )
        sum((part * part).sum() for part in [padded, *flatten(last)]).backward()
        found = [packed.data, packed.batch_sizes, padded, sizes, *flatten(last), inputs.grad]
        found += [p.grad for p in net.parameters()]
        results.append([f.detach().numpy() for f in found])
    for got, expected in zip(*results, strict=True):
        assert got.shape == expected.shape
        np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-10)


def test_padding_and_packing_lists_equal_pytorch():
    values = [x(3, 2), x(1, 2), x(4, 2)]
    ends = []
    for lib in LIBRARIES:
        rnn = lib.nn.utils.rnn
        parts = [lib.tensor(v) for v in values]
        packed = rnn.pack_sequence(parts, enforce_sorted=False)
        found = [
            rnn.pad_sequence(parts),
            rnn.pad_sequence(parts, batch_first=True, padding_value=2.0, padding_side="left"),
            packed.data,
            packed.batch_sizes,
            packed.sorted_indices,
            packed.unsorted_indices,
            *rnn.unpack_sequence(packed),
            *rnn.unpad_sequence(rnn.pad_sequence(parts), lib.tensor([3, 1, 4])),
        ]
        ends.append([f.numpy() for f in found])
    for got, expected in zip(*ends, strict=True):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(
    "make",
    [
        lambda n: n.LSTM(20, 30),
        lambda n: n.GRUCell(20, 30),
        lambda n: n.MultiheadAttention(32, 4, add_bias_kv=True),
    ],
    ids=["LSTM", "GRUCell", "MultiheadAttention"],
)
def test_initial_values_have_the_spread_of_pytorch(make):
    torch.manual_seed(0)
    dptrain.manual_seed(0)
    spread_agrees(make)


def test_dropout_between_layers_only():
    net = dptrain.nn.LSTM(4, 3, 2, dropout=1.0).double()
    value = dptrain.tensor(SEQUENCE)
    out, _ = net(value)
    alone = dptrain.nn.LSTM(3, 3).double()
    alone.load_state_dict(
        {k.replace("_l1", "_l0"): v for k, v in net.state_dict().items() if "_l1" in k}
    )
    np.testing.assert_allclose(
        out.detach().numpy(), alone(dptrain.zeros(5, 3, 3).double())[0].detach().numpy()
    )
