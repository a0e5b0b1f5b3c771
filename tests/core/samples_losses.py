"""One line of samples per loss. They are compositions: their names are dotted, not in the registry."""

from sample_args import Call, c, call, i, pos, x

_PAIR = [call(x(3, 4), x(3, 4)), *[call(x(3, 4), x(3, 4), reduction=r) for r in ("sum", "none")]]
_PROBABILITY = {"low": 0.1, "high": 0.9}


def p(*shape):
    """Probabilities."""
    return x(*shape, **_PROBABILITY)


SAMPLES: dict[str, list[Call]] = {
    "nn.functional.binary_cross_entropy": [
        call(p(3, 4), p(3, 4)),
        call(p(3, 4), c(3, 4, low=0.0, high=1.0), c(4, low=0.1), reduction="sum"),
        call(p(3, 4), p(3, 4), reduction="none"),
        call(c(2, low=0.0, high=0.0), c(2, low=1.0, high=1.0)),
    ],
    "nn.functional.binary_cross_entropy_with_logits": [
        call(x(3, 4), p(3, 4)),
        call(x(3, 4), p(3, 4), c(4), reduction="sum"),
        call(x(3, 4), p(3, 4), None, None, None, "none", c(4, low=0.1)),
        call(x(3, 4), p(3, 4), c(3, 4), None, None, "mean", c(4, low=0.1)),
        call(x(4, low=-90.0, high=90.0), c(4, low=0.0, high=1.0)),
    ],
    "nn.functional.cosine_embedding_loss": [
        call(x(3, 4), x(3, 4), c(3, low=1.0, high=1.0)),
        call(x(3, 4), x(3, 4), c(3, low=-1.0, high=-1.0), margin=-0.9, reduction="none"),
        call(x(4), x(4), c(low=1.0, high=1.0), reduction="sum"),
    ],
    "nn.functional.gaussian_nll_loss": [
        call(x(3, 4), x(3, 4), pos(3, 4)),
        call(x(3, 4), x(3, 4), pos(3), full=True, reduction="sum"),
        call(x(3, 4), x(3, 4), pos(3, 1), reduction="none"),
        call(x(3, 4), x(3, 4), 0.7),
    ],
    "nn.functional.hinge_embedding_loss": [
        call(x(3), c(3, low=1.0, high=1.0)),
        call(x(3, 4), c(3, 4, low=-1.0, high=-1.0), margin=0.5, reduction="none"),
        call(x(3, 4), c(3, 4), reduction="sum"),
    ],
    "nn.functional.huber_loss": [*_PAIR, call(x(3, 4), x(3, 4), delta=0.7)],
    "nn.functional.kl_div": [
        call(x(3, 4), p(3, 4), reduction="batchmean"),
        call(x(3, 4), p(3, 4), reduction="sum"),
        call(x(3, 4), x(3, 4), reduction="none", log_target=True),
        call(x(3, 4), c(3, 4, low=0.0, high=0.0), reduction="none"),
    ],
    "nn.functional.l1_loss": [*_PAIR, call(x(3, 4), x(3, 4), None, None, "mean", c(3, 4, low=0.1))],
    "nn.functional.margin_ranking_loss": [
        call(x(3), x(3), c(3)),
        call(x(3, 4), x(3, 4), c(3, 4), 0.4, reduction="none"),
    ],
    "nn.functional.mse_loss": _PAIR,
    "nn.functional.multi_margin_loss": [
        call(x(3, 4), i(3, high=4)),
        call(x(3, 4), i(3, high=4), p=2, margin=0.7, reduction="none"),
        call(x(3, 4), i(3, high=4), 1, 1.0, c(4, low=0.1), reduction="sum"),
        call(x(4), i(high=4), reduction="none"),
        call(x(4), i(1, high=4), reduction="none"),
    ],
    "nn.functional.multilabel_margin_loss": [
        call(x(3, 4), i(3, 4, low=-1, high=4)),
        call(x(3, 4), i(3, 4, low=-1, high=4), reduction="none"),
        call(x(4), i(4, low=-1, high=4), reduction="sum"),
        call(x(4), i(4, low=-1, high=4), reduction="none"),
    ],
    "nn.functional.multilabel_soft_margin_loss": [
        call(x(3, 4), p(3, 4)),
        call(x(3, 4), p(3, 4), c(4, low=0.1), reduction="none"),
    ],
    "nn.functional.poisson_nll_loss": [
        call(x(3, 4), pos(3, 4)),
        call(pos(3, 4), pos(3, 4), log_input=False, reduction="sum"),
        call(x(3, 4), c(3, 4, low=0.0, high=5.0), full=True, reduction="none"),
    ],
    "nn.functional.smooth_l1_loss": [
        *_PAIR,
        call(x(3, 4), x(3, 4), beta=0.7),
        call(x(3, 4), x(3, 4), beta=0.0),
    ],
    "nn.functional.soft_margin_loss": [
        call(x(3, 4), c(3, 4)),
        call(x(3, 4), c(3, 4), reduction="none"),
    ],
    "nn.functional.triplet_margin_loss": [
        call(x(3, 4), x(3, 4), x(3, 4)),
        call(x(3, 4), x(3, 4), x(3, 4), margin=2.0, p=1, swap=True, reduction="none"),
        call(x(4), x(4), x(4), reduction="sum"),
    ],
    "nn.functional.triplet_margin_with_distance_loss": [
        call(x(3, 4), x(3, 4), x(3, 4), margin=3.0, swap=True),
    ],
}
