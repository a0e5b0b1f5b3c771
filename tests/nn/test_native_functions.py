"""Layer functions under the package's own name, in PyTorch's native signatures."""

import numpy as np
import pytest

import dptrain

torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
pytestmark = pytest.mark.oracle


def x(m, *shape, low=-1.0):
    values = np.random.default_rng(len(shape)).uniform(low, 1, shape)
    return m.tensor(values, requires_grad=True)


def signs(m, n):
    return m.tensor([1.0, -1.0] * (n // 2), dtype=m.float64)


CASES = {
    "adaptive_max_pool1d": lambda m: m.adaptive_max_pool1d(x(m, 2, 3, 7), 3),
    "affine_grid_generator": lambda m: m.affine_grid_generator(x(m, 1, 2, 3), (1, 1, 3, 4), True),
    "batch_norm": lambda m: m.batch_norm(
        x(m, 4, 3), x(m, 3), x(m, 3), None, None, True, 0.1, 1e-5, False
    ),
    "bilinear": lambda m: m.bilinear(x(m, 2, 3), x(m, 2, 3), x(m, 4, 3, 3), x(m, 4)),
    "binary_cross_entropy_with_logits": lambda m: m.binary_cross_entropy_with_logits(
        x(m, 4), x(m, 4, low=0), x(m, 4, low=0.5).detach(), x(m, 4).detach() + 2, 2
    ),
    "channel_shuffle": lambda m: m.channel_shuffle(x(m, 1, 4, 2, 2), 2),
    "native_channel_shuffle": lambda m: m.native_channel_shuffle(x(m, 1, 4, 2, 2), 2),
    "constant_pad_nd": lambda m: m.constant_pad_nd(x(m, 2, 3), (1, -1), 2.5),
    "conv_tbc": lambda m: m.conv_tbc(x(m, 5, 2, 3), x(m, 2, 3, 4), x(m, 4), 1),
    "convolution": lambda m: m.convolution(
        x(m, 1, 4, 5), x(m, 2, 2, 3), None, [2], [1], [1], False, [0], 2
    ),
    "convolution transposed": lambda m: m.convolution(
        x(m, 1, 2, 3, 3), x(m, 2, 2, 2, 2), x(m, 2), [2, 2], [0, 1], [1, 1], True, [1, 0], 1
    ),
    "cosine_embedding_loss": lambda m: m.cosine_embedding_loss(
        x(m, 4, 3), x(m, 4, 3, low=0), signs(m, 4), 0.1, 0
    ),
    "cosine_similarity": lambda m: m.cosine_similarity(x(m, 4, 3), x(m, 4, 3, low=0), -1),
    "ctc_loss": lambda m: m.ctc_loss(
        x(m, 6, 2, 4).log_softmax(2), m.tensor([[1, 2], [3, 1]]), (6, 5), (2, 1), 0, 2
    ),
    "losses by default": lambda m: (
        m.margin_ranking_loss(x(m, 4), x(m, 4, low=0), signs(m, 4)),
        m.hinge_embedding_loss(x(m, 4), signs(m, 4)),
        m.kl_div(x(m, 4), x(m, 4, low=0)),
        m.binary_cross_entropy_with_logits(x(m, 4), x(m, 4, low=0)),
        m.cosine_embedding_loss(x(m, 4, 3), x(m, 4, 3, low=0), signs(m, 4)),
        m.triplet_margin_loss(x(m, 4, 3), x(m, 4, 3, low=0), x(m, 4, 3, low=0.5)),
        m.ctc_loss(x(m, 6, 2, 4).log_softmax(2), m.tensor([[1, 2], [3, 1]]), (6, 5), (2, 1)),
    ),
    "dropout": lambda m: m.dropout(x(m, 4), 0.5, False),
    "dropout of all": lambda m: m.dropout(x(m, 4), 1.0, True),
    "dropout_": lambda m: m.dropout_(x(m, 4) * 1, 1.0, True),
    "alpha_dropout": lambda m: m.alpha_dropout(x(m, 4), 0.5, train=False),
    "feature_dropout": lambda m: m.feature_dropout(x(m, 4, 2), 1.0, True),
    "feature_dropout of two": lambda m: m.feature_dropout(x(m, 4, 2, 3, 3), 0.0, True),
    "feature_alpha_dropout": lambda m: m.feature_alpha_dropout(x(m, 4), 0.5, False),
    "embedding": lambda m: m.embedding(x(m, 5, 3), m.tensor([[1, 4], [0, 1]]), 1),
    "grid_sampler": lambda m: m.grid_sampler(x(m, 1, 2, 3, 3), x(m, 1, 2, 2, 2), 2, 1, False),
    "grid_sampler_2d": lambda m: m.grid_sampler_2d(x(m, 1, 2, 3, 3), x(m, 1, 2, 2, 2), 0, 2, True),
    "group_norm": lambda m: m.group_norm(x(m, 2, 4, 3), 2, x(m, 4), eps=0.1),
    "hinge_embedding_loss": lambda m: m.hinge_embedding_loss(x(m, 4), signs(m, 4), 0.5, 2),
    "instance_norm": lambda m: m.instance_norm(
        x(m, 2, 3, 4), x(m, 3), x(m, 3), None, None, True, 0.1, 1e-5, False
    ),
    "kl_div": lambda m: m.kl_div(x(m, 2, 3), x(m, 2, 3, low=0), 1, log_target=True),
    "layer_norm": lambda m: m.layer_norm(x(m, 2, 3), (3,), x(m, 3)),
    "margin_ranking_loss": lambda m: m.margin_ranking_loss(
        x(m, 4), x(m, 4, low=0), signs(m, 4), 0.1, 0
    ),
    "margin_ranking_loss of integers": lambda m: m.margin_ranking_loss(
        m.tensor([1, 2]), m.tensor([3, 1]), m.tensor([1, -1])
    ),
    "max_pool1d_with_indices": lambda m: m.max_pool1d_with_indices(x(m, 2, 3, 7), 2),
    "pairwise_distance": lambda m: m.pairwise_distance(x(m, 4, 3), x(m, 4, 3, low=0), 1),
    "pixel_shuffle": lambda m: m.pixel_shuffle(x(m, 1, 4, 2, 2), 2),
    "pixel_unshuffle": lambda m: m.pixel_unshuffle(x(m, 1, 1, 4, 4), 2),
    "poisson_nll_loss": lambda m: m.poisson_nll_loss(
        x(m, 4), x(m, 4, low=0.5), True, True, 1e-8, 1
    ),
    "rms_norm": lambda m: m.rms_norm(x(m, 2, 3), (3,), x(m, 3)),
    "relu_": lambda m: m.relu_(x(m, 4) * 1),
    "rrelu": lambda m: m.rrelu(x(m, 4), 0.2, 0.4),
    "threshold_": lambda m: m.threshold_(x(m, 4) * 1, 0.1, 0.3),
    "triplet_margin_loss": lambda m: m.triplet_margin_loss(
        x(m, 4, 3), x(m, 4, 3, low=0), x(m, 4, 3, low=0.5), 1.0, 2.0, 1e-6, True, 2
    ),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore:.*rrelu")
def test_native_forms_equal_pytorch(name):
    ours, theirs = CASES[name](dptrain), CASES[name](torch)
    ours, theirs = (list(o) if isinstance(o, tuple) else [o] for o in (ours, theirs))
    assert len(ours) == len(theirs)
    for found, expected in zip(ours, theirs, strict=True):
        assert found.requires_grad == expected.requires_grad
        np.testing.assert_allclose(
            found.detach().numpy(), expected.detach().numpy(), rtol=1e-9, atol=1e-12
        )


def test_they_are_found_under_the_package_and_unknown_names_are_not():
    assert dptrain.layer_norm.__name__ == "layer_norm"
    with pytest.raises(AttributeError, match="no attribute 'no_such_layer'"):
        dptrain.no_such_layer  # noqa: B018


def test_a_reduction_is_a_number_here():
    with pytest.raises(ValueError, match="kl_div"):
        dptrain.kl_div(dptrain.ones(2), dptrain.ones(2), 3)
