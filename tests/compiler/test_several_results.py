"""Modules with several results that are replayed by themselves."""

import dataclasses

import numpy as np
import pytest
from replayed import AHEAD
from training import F, nn, normal, state

import dptrain
from dptrain.compiler import explain
from dptrain.nn import replays


class LanguageModel(nn.Module):
    """Returns logits and, given targets, the loss, as small language models are often written."""

    def __init__(self):
        super().__init__()
        self.parts = nn.ModuleDict({"rows": nn.Embedding(7, 4), "drop": nn.Dropout(0.1)})
        self.head = nn.Linear(4, 7, bias=False)
        self.config = Config()

    def forward(self, idx, targets=None):
        _, length = idx.size()
        if length > self.config.length:
            raise ValueError(f"{length} is too long")
        at = dptrain.arange(0, length, dtype=dptrain.long, device=idx.device)
        logits = self.head(self.parts.drop(self.parts.rows(idx) + self.parts.rows(at)))
        loss = None
        if targets is not None:
            loss = F.cross_entropy(
                logits.view(-1, logits.size(-1)), targets.view(-1), ignore_index=-1
            )
        return logits, loss


@dataclasses.dataclass
class Config:
    length: int = 5


class Autoencoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.down, self.up = nn.Linear(6, 4), nn.Linear(2, 6)

    def forward(self, x):
        mean, log_variance = self.down(x).chunk(2, dim=1)
        code = mean + dptrain.randn_like(mean) * dptrain.exp(log_variance / 2)
        return dptrain.sigmoid(self.up(code)), mean, log_variance


def trained(make, arguments, losses):
    """What a model and its gradients are after a call and a backward pass for each of the losses."""
    results = []
    for enabled in (False, True):
        replays.state.enabled = enabled
        dptrain.manual_seed(0)
        model = make()
        optimizer = dptrain.optim.SGD(model.parameters(), lr=0.1)
        seen = []
        for loss in losses:
            optimizer.zero_grad()
            out = model(*arguments)
            value = loss(*out)
            value.backward()
            seen += [
                value.item(),
                [None if p.grad is None else p.grad.tolist() for p in model.parameters()],
            ]
            optimizer.step()
        results.append([seen, state(model), dptrain.rand(2).tolist()])
    assert results[1] == results[0]
    return explain(model)


TOKENS = dptrain.from_numpy(np.random.default_rng(0).integers(0, 7, (3, 5)))


def test_a_loss_among_the_results():
    report = trained(LanguageModel, (TOKENS, TOKENS), [lambda logits, loss: loss] * 12)
    assert report.replays == 12 - AHEAD


def test_several_results_that_the_loss_is_made_of():
    x = dptrain.from_numpy(normal(4, 6)(np.random.default_rng(0)))

    def loss(out, mean, log_variance):
        kl = 0.5 * (mean**2 + log_variance.exp() - log_variance - 1).sum()
        return F.mse_loss(out, x, reduction="sum") + kl

    assert trained(Autoencoder, (x,), [loss] * 12).replays == 12 - AHEAD


@pytest.mark.parametrize(
    "other",
    [
        lambda logits, loss: logits.sum(),
        lambda logits, loss: loss + logits.square().mean(),
    ],
)
def test_other_results_are_differentiated_than_was_expected(other):
    calls = [lambda logits, loss: loss] * (AHEAD + 2) + [other] * 2
    report = trained(LanguageModel, (TOKENS, TOKENS), calls)
    assert "other results" in str(report)
