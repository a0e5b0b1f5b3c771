"""Layers, losses and what goes with them on a virtual device: the bits of the first one, elsewhere."""

import warnings

import numpy as np
import pytest
from on_devices import leaves, moved, same_everywhere, weighted

import dptrain
from dptrain import nn
from dptrain.nn import functional as F
from dptrain.nn.utils import parametrizations, rnn


@pytest.fixture(autouse=True)
def four_devices(host_devices):
    host_devices(4)


def uses(layer, args, kwargs, training):
    """Outputs, gradients and state of a call."""
    layer.train(training)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        outs = leaves(layer(*args, **kwargs))
    total = weighted(outs)
    if isinstance(total, dptrain.Tensor):
        total.backward()
    held = [*leaves(args), *leaves(kwargs), *layer.parameters()]
    return outs + [t.grad for t in held if t.grad is not None] + list(layer.state_dict().values())


# ---- every module --------------------------------------------------------------------------------

RNG = np.random.default_rng(5)


def x(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def pos(*shape):
    return RNG.uniform(0.1, 0.9, shape).astype(np.float32)


def i(*shape, high=4):
    return RNG.integers(0, high, shape)


def signs(*shape):
    return RNG.choice([-1.0, 1.0], shape).astype(np.float32)


ROWS, LINE, IMAGE, VOLUME = x(5, 6), x(2, 4, 8), x(2, 4, 8, 6), x(2, 4, 5, 6, 7)
BY_RANK = {1: LINE, 2: IMAGE, 3: VOLUME}
STEPS = x(5, 3, 6)


def packed(place):
    values = dptrain.tensor(STEPS, device=place)
    return rnn.pack_padded_sequence(values, [2, 5, 3], enforce_sorted=False)


#: Module -> (arguments of the constructor, arguments of the call); a list of such for several forms.
MODULES = {
    "AdaptiveLogSoftmaxWithLoss": [((6, 10, [3, 7]), (ROWS, i(5, high=10)))],
    "BCELoss": [((), (pos(4, 3), pos(4, 3))), ((pos(3),), (pos(4, 3), pos(4, 3)))],
    "BCEWithLogitsLoss": [((), (x(4, 3), pos(4, 3))), ((None, None, None, "mean", pos(3)), (x(4, 3), pos(4, 3)))],
    "Bilinear": [((6, 4, 3), (ROWS, x(5, 4)))],
    "CTCLoss": [((), (x(7, 2, 4), i(2, 3) % 3 + 1, (7, 5), (3, 2)))],
    "ChannelShuffle": [((2,), (IMAGE,))],
    "CosineEmbeddingLoss": [((0.2,), (ROWS, x(5, 6), signs(5)))],
    "CosineSimilarity": [((), (ROWS, x(5, 6)))],
    "CrossEntropyLoss": [((), (ROWS, i(5))), ((pos(6), None, 2, None, "mean", 0.1), (ROWS, i(5))), ((), (ROWS, pos(5, 6)))],
    "CrossMapLRN2d": [((3,), (IMAGE,))],
    "Embedding": [((4, 3, 1), (i(2, 5),)), ((4, 3, None, 1.0, 2.0, True), (i(2, 5),))],
    "EmbeddingBag": [((4, 3, None, 2.0, False, mode), (i(2, 5),)) for mode in ("sum", "mean", "max")]
    + [((4, 3, None, 2.0, True, "mean", False, None, False, 1), (i(6), np.array([0, 2, 2])))],
    "Flatten": [((), (IMAGE,))],
    "Fold": [(((4, 5), 2), (x(2, 12, 12),))],
    "FractionalMaxPool2d": [((2, 3), (IMAGE,)), ((2, None, 0.5), (IMAGE,))],
    "FractionalMaxPool3d": [((2, 3), (VOLUME,))],
    "GRU": [((6, 4, 2), (STEPS,)), ((6, 4, 1, True, False, 0.0, True), ("packed",))],
    "GRUCell": [((6, 4), (ROWS,))],
    "GaussianNLLLoss": [((), (ROWS, x(5, 6), pos(5, 6))), ((), (ROWS, x(5, 6), 0.5))],
    "GroupNorm": [((2, 4), (IMAGE,))],
    "HingeEmbeddingLoss": [((), (ROWS, signs(5, 6)))],
    "KLDivLoss": [((None, None, "batchmean"), (ROWS, pos(5, 6))), ((None, None, "mean", True), (ROWS, x(5, 6)))],
    "LSTM": [((6, 4, 2, True, True, 0.3, True, 2), (STEPS,)), ((6, 4), ("packed",))],
    "LSTMCell": [((6, 4), (ROWS,))],
    "LayerNorm": [((6,), (ROWS,)), (([8, 6], 1e-5, False), (IMAGE,))],
    "RMSNorm": [((6,), (ROWS,))],
    "Linear": [((6, 3), (ROWS,)), ((6, 3, False), (ROWS,))],
    "LazyLinear": [((3,), (ROWS,))],
    "LocalResponseNorm": [((2,), (IMAGE,))],
    "MarginRankingLoss": [((0.5,), (x(5), x(5), signs(5)))],
    "MultiLabelMarginLoss": [((), (ROWS, np.array([[1, 4, -1, 0, 2, 3]] * 5)))],
    "MultiLabelSoftMarginLoss": [((), (ROWS, i(5, 6, high=2).astype(np.float32)))],
    "MultiMarginLoss": [((), (ROWS, i(5))), ((2, 0.5, pos(6)), (ROWS, i(5)))],
    "MultiheadAttention": [((6, 2), (STEPS, STEPS, STEPS)), ((6, 3, 0.2, True, True, True), (STEPS, STEPS, STEPS))],
    "NLLLoss": [((), (ROWS, i(5))), ((pos(6), None, 2), (ROWS, i(5))), ((None, None, 2), (ROWS, i(5)))],
    "NLLLoss2d": [((), (IMAGE, i(2, 8, 6)))],
    "PReLU": [((), (IMAGE,)), ((4,), (IMAGE,))],
    "PairwiseDistance": [((), (ROWS, x(5, 6))), ((1.0,), (ROWS, x(5, 6)))],
    "PixelShuffle": [((2,), (IMAGE,))],
    "PixelUnshuffle": [((2,), (IMAGE,))],
    "PoissonNLLLoss": [((True, True), (ROWS, pos(5, 6) * 4))],
    "RNN": [((6, 4, 1, "relu"), (STEPS,)), ((6, 4), ("packed",))],
    "RNNCell": [((6, 4), (ROWS,))],
    "SoftMarginLoss": [((), (ROWS, signs(5, 6)))],
    "Softmax2d": [((), (IMAGE,))],
    "Threshold": [((0.1, 20.0), (IMAGE,))],
    "TransformerDecoderLayer": [((6, 2, 8), (STEPS, x(4, 3, 6)))],
    "TransformerEncoderLayer": [((6, 3, 8, 0.1, "gelu"), (STEPS,))],
    "Transformer": [((6, 2, 1, 1, 8), (STEPS, x(4, 3, 6)))],
    "TripletMarginLoss": [((1.0, 2.0, 1e-6, True), (ROWS, x(5, 6), x(5, 6)))],
    "TripletMarginWithDistanceLoss": [((), (ROWS, x(5, 6), x(5, 6)))],
    "Unflatten": [((1, (2, 3)), (ROWS,))],
    "Unfold": [((3, 1, 1, 2), (IMAGE,))],
    "Upsample": [
        ((None, 1.5, mode), (IMAGE,)) for mode in ("nearest", "bilinear", "bicubic")
    ] + [((5, None, "linear", True), (LINE,)), (((3, 7, 9), None, "trilinear"), (VOLUME,))],
    "UpsamplingBilinear2d": [((5,), (IMAGE,))],
    "UpsamplingNearest2d": [((None, 2), (IMAGE,))],
    "Identity": [((), (ROWS,))],
}  # fmt: skip
for _name in (
    *("CELU", "ELU", "GELU", "GLU", "Hardshrink", "Hardsigmoid", "Hardswish", "Hardtanh"),
    *("LeakyReLU", "LogSigmoid", "Mish", "RReLU", "ReLU", "ReLU6", "SELU", "SiLU", "Sigmoid"),
    *("Softplus", "Softshrink", "Softsign", "Tanh", "Tanhshrink"),
):
    MODULES[_name] = [((), (IMAGE,))]
for _name in ("LogSoftmax", "Softmax", "Softmin"):
    MODULES[_name] = [((1,), (IMAGE,))]
for _name in ("HuberLoss", "L1Loss", "MSELoss", "SmoothL1Loss"):
    MODULES[_name] = [((), (ROWS, x(5, 6)))]
for _name in ("AlphaDropout", "Dropout", "FeatureAlphaDropout"):
    MODULES[_name] = [((0.4,), (IMAGE,))]
for _d, _input in BY_RANK.items():
    for _name, _args in {
        "AdaptiveAvgPool": (3,), "AdaptiveMaxPool": (3, True), "AvgPool": (2, 2, 1, True, False),
        "BatchNorm": (4,), "InstanceNorm": (4, 1e-5, 0.1, True, True), "LazyBatchNorm": (),
        "LazyInstanceNorm": (), "Conv": (4, 6, 3, 2, 1, 1, 2), "ConvTranspose": (4, 6, 3, 2, 1, 1, 2),
        "LazyConv": (3, 2), "LazyConvTranspose": (3, 2), "Dropout": (0.4,), "LPPool": (2, 2),
        "MaxPool": (3, 2, 1, 1, True), "CircularPad": (2,), "ConstantPad": (2, 0.5),
        "ReflectionPad": (2,), "ReplicationPad": (2,), "ZeroPad": (1,),
    }.items():  # fmt: skip
        MODULES[f"{_name}{_d}d"] = [(_args, (_input,))]
    for _mode in ("circular", "reflect"):
        _options = (4, 3, 3, 1, 1, 1, 1, False, _mode)
        MODULES[f"Conv{_d}d"].append((_options, (_input,)))

#: Modules without a computation of their own, or whose computation the parts above make.
_BASES = {
    *("Module", "ModuleDict", "ModuleList", "ParameterDict", "ParameterList", "Sequential"),
    *("RNNBase", "RNNCellBase", "TransformerDecoder", "TransformerEncoder"),
    *("MaxUnpool1d", "MaxUnpool2d", "MaxUnpool3d"),  # below: they need positions
}


def test_every_module_is_in_the_table():
    found = {n for n, v in vars(nn).items() if isinstance(v, type) and issubclass(v, nn.Module)}
    assert found - _BASES == set(MODULES)


@pytest.mark.filterwarnings(
    "ignore:`NLLLoss2d`", "ignore:Initializing zero-element", "ignore:.*batch_first was not"
)
@pytest.mark.parametrize("name", MODULES)
def test_module_stays_on_its_device(name):
    for made, called in MODULES[name]:
        for training in (True, False):

            def run(place, made=made, called=called, training=training):
                options = [dptrain.tensor(a) if isinstance(a, np.ndarray) else a for a in made]
                layer = getattr(nn, name)(*options)
                args = [packed(place) if isinstance(a, str) else moved(a, place) for a in called]
                found = uses(layer.to(place), args, {}, training)
                for reduction in ("none", "sum") if hasattr(layer, "reduction") else ():
                    layer.reduction = reduction
                    found += leaves(layer(*args))
                return found

            same_everywhere(run)


def test_unpooling_finds_the_places_again():
    for rank, values in BY_RANK.items():

        def run(place, rank=rank, values=values):
            input = moved(values, place)
            pool = getattr(nn, f"MaxPool{rank}d")(2, return_indices=True)
            out, where = pool(input)
            back = getattr(nn, f"MaxUnpool{rank}d")(2)(out, where, output_size=values.shape)
            weighted([back]).backward()
            return [out, where, back, input.grad]

        same_everywhere(run)


def test_an_encoder_reads_masks_of_its_device():
    def run(place):
        layer = nn.TransformerEncoderLayer(6, 2, 8, batch_first=True)
        encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).to(place)
        causal = nn.Transformer.generate_square_subsequent_mask(3, device=place)
        padded = dptrain.tensor([[False, False, True]] * 5, device=place)
        out = encoder(moved(STEPS, place), causal)
        other = encoder(moved(STEPS, place), src_key_padding_mask=padded)
        weighted([out, other]).backward()
        return [causal, out, other, *(p.grad for p in encoder.parameters())]

    same_everywhere(run)


