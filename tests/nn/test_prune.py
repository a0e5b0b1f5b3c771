"""`nn.utils.prune` against PyTorch: masks, gradients, names, what is left after removal, and errors."""

import copy

import numpy as np
import pytest

import dptrain

torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
pytest.importorskip("torch.nn.utils.prune", reason="extra `oracle` is not installed")
pytestmark = pytest.mark.oracle

WEIGHT = np.random.default_rng(0).standard_normal((4, 2, 3, 3)).astype(np.float32)
INPUT = np.random.default_rng(1).standard_normal((1, 2, 5, 5)).astype(np.float32)


def conv(lib):
    m = lib.nn.Conv2d(2, 4, 3)
    values = {"weight": lib.from_numpy(WEIGHT.copy()), "bias": lib.arange(4.0)}
    m.load_state_dict(values)
    return m


def linear(lib, start, rows, columns):
    m = lib.nn.Linear(columns, rows)
    part = WEIGHT.ravel()[start : start + rows * columns].reshape(rows, columns)
    m.load_state_dict({"weight": lib.from_numpy(part.copy()), "bias": lib.zeros(rows)})
    return m


def array(tensor):
    return tensor.detach().numpy().copy()


def one_after_another(lib):
    """Unstructured, by slices, by a part of what is left, and by another norm."""
    p, m = lib.nn.utils.prune, conv(lib)
    seen = [p.is_pruned(m)]
    p.l1_unstructured(m, "weight", amount=10)
    seen += [list(m.state_dict()), array(m.weight_mask)]
    p.ln_structured(m, "weight", 0.5, 2, 0)
    seen += [array(m.weight_mask), len(m._forward_pre_hooks)]
    p.l1_unstructured(m, "weight", 0.3)
    seen.append(array(m.weight_mask))
    p.ln_structured(m, "weight", 1, float("inf"), 1)
    seen += [array(m.weight_mask), p.is_pruned(lib.nn.Sequential(m))]
    y = m(lib.from_numpy(INPUT))
    y.sum().backward()
    seen += [array(y), array(m.weight_orig.grad), [n for n, _ in m.named_parameters()]]
    p.remove(m, "weight")
    return [*seen, array(m.weight), [n for n, _ in m.named_parameters()], p.is_pruned(m)]


def several_parameters_together(lib):
    p = lib.nn.utils.prune
    a, b = linear(lib, 0, 3, 3), linear(lib, 20, 2, 3)
    pairs = [(a, "weight"), (b, "weight")]
    seen = []
    for amount in (0.4, 3):
        p.global_unstructured(pairs, p.L1Unstructured, amount=amount)
        seen += [array(a.weight_mask), array(b.weight_mask)]
    scores = {(a, "bias"): lib.tensor([3.0, 1.0, 2.0])}
    p.global_unstructured([(a, "bias")], p.L1Unstructured, scores, amount=1)
    return [*seen, array(a.bias_mask)]


def masks_and_scores_of_the_user(lib):
    p, m = lib.nn.utils.prune, linear(lib, 0, 4, 4)
    p.custom_from_mask(m, "bias", lib.tensor([1, 0, 1, 1]))
    p.l1_unstructured(m, "weight", 5, importance_scores=lib.arange(16.0).reshape(4, 4))
    seen = [array(m.bias_mask), array(m.weight_mask)]
    p.ln_structured(m, "weight", 1, 1, -1)
    p.identity(m, "weight")
    return [*seen, array(m.weight_mask), array(m.weight)]


def without_a_module(lib):
    p, t = lib.nn.utils.prune, lib.tensor([[1.0, -5, 2], [3, 0.5, 4]])
    kept = lib.tensor([[1.0, 0, 1], [1, 1, 1]])
    return [
        array(p.L1Unstructured(3).prune(t)),
        array(p.L1Unstructured(2).prune(t, default_mask=kept)),
        array(p.LnStructured(1, 2, 0).prune(t)),
        array(p.L1Unstructured(1).prune(t, importance_scores=-kept)),
    ]


def chosen_at_random(lib):
    """What is random cannot be equal; how much it is can."""
    p, m = lib.nn.utils.prune, conv(lib)
    p.random_unstructured(m, "bias", 0.5)
    p.random_structured(m, "weight", 3, 0)
    gone = (m.weight_mask.sum((1, 2, 3)) == 0).sum().item()
    p.random_structured(m, "weight", 0.5, dim=1)
    return [m.bias_mask.sum().item(), gone, m.weight_mask.sum().item()]


def containers(lib):
    p, m = lib.nn.utils.prune, linear(lib, 0, 3, 3)
    p.l1_unstructured(m, "weight", 1)
    p.random_unstructured(m, "weight", 1)
    hook = next(iter(m._forward_pre_hooks.values()))
    hook = getattr(hook, "run", hook)
    return [type(hook).__name__, len(hook), [type(h).__name__ for h in hook], hook[1].amount]


