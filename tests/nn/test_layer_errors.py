"""What bad use of layers gets: PyTorch's kind of error, with the words that help."""

import pytest

import dptrain
import dptrain.nn.functional as F

torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
pytestmark = [
    pytest.mark.oracle,
    pytest.mark.filterwarnings("ignore:.*batch_first was not True"),
    pytest.mark.filterwarnings("ignore:Default grid_sample"),
]

#: The call in either library, and words of our message.
CASES = [
    (lambda t, n, f: f.adaptive_avg_pool2d(t.ones(2, 2), 2), "Expected 3D"),
    (lambda t, n, f: f.adaptive_avg_pool2d(t.ones(2, 2), (2, 2)), "at least 3"),
    (lambda t, n, f: f.adaptive_max_pool2d(t.ones(2, 2), (2, 2)), "at least 3"),
    (lambda t, n, f: f.adaptive_avg_pool3d(t.ones(2, 2, 2), (2, None, 2)), "at least 4"),
    (lambda t, n, f: f.adaptive_max_pool3d(t.ones(2, 2, 2), (2, None, 2)), "at least 4"),
    (lambda t, n, f: f.max_pool1d(t.ones(0, 4), 1), "non-batch dimensions"),
    (lambda t, n, f: f.max_pool2d(t.ones(2, 0, 4, 4), 1), "non-batch dimensions"),
    (lambda t, n, f: f.avg_pool2d(t.ones(0, 4, 4), 1), "non-batch dimensions"),
    (lambda t, n, f: f.max_pool3d(t.ones(0, 1, 2, 10), 1), "non-batch dimensions"),
    (lambda t, n, f: f.avg_pool1d(t.ones(1, 1, 3).int(), 2), "not implemented"),
    (
        lambda t, n, f: f.interpolate(t.ones(1, 1, 3, 3).long(), 2, mode="bilinear"),
        "not implemented",
    ),
    (lambda t, n, f: f.interpolate(t.ones(1, 1, 3).long(), 2), "not implemented"),
    (lambda t, n, f: f.interpolate(t.ones(1, 1, 3), 2, antialias=True), "4-D"),
    (
        lambda t, n, f: f.interpolate(t.ones(1, 1, 3, 3), 2, mode="lanczos", align_corners=False),
        "requires antialias=True",
    ),
    (
        lambda t, n, f: f.grid_sample(t.ones(1, 1, 2, 2, 2), t.ones(1, 1, 1, 1, 3), "bicubic"),
        "only supports 4D",
    ),
    (lambda t, n, f: f.feature_alpha_dropout(t.ones(3), 0.5, True), "at least 2 dimensions"),
    (lambda t, n, f: f.conv1d(t.ones(1, 1, 4).bfloat16(), t.ones(1, 1, 2)), "should be the same"),
    (lambda t, n, f: f.conv1d(t.ones(1, 3, 5), t.ones(4, 2, 3)), "to have 2 channels"),
    (lambda t, n, f: f.conv1d(t.ones(3, 5, 2, 2), t.ones(4, 3, 3)), "Expected 2D"),
    (lambda t, n, f: f.conv1d(t.ones(1, 3, 2), t.ones(4, 3, 3)), "Kernel size can't be greater"),
    (lambda t, n, f: f.conv3d(t.ones(1, 1, 2, 2, 2), t.ones(1, 1, 3, 1, 1)), "2 x 2 x 2"),
    (lambda t, n, f: f.conv3d(t.ones(1, 1, 2, 2, 2), t.ones(1, 1, 1, 1)), "must be 5D"),
    (lambda t, n, f: f.conv1d(t.ones(1, 1, 4), t.ones(1, 1, 2), stride=0), "must be positive"),
    (
        lambda t, n, f: f.conv1d(t.ones(1, 1, 4), t.ones(1, 1, 2), stride=2, padding="same"),
        "not supported for strided",
    ),
    (lambda t, n, f: f.conv1d(t.ones(1, 1, 4), t.ones(1, 1, 2).double()), "should be the same"),
    (
        lambda t, n, f: f.conv_transpose1d(t.ones(1, 3, 4), t.ones(2, 1, 2)),
        "to have 2 channels",
    ),
    (
        lambda t, n, f: f.conv_transpose2d(
            t.ones(1, 1, 4, 4), t.ones(1, 1, 2, 2), output_padding=1
        ),
        "output padding must be smaller",
    ),
    (
        lambda t, n, f: f.conv_transpose1d(t.ones(1, 1, 1), t.ones(1, 1, 2), padding=1),
        "too small",
    ),
    (lambda t, n, f: n.Conv1d(3, 4, 2, groups=2), "in_channels must be divisible"),
    (lambda t, n, f: n.Conv3d(2, 4, 2, padding_mode="odd"), "padding_mode must be one of"),
    (lambda t, n, f: n.ConvTranspose2d(2, 2, 2, padding_mode="reflect"), 'Only "zeros"'),
    (
        lambda t, n, f: n.ConvTranspose1d(1, 1, 2)(t.ones(1, 1, 3), output_size=[9]),
        "valid sizes range from",
    ),
    (lambda t, n, f: f.max_pool1d(t.ones(1, 1, 2), 3), "too small"),
    (lambda t, n, f: f.max_pool1d(t.ones(1, 1, 4), 2, padding=2), "at most half of kernel size"),
    (lambda t, n, f: f.max_pool3d(t.ones(4, 4), 2), "Expected 4D"),
    (lambda t, n, f: f.avg_pool1d(t.ones(1, 1, 4), 2, 0), "greater than zero"),
    (lambda t, n, f: f.avg_pool3d(t.ones(1, 2, 2, 2), 2, divisor_override=0), "not zero"),
    (lambda t, n, f: f.adaptive_avg_pool2d(t.ones(1, 1, 0, 3), 2), "non-zero size"),
    (lambda t, n, f: f.adaptive_max_pool1d(t.ones(1, 1, 3), -1), "greater than or equal to 0"),
    (lambda t, n, f: n.FractionalMaxPool2d(2), "output size, or a pooling ratio"),
    (lambda t, n, f: n.FractionalMaxPool2d(2, output_ratio=1.5), "between 0 and 1"),
    (lambda t, n, f: f.fractional_max_pool2d(t.ones(1, 1, 3, 3), 3, 2), "too large"),
    (
        lambda t, n, f: f.max_unpool1d(t.ones(1, 2), t.tensor([[0, 9]]), 2),
        "invalid max index",
    ),
    (
        lambda t, n, f: f.max_unpool1d(t.ones(1, 2), t.tensor([[0, 1]]), 2, output_size=(9,)),
        "less than one stride away",
    ),
    (lambda t, n, f: f.unfold(t.ones(1, 1, 2, 2), 3), "sliding blocks"),
    (lambda t, n, f: f.fold(t.ones(1, 5, 4), 3, 2), "divisible by the product of kernel_size"),
    (lambda t, n, f: f.fold(t.ones(1, 4, 5), 3, 2), "number of sliding blocks"),
    (lambda t, n, f: f.pixel_shuffle(t.ones(1, 3, 2, 2), 2), "divisible by the square"),
    (lambda t, n, f: f.pixel_unshuffle(t.ones(1, 3, 3, 2), 2), "divisible by downscale_factor"),
    (lambda t, n, f: n.ChannelShuffle(3)(t.ones(1, 4, 2, 2)), "divisible by groups"),
    (lambda t, n, f: n.BatchNorm2d(3)(t.ones(2, 3, 4)), "expected 4D input (got 3D input)"),
    (lambda t, n, f: n.BatchNorm1d(3)(t.ones(1, 3)), "more than 1 value per channel"),
    (lambda t, n, f: n.BatchNorm2d(3)(t.ones(2, 4, 2, 2)), "running_mean should contain 4"),
    (lambda t, n, f: f.batch_norm(t.ones(2, 3), None, None), "running_mean and running_var"),
    (lambda t, n, f: n.InstanceNorm2d(3)(t.ones(2, 3)), "expected 3D or 4D input"),
    (lambda t, n, f: f.instance_norm(t.ones(2, 3, 1)), "more than 1 spatial element"),
    (lambda t, n, f: n.LayerNorm(4)(t.ones(2, 3)), "expected input with shape [*, 4]"),
    (lambda t, n, f: f.layer_norm(t.ones(2, 3), [3], t.ones(2)), "same shape as normalized_shape"),
    (lambda t, n, f: f.rms_norm(t.ones(2, 3), []), "at least 1-dimensional"),
    (lambda t, n, f: n.GroupNorm(2, 3), "must be divisible by num_groups"),
    (lambda t, n, f: f.group_norm(t.ones(2, 3, 2), 2), "divisible by num_groups"),
    (lambda t, n, f: f.local_response_norm(t.ones(2, 3), 2), "3D or higher"),
    (lambda t, n, f: f.dropout1d(t.ones(3), 2.0), "between 0 and 1"),
    (lambda t, n, f: n.AlphaDropout(-0.1), "between 0 and 1"),
    (lambda t, n, f: f.embedding(t.tensor([5]), t.ones(3, 2)), "out of range"),
    (lambda t, n, f: f.embedding(t.ones(2), t.ones(3, 2)), "scalar types: Long, Int"),
    (lambda t, n, f: n.Embedding(3, 2, padding_idx=3), "within num_embeddings"),
    (lambda t, n, f: n.Embedding.from_pretrained(t.ones(3)), "2-dimensional"),
    (lambda t, n, f: f.embedding_bag(t.tensor([1]), t.ones(3, 2)), "offsets has to be"),
    (
        lambda t, n, f: f.embedding_bag(t.tensor([[1]]), t.ones(3, 2), mode="min"),
        "one of sum, mean or max",
    ),
    (
        lambda t, n, f: f.embedding_bag(
            t.tensor([[1]]), t.ones(3, 2), per_sample_weights=t.ones(1, 1)
        ),
        "only supported for mode='sum'",
    ),
    (lambda t, n, f: f.bilinear(t.ones(2, 3), t.ones(2, 4), t.ones(1, 3, 3)), "input2 size"),
    (lambda t, n, f: f.pad(t.ones(2, 3), (1,)), "divisible by 2"),
    (lambda t, n, f: f.pad(t.ones(3), (1, 1, 1, 1)), "two times the input dimension"),
    (lambda t, n, f: f.pad(t.ones(1, 3), (3, 0), "reflect"), "less than the corresponding"),
    (lambda t, n, f: f.pad(t.ones(1, 3), (4, 0), "circular"), "more than once"),
    (lambda t, n, f: f.pad(t.ones(1, 3), (1, 0), "odd"), "mode odd"),
    (lambda t, n, f: f.pad(t.ones(1, 3), (1, 0), "reflect", 2.0), "value argument"),
    (lambda t, n, f: f.pad(t.ones(3), (1, 0), "reflect"), "padding"),
    (lambda t, n, f: f.interpolate(t.ones(1, 1, 3)), "either size or scale_factor"),
    (lambda t, n, f: f.interpolate(t.ones(1, 1, 3), 2, 2), "only one of size or scale_factor"),
    (lambda t, n, f: f.interpolate(t.ones(1, 1, 3), 2, mode="bilinear"), "got bilinear"),
    (lambda t, n, f: f.interpolate(t.ones(1, 1, 3), 2, align_corners=True), "align_corners"),
    (lambda t, n, f: f.interpolate(t.ones(1, 1, 3), (2, 2)), "same number of spatial dimensions"),
    (lambda t, n, f: f.grid_sample(t.ones(1, 1, 2, 2), t.ones(2, 1, 1, 2)), "same batch size"),
    (
        lambda t, n, f: f.grid_sample(t.ones(1, 1, 2, 2), t.ones(1, 1, 1, 2), "odd"),
        "expected mode to be",
    ),
    (lambda t, n, f: n.RNN(2, 3, nonlinearity="odd"), "Unknown nonlinearity 'odd'"),
    (lambda t, n, f: n.LSTM(2, 3, proj_size=3), "smaller than hidden_size"),
    (lambda t, n, f: n.GRU(2, 0), "hidden_size must be greater than zero"),
    (lambda t, n, f: n.GRU(2, 3)(t.ones(4, 1, 5)), "Expected 2, got 5"),
    (lambda t, n, f: n.GRU(2, 3)(t.ones(4, 1, 2), t.ones(1, 2, 3)), "Expected hidden size"),
    (lambda t, n, f: n.RNN(2, 3)(t.ones(4)), "2D or 3D"),
    (lambda t, n, f: n.RNNCell(2, 3)(t.ones(1, 1, 2)), "1D or 2D"),
    (lambda t, n, f: n.RNNCell(2, 3)(t.ones(1, 3)), "inconsistent input_size"),
    (
        lambda t, n, f: n.utils.rnn.pack_padded_sequence(t.ones(3, 2, 1), [1, 3]),
        "sorted in decreasing order",
    ),
    (
        lambda t, n, f: n.utils.rnn.pack_padded_sequence(t.ones(3, 2, 1), [3, 0]),
        "greater than 0",
    ),
    (lambda t, n, f: n.utils.rnn.pack_padded_sequence(t.ones(3, 2, 1), [3]), "batch_size=2"),
    (lambda t, n, f: n.MultiheadAttention(5, 2), "divisible by num_heads"),
    (
        lambda t, n, f: n.MultiheadAttention(4, 2)(*[t.ones(3, 1, 6)] * 3),
        "embedding dimension of 4",
    ),
    (
        lambda t, n, f: n.MultiheadAttention(4, 2)(*[t.ones(3, 1, 4)] * 3, attn_mask=t.ones(2, 2)),
        "2D attn_mask",
    ),
    (
        lambda t, n, f: f.scaled_dot_product_attention(
            *[t.ones(1, 2, 3)] * 3, attn_mask=t.ones(2, 2), is_causal=True
        ),
        "is_causal=True",
    ),
    (
        lambda t, n, f: f.scaled_dot_product_attention(
            t.ones(2, 3), t.ones(2, 3).double(), t.ones(2, 3)
        ),
        "same dtype",
    ),
    (lambda t, n, f: n.TransformerEncoderLayer(4, 2, activation="odd"), "relu/gelu"),
    (
        lambda t, n, f: n.Transformer(4, 2, 1, 1, 4)(t.ones(2, 1, 4), t.ones(2, 2, 4)),
        "batch number of src and tgt",
    ),
    (lambda t, n, f: n.Unflatten(1, 3), "unflattened_size"),
    (lambda t, n, f: n.ModuleDict(3), "iterable of key/value pairs"),
    (lambda t, n, f: n.ParameterList(t.ones(2)), "called with an iterable"),
    (lambda t, n, f: n.ParameterDict({3: t.ones(2)}), "not a string"),
    (lambda t, n, f: n.ParameterList()(1), "should not be called"),
    (lambda t, n, f: f.max_pool1d([1.0, 2.0], 2), "must be Tensor, not list"),
    (lambda t, n, f: f.conv2d([1.0, 2.0], t.ones(1, 1, 2, 2)), "must be Tensor, not list"),
    (lambda t, n, f: f.pixel_shuffle([1.0], 2), "must be Tensor, not list"),
    (lambda t, n, f: f.adaptive_avg_pool1d(t.ones(1, 1, 4).long(), 2), "not implemented"),
    (lambda t, n, f: f.interpolate(t.ones(1, 1, 4).long(), 2, mode="linear"), "not implemented"),
]


def raised_by(call, *args):
    try:
        call(*args)
    except Exception as error:
        return error
    return None


@pytest.mark.parametrize("n", range(len(CASES)))
def test_errors_are_of_the_kind_of_pytorch_and_say_what_is_wrong(n):
    call, words = CASES[n]
    theirs = raised_by(call, torch, torch.nn, torch.nn.functional)
    ours = raised_by(call, dptrain, dptrain.nn, F)
    assert theirs is not None
    assert type(ours) is type(theirs), (repr(ours), repr(theirs))
    assert words in str(ours)


@pytest.mark.parametrize(
    "call",
    [
        lambda: F.embedding(
            dptrain.tensor([0]), dptrain.ones(2, 2, requires_grad=True), sparse=True
        ),
        lambda: dptrain.nn.EmbeddingBag(2, 2, sparse=True),
    ],
)
def test_what_is_not_supported_says_so(call):
    with pytest.raises(ValueError, match="not supported"):
        call()