# ---- functions -----------------------------------------------------------------------------------


PLACES_IN_IMAGE = RNG.uniform(-1.2, 1.2, (2, 3, 5, 2)).astype(np.float32)
HEADS = x(2, 3, 5, 4)

#: Functions of the arguments that follow, on a device.
FUNCTIONS = {
    **{
        f"grid_sample {mode} {padding}": (lambda a, g, m=mode, p=padding: F.grid_sample(a, g, m, p, False), (IMAGE, PLACES_IN_IMAGE))
        for mode in ("bilinear", "nearest", "bicubic")
        for padding in ("zeros", "border", "reflection")
    },
    "affine_grid": (lambda t: F.affine_grid(t, (2, 1, 3, 4), True), (x(2, 2, 3),)),
    "affine_grid 3d": (lambda t: F.affine_grid(t, (2, 1, 3, 4, 1), False), (x(2, 3, 4),)),
    **{
        f"interpolate {mode} antialias": (lambda a, m=mode: F.interpolate(a, (3, 9), mode=m, antialias=True), (IMAGE,))
        for mode in ("bilinear", "bicubic")
    },
    "interpolate area": (lambda a: F.interpolate(a, (3, 4), mode="area"), (IMAGE,)),
    "interpolate nearest-exact": (lambda a: F.interpolate(a, (3, 7), mode="nearest-exact"), (IMAGE,)),
    "interpolate bytes": (
        lambda a: F.interpolate(a, (3, 4), mode="bilinear", antialias=True),
        (i(1, 2, 8, 6, high=255).astype(np.uint8),),
    ),
    "one_hot": (lambda a: F.one_hot(a, 5), (i(3, 2),)),
    "gumbel_softmax": (lambda a: F.gumbel_softmax(a, 0.5), (ROWS,)),
    "gumbel_softmax hard": (lambda a: F.gumbel_softmax(a, hard=True), (ROWS,)),
    "attention causal": (lambda q: F.scaled_dot_product_attention(q, q, q, is_causal=True), (HEADS,)),
    "attention bool": (
        lambda q, m: F.scaled_dot_product_attention(q, q, q, m.bool()), (HEADS, np.tri(5, k=-1, dtype=np.int64)),
    ),
    "attention numbers, dropped": (lambda q, m: F.scaled_dot_product_attention(q, q, q, m, 0.3), (HEADS, x(5, 5))),
    "embedding": (lambda w, n: F.embedding(n, w, 2, scale_grad_by_freq=True), (x(4, 3), i(3, 3))),
    "embedding_bag weights": (lambda w, n, f: F.embedding_bag(n, w, mode="sum", per_sample_weights=f), (x(4, 3), i(3, 3), x(3, 3))),
    "embedding_bag offsets": (
        lambda w, n, o: F.embedding_bag(n, w, o, mode="max", include_last_offset=True, padding_idx=1),
        (x(4, 3), i(7), np.array([0, 2, 5, 7])),
    ),
    "ctc_loss lengths of the host": (
        lambda a, t: F.ctc_loss(a, t, dptrain.tensor([6, 7]), dptrain.tensor([2, 3]), zero_infinity=True),
        (x(7, 2, 4), i(5) % 3 + 1),
    ),
    "ctc_loss lengths beside": (lambda a, t, n, m: F.ctc_loss(a, t, n, m, reduction="none"), (x(7, 2, 4), i(2, 3) % 3 + 1, np.array([7, 6]), np.array([3, 1]))),
    "cross_entropy spots": (lambda a, t: F.cross_entropy(a, t, ignore_index=1, label_smoothing=0.2), (IMAGE, i(2, 8, 6))),
    "nll_loss mean": (lambda a, t: F.nll_loss(a, t, ignore_index=1), (IMAGE, i(2, 8, 6))),
    "binary weights": (lambda a, t, w: F.binary_cross_entropy(a, t, w), (pos(4, 3), pos(4, 3), pos(4, 3))),
    "normalize": (lambda a: F.normalize(a, dim=0), (ROWS,)),
    "pad": (lambda a: F.pad(a, (1, -1, 0, 2), value=3.0), (IMAGE,)),
    "batch_norm without state": (lambda a: F.batch_norm(a, None, None, training=True), (IMAGE,)),
    "pdist": (F.pdist, (ROWS,)),
    "feature dropout": (lambda a: F.feature_alpha_dropout(a, 0.3, True), (IMAGE,)),
    "lp_pool": (lambda a: F.lp_pool2d(a, 2.0, 2), (IMAGE,)),
    "conv weight gradient": (lambda a, g: nn.grad.conv2d_weight(a, (3, 4, 3, 3), g), (IMAGE, x(2, 3, 6, 4))),
    "conv input gradient": (lambda w, g: nn.grad.conv2d_input((2, 4, 8, 6), w, g), (x(3, 4, 3, 3), x(2, 3, 6, 4))),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*align_corners")
@pytest.mark.parametrize("name", FUNCTIONS)
def test_function_stays_on_its_device(name):
    function, given = FUNCTIONS[name]

    def run(place):
        args = [moved(a, place) for a in given]
        outs = leaves(function(*args))
        total = weighted(outs)
        if isinstance(total, dptrain.Tensor):
            total.backward()
        return outs + [a.grad for a in args if a.grad is not None]

    same_everywhere(run)


# ---- parametrizations, initial values, sequences -------------------------------------------------


@pytest.mark.parametrize(
    "register",
    [
        lambda m: parametrizations.weight_norm(m),
        lambda m: parametrizations.spectral_norm(m, n_power_iterations=2),
        lambda m: parametrizations.orthogonal(m),
        lambda m: parametrizations.orthogonal(m, orthogonal_map="cayley"),
        lambda m: parametrizations.orthogonal(m, orthogonal_map="matrix_exp"),
        lambda m: parametrizations.orthogonal(
            m, orthogonal_map="householder", use_trivialization=False
        ),
        lambda m: nn.utils.weight_norm(m),
        lambda m: nn.utils.spectral_norm(m),
    ],
)
@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize("before", [True, False])
def test_parametrized_weight_stays_on_its_device(register, before):
    def run(place):
        layer = nn.Linear(6, 4)
        layer = register(layer.to(place)) if before else register(layer).to(place)
        outs = uses(layer, [moved(ROWS, place)], {}, True)
        with dptrain.no_grad():
            if hasattr(layer, "parametrizations"):
                layer.weight = layer.weight.clone()
        return [*outs, layer.weight]

    same_everywhere(run)


INITS = {
    "uniform_": (), "normal_": (), "constant_": (2.5,), "ones_": (), "zeros_": (), "xavier_uniform_": (),
    "xavier_normal_": (), "kaiming_uniform_": (), "kaiming_normal_": (), "orthogonal_": (1.5,),
    "sparse_": (0.4,), "trunc_normal_": (), "eye_": (), "dirac_": (2,),
}  # fmt: skip


@pytest.mark.parametrize("name", INITS)
def test_initial_values_are_those_of_the_host(name):
    shape = (4, 6, 3) if name == "dirac_" else (4, 6)
    same_everywhere(
        lambda place: getattr(nn.init, name)(dptrain.empty(shape, device=place), *INITS[name])
    )


def test_packed_sequences_stay_on_their_device():
    def run(place):
        values = moved(STEPS, place)
        sequence = rnn.pack_padded_sequence(values, dptrain.tensor([2, 5, 3]), enforce_sorted=False)
        assert str(sequence.batch_sizes.device) == "cpu:0"
        padded, lengths = rnn.pad_packed_sequence(sequence, padding_value=2.0, total_length=6)
        assert lengths.tolist() == [2, 5, 3]
        assert str(lengths.device) == "cpu:0"
        parts = rnn.unpack_sequence(sequence)
        weighted([padded, *parts]).backward()
        again = rnn.pad_sequence(parts, batch_first=True, padding_side="left")
        return [
            sequence.data, sequence.sorted_indices, sequence.unsorted_indices, padded, *parts, again,
            values.grad, rnn.pack_sequence(parts, enforce_sorted=False).data,
        ]  # fmt: skip

    same_everywhere(run)


def test_a_packed_sequence_moves():
    moved_to = packed("cpu:0").to("cpu:3")
    assert str(moved_to.data.device) == str(moved_to.sorted_indices.device) == "cpu:3"
    assert str(moved_to.batch_sizes.device) == "cpu:0"