SCENARIOS = [
    one_after_another,
    several_parameters_together,
    masks_and_scores_of_the_user,
    without_a_module,
    chosen_at_random,
    containers,
]


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_both_libraries_agree(scenario):
    theirs, ours = scenario(torch), scenario(dptrain)
    assert len(theirs) == len(ours)
    for a, b in zip(theirs, ours, strict=True):
        if isinstance(a, np.ndarray):
            np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-6)
        else:
            assert b == a


def two_names(p):
    first, second = p.Identity(), p.Identity()
    first._tensor_name, second._tensor_name = "a", "b"
    p.PruningContainer(first).add_pruning_method(second)


REFUSED = {
    "below 0": lambda p, m: p.l1_unstructured(m, "weight", -1),
    "above 1": lambda p, m: p.l1_unstructured(m, "weight", 1.5),
    "a word": lambda p, m: p.random_unstructured(m, "weight", "x"),
    "a flag": lambda p, m: p.l1_unstructured(m, "weight", True),
    "NaN": lambda p, m: p.l1_unstructured(m, "weight", float("nan")),
    "more than there are": lambda p, m: p.l1_unstructured(m, "weight", 100),
    "more slices than there are": lambda p, m: p.random_structured(m, "weight", 9, 0),
    "no such parameter": lambda p, m: p.l1_unstructured(m, "nope", 1),
    "no such dimension": lambda p, m: p.ln_structured(m, "weight", 1, 2, 5),
    "slices of a vector": lambda p, m: p.ln_structured(m, "bias", 1, 2, 0),
    "not pruned": lambda p, m: p.remove(m, "weight"),
    "another mask": lambda p, m: p.custom_from_mask(m, "weight", m.bias),
    "other scores": lambda p, m: p.l1_unstructured(m, "weight", 1, importance_scores=m.bias),
    "slices of all": lambda p, m: p.global_unstructured(
        [(m, "weight")], p.LnStructured, amount=1, n=2
    ),
    "no collection": lambda p, m: p.global_unstructured(1, p.L1Unstructured, amount=1),
    "scores in a list": lambda p, m: p.global_unstructured(
        [(m, "weight")], p.L1Unstructured, importance_scores=[1], amount=1
    ),
    "the base class": lambda p, m: p.BasePruningMethod(),
    "two names": lambda p, m: two_names(p),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_use_gets_pytorchs_kind_of_error_and_changes_nothing(name):
    kinds = []
    for lib in (torch, dptrain):
        m = linear(lib, 0, 3, 3)
        with pytest.raises(
            (TypeError, ValueError, IndexError, AttributeError, AssertionError)
        ) as caught:
            REFUSED[name](lib.nn.utils.prune, m)
        kinds.append(caught.type)
        assert sorted(m.state_dict()) == ["bias", "weight"]
    assert kinds[1] is kinds[0]


def test_a_further_pruning_that_fails_leaves_the_first():
    p, m = dptrain.nn.utils.prune, linear(dptrain, 0, 3, 3)
    p.l1_unstructured(m, "weight", 4)
    mask = array(m.weight_mask)
    with pytest.raises(ValueError, match="amount=100 should be smaller"):
        p.l1_unstructured(m, "weight", 100)
    p.l1_unstructured(m, "weight", 1)
    assert mask.sum() == 5
    assert array(m.weight_mask).sum() == 4
    assert len(m._forward_pre_hooks) == 1


def test_training_leaves_pruned_elements_at_zero():
    p, m = dptrain.nn.utils.prune, linear(dptrain, 0, 3, 3)
    p.l1_unstructured(m, "weight", 5)
    optimizer = dptrain.optim.SGD(m.parameters(), lr=0.1)
    before = array(m.weight_orig)
    for _ in range(3):
        optimizer.zero_grad()
        m(dptrain.ones(2, 3)).sum().backward()
        optimizer.step()
    kept = array(m.weight_mask) == 1
    assert (array(m.weight_orig)[~kept] == before[~kept]).all()
    assert (array(m.weight_orig)[kept] != before[kept]).all()
    m(dptrain.ones(2, 3))
    assert (array(m.weight)[~kept] == 0).all()


def test_state_goes_to_another_pruned_module():
    p, m, other = dptrain.nn.utils.prune, linear(dptrain, 0, 3, 3), linear(dptrain, 9, 3, 3)
    p.l1_unstructured(m, "weight", 4)
    p.identity(other, "weight")
    other.load_state_dict(copy.deepcopy(m.state_dict()))
    x = dptrain.ones(1, 3)
    assert other(x).tolist() == m(x).tolist()
