"""What bad use of optimizers and schedulers gets: an exception of PyTorch's kind with the facts."""

import math

import numpy as np
import pytest

import dptrain
from dptrain import nn, optim
from dptrain.optim import lr_scheduler as ls
from dptrain.optim import swa_utils


def leaf(*shape):
    return nn.Parameter(dptrain.zeros(*(shape or (2,))))


def make(name, *params, **options):
    return lambda: getattr(optim, name)(list(params) or [leaf(2, 2)], **options)


def sgd(groups=1, **options):
    return optim.SGD([{"params": [leaf()]} for _ in range(groups)], lr=0.1, **options)


def plain():
    """An optimizer without momentum and without betas."""
    return optim.Adagrad([leaf()])


def stepped(scheduler, times):
    for _ in range(times):
        scheduler.optimizer.step()
        scheduler.step()


OPTIONS = [
    *((n, {"lr": -1.0}, "Invalid learning rate: -1.0") for n in
      ("ASGD", "Adadelta", "Adagrad", "Adamax", "LBFGS", "NAdam", "RAdam", "RMSprop", "Rprop")),
    *((n, {"lr": math.nan}, "Invalid learning rate: nan") for n in ("ASGD", "LBFGS", "Rprop")),
    *((n, {"lr": -1.0}, "Learning rate should be >= 0 but is: -1.0") for n in ("Adafactor", "Muon")),
    ("Adamax", {"lr": dptrain.ones(2)}, r"Tensor lr must be 1-element, but it has shape \[2\]"),
    *((n, {"eps": -1.0}, "Invalid epsilon value: -1.0") for n in
      ("Adadelta", "Adagrad", "Adamax", "NAdam", "RAdam", "RMSprop")),
    *((n, {"weight_decay": -1}, "Invalid weight_decay value: -1") for n in
      ("ASGD", "Adadelta", "Adagrad", "Adamax", "NAdam", "RAdam", "RMSprop")),
    *((n, {"betas": (1.0, 0.9)}, "Invalid beta parameter at index 0: 1.0") for n in
      ("Adamax", "NAdam", "RAdam")),
    *((n, {"betas": (0.9, -0.1)}, "Invalid beta parameter at index 1: -0.1") for n in
      ("Adamax", "NAdam", "RAdam")),
    *((n, {"differentiable": True}, "differentiable=True is not supported") for n in
      ("ASGD", "Adadelta", "Adagrad", "Adamax", "NAdam", "RAdam", "RMSprop", "Rprop")),
    ("NAdam", {"momentum_decay": -0.1}, "Invalid momentum_decay value: -0.1"),
    ("Adagrad", {"lr_decay": -0.1}, "Invalid lr_decay value: -0.1"),
    ("Adagrad", {"initial_accumulator_value": -1}, "Invalid initial_accumulator_value value: -1"),
    ("Adadelta", {"rho": 1.5}, "Invalid rho value: 1.5"),
    ("RMSprop", {"momentum": -0.1}, "Invalid momentum value: -0.1"),
    ("RMSprop", {"alpha": -0.1}, "Invalid alpha value: -0.1"),
    ("Rprop", {"etas": (1.5, 2.0)}, "Invalid eta values: 1.5, 2.0"),
    ("Rprop", {"etas": (0.5, 0.9)}, "Invalid eta values: 0.5, 0.9"),
    ("Adafactor", {"beta2_decay": 0.1}, "beta2_decay should be <= 0 but is: 0.1"),
    ("Adafactor", {"eps": (-1, 1e-3)}, "epsilon1 should be >= 0 but is: -1"),
    ("Adafactor", {"eps": (None, -1)}, "epsilon2 should be >= 0 but is: -1"),
    ("Adafactor", {"d": 0.5}, "Clipping threshold d should be >= 1 but is: 0.5"),
    ("Adafactor", {"weight_decay": -1}, "weight_decay should be >= 0 but is: -1"),
    ("Muon", {"momentum": -1}, "momentum should be >= 0 but is: -1"),
    ("Muon", {"weight_decay": -1}, "weight decay should be >= 0 but is: -1"),
    ("Muon", {"adjust_lr_fn": "no"}, "Adjust learning rate function no is not supported"),
    ("Muon", {"ns_coefficients": (1, 2)}, "Coefficients must be a tuple of exactly 3 values"),
    ("Muon", {"ns_steps": 100}, "Number of steps must be less than 100"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "options", "words"), OPTIONS)
def test_options_without_meaning_are_refused(name, options, words):
    with pytest.raises(ValueError, match=words):
        make(name, **options)()
    with pytest.raises(ValueError, match=words if name != "LBFGS" else "."):
        make(name)().add_param_group({"params": [leaf(2, 2)], **options})


NAMES = [n for n in optim.__all__ if isinstance(getattr(optim, n), type) and n != "Optimizer"]


@pytest.mark.parametrize("name", NAMES)
def test_parameters_that_cannot_be_optimized_are_refused_by_all(name):
    cls, p = getattr(optim, name), leaf(2, 2)
    for params, kind, words in [
        ([], ValueError, "empty parameter list"),
        (p, TypeError, "should be an iterable of Tensors or dicts"),
        ([3], TypeError, "one of the params is int"),
        ([p * 2], ValueError, "can't optimize a non-leaf Tensor"),
        ([p, p], UserWarning, "duplicate parameters"),
        ({p}, TypeError, "ordered collections"),
    ]:
        with pytest.raises(kind, match=words):
            cls(params)


def load(change):
    """Load a state that was changed into an optimizer with one step behind it."""

    def run():
        p = leaf(2, 3)
        p.grad = dptrain.ones(2, 3)
        o = optim.Adafactor([p])
        o.step()
        saved = o.state_dict()
        change(saved)
        o.load_state_dict(saved)

    return run


def closure():
    return dptrain.tensor(1.0)


def lbfgs_with(search):
    p = leaf()
    p.grad = dptrain.ones(2)
    optim.LBFGS([p], line_search_fn=search).step(closure)


def plateau_of_two_groups():
    o = sgd(2)
    schedule = ls.ReduceLROnPlateau(o, patience=0, min_lr=[0.0, 0.0])
    o.add_param_group({"params": [leaf()]})
    for _ in range(3):
        schedule.step(1.0)


CASES = [
    (lambda: make("Muon", leaf(3))(), ValueError, r"Muon only supports 2D parameters .*\[3\]"),
    (
        lambda: optim.LBFGS([{"params": [leaf()]}, {"params": [leaf()]}]),
        ValueError,
        "LBFGS doesn't support per-parameter options",
    ),
    (
        lambda: make("LBFGS")().add_param_group({"params": [leaf()]}),
        ValueError,
        "LBFGS doesn't support per-parameter options",
    ),
    (lambda: make("LBFGS")().step(), TypeError, "missing 1 required positional argument: 'closure'"),
    (lambda: lbfgs_with("armijo"), RuntimeError, "only 'strong_wolfe' is supported.*'armijo'"),
    (
        load(lambda s: s["state"][0].update(row_var=np.zeros((3, 1)))),
        ValueError,
        r"state\[0\]\['row_var'\] has shape \[3, 1\]",
    ),
    (load(lambda s: s["param_groups"].append({})), ValueError, "different number of parameter gr"),
    (
        load(lambda s: s["param_groups"][0].update(params=[0, 1])),
        ValueError,
        "doesn't match the size of optimizer's group",
    ),
    (load(lambda s: s["param_groups"][0].update(d=0.0)), ValueError, "Clipping threshold d"),
    # ---- schedulers
    (lambda: ls.StepLR(3, 1), TypeError, "int is not an Optimizer"),
    (lambda: ls.CyclicLR(3, 1, 2), TypeError, "int is not an Optimizer"),
    (lambda: ls.OneCycleLR(3, 1, 2), TypeError, "int is not an Optimizer"),
    (lambda: ls.ReduceLROnPlateau(3), TypeError, "int is not an Optimizer"),
    (lambda: ls.LambdaLR(sgd(2), [abs]), ValueError, "Expected 2 lr_lambdas, but got 1"),
    (lambda: ls.MultiplicativeLR(sgd(), [abs, abs]), ValueError, "Expected 1 lr_lambdas, but got 2"),
    (lambda: ls.MultiplicativeLR(sgd(), 3), TypeError, "lr_lambda should be a function, but got int"),
    (lambda: ls.ConstantLR(sgd(), 1.5), ValueError, "between 0 and 1, but got 1.5"),
    (lambda: ls.ConstantLR(sgd(), -0.5), ValueError, "between 0 and 1, but got -0.5"),
    (lambda: ls.LinearLR(sgd(), 0.0), ValueError, "Starting multiplicative factor .* but got 0.0"),
    (lambda: ls.LinearLR(sgd(), 0.5, 2.0), ValueError, "Ending multiplicative factor .* but got 2.0"),
    (lambda: ls.LinearLR(sgd(), last_epoch=3), KeyError, "initial_lr"),
    (lambda: ls.CosineAnnealingWarmRestarts(sgd(), 0), ValueError, "positive integer T_0, .* 0"),
    (lambda: ls.CosineAnnealingWarmRestarts(sgd(), 2.5), ValueError, "positive integer T_0"),
    (lambda: ls.CosineAnnealingWarmRestarts(sgd(), 2, 0), ValueError, "integer T_mult >= 1, but got 0"),
    (lambda: ls.CosineAnnealingWarmRestarts(sgd(), 2, eta_min="0"), ValueError, "Expected float or int"),
    (
        lambda: ls.CosineAnnealingWarmRestarts(sgd(), 2).step(-1),
        ValueError,
        "Expected non-negative epoch, but got -1",
    ),
    (lambda: ls.CyclicLR(sgd(2), [0.1], 1), ValueError, "base_lr has 1 values, param_groups has 2"),
    (lambda: ls.CyclicLR(sgd(), 0.1, [1, 2]), ValueError, "max_lr has 2 values, param_groups has 1"),
    (lambda: ls.CyclicLR(sgd(), 0.1, 1, mode="saw"), ValueError, "mode is invalid.*'saw'"),
    (lambda: ls.CyclicLR(sgd(), 0.1, 1, 0), ValueError, "Expected positive step_size_up"),
    (lambda: ls.CyclicLR(plain(), 0.1, 1), ValueError, "must support momentum or beta1 .*Adagrad"),
    (lambda: ls.OneCycleLR(plain(), 0.1, 9), ValueError, "must support momentum or beta1"),
    (lambda: ls.OneCycleLR(sgd(), 0.1), ValueError, "You must define either total_steps OR"),
    (lambda: ls.OneCycleLR(sgd(), 0.1, 0), ValueError, "positive integer total_steps, but got 0"),
    (lambda: ls.OneCycleLR(sgd(), 0.1, 2.0), ValueError, "positive integer total_steps, but got 2.0"),
    (
        lambda: ls.OneCycleLR(sgd(), 0.1, epochs=0, steps_per_epoch=2),
        ValueError,
        "positive integer epochs, but got 0",
    ),
    (
        lambda: ls.OneCycleLR(sgd(), 0.1, epochs=2, steps_per_epoch=-1),
        ValueError,
        "positive integer steps_per_epoch, but got -1",
    ),
    (lambda: ls.OneCycleLR(sgd(), 0.1, 9, pct_start=2.0), ValueError, "between 0 and 1 pct_start"),
    (
        lambda: ls.OneCycleLR(sgd(), 0.1, 9, anneal_strategy="no"),
        ValueError,
        "must be one of 'cos' or 'linear', instead got no",
    ),
    (
        lambda: stepped(ls.OneCycleLR(sgd(), 0.1, 3), 4),
        ValueError,
        "Tried to step 4 times. The specified number of total steps is 3",
    ),
    (lambda: ls.ReduceLROnPlateau(sgd(), factor=1.0), ValueError, "Factor should be < 1.0, .* 1.0"),
    (lambda: ls.ReduceLROnPlateau(sgd(), "mid"), ValueError, "mode mid is unknown"),
    (
        lambda: ls.ReduceLROnPlateau(sgd(), threshold_mode="no"),
        ValueError,
        "threshold mode no is unknown",
    ),
    (lambda: ls.ReduceLROnPlateau(sgd(), min_lr=[1, 2]), ValueError, "expected 1 min_lrs, got 2"),
    (plateau_of_two_groups, RuntimeError, r"param groups in the `optimizer` \(3\) differs .* \(2\)"),
    (lambda: ls.SequentialLR(sgd(), [], []), ValueError, "at least one scheduler, but got no"),
    (lambda: ls.SequentialLR(sgd(), [3], []), TypeError, "at index 0 should have `optimizer`"),
    (
        lambda: ls.SequentialLR(sgd(), [ls.StepLR(sgd(), 1)], []),
        ValueError,
        "expects all schedulers to belong to the same optimizer, but got scheduler StepLR at index 0",
    ),
    (
        lambda: (lambda o: ls.SequentialLR(o, [ls.StepLR(o, 1)], [2]))(sgd()),
        ValueError,
        "number of schedulers 1 and the number of milestones to be equal to 1",
    ),
    (
        lambda: (lambda o: ls.SequentialLR(o, [ls.ReduceLROnPlateau(o)], []))(sgd()),
        ValueError,
        "does not support `ReduceLROnPlateau` scheduler",
    ),
    (lambda: ls.ChainedScheduler([]), ValueError, "at least one scheduler to be chained"),
    (lambda: ls.ChainedScheduler([3]), TypeError, "at index 0 should have `optimizer`"),
    (
        lambda: ls.ChainedScheduler([ls.StepLR(sgd(), 1), ls.StepLR(sgd(), 1)]),
        ValueError,
        "at index 1 has SGD",
    ),
    (
        lambda: ls.ChainedScheduler([ls.ReduceLROnPlateau(sgd())]),
        ValueError,
        "does not support `ReduceLROnPlateau`",
    ),
    # ---- averages
    (lambda: swa_utils.SWALR(sgd(2), [0.1]), ValueError, "swa_lr has 1 values, param_groups has 2"),
    (lambda: swa_utils.SWALR(sgd(), 0.1, -1), ValueError, "anneal_epochs must be equal or greater"),
    (
        lambda: swa_utils.SWALR(sgd(), 0.1, anneal_strategy="no"),
        ValueError,
        "must be one of 'cos' or 'linear', instead got no",
    ),
    (lambda: swa_utils.get_ema_avg_fn(1.5), ValueError, "Invalid decay value 1.5 provided"),
    (lambda: swa_utils.get_ema_multi_avg_fn(-0.1), ValueError, "Invalid decay value -0.1 provided"),
    (
        lambda: swa_utils.AveragedModel(nn.Linear(1, 1), avg_fn=max, multi_avg_fn=max),
        AssertionError,
        "Only one of avg_fn and multi_avg_fn",
    ),
    (lambda: swa_utils.nothing, AttributeError, "no attribute 'nothing'"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("call", "kind", "words"), CASES, ids=[f"{i} {c[2][:30]}" for i, c in enumerate(CASES)]
)
def test_bad_use_is_refused_with_the_facts(call, kind, words):
    with pytest.raises(kind, match=words):
        call()


def test_rates_of_a_scheduler_are_not_asked_for_outside_its_step():
    for schedule in (
        ls.StepLR(sgd(), 1),
        ls.LinearLR(sgd()),
        ls.OneCycleLR(sgd(), 0.1, 9),
        swa_utils.SWALR(sgd(), 0.1),
    ):
        with pytest.warns(UserWarning, match="please use `get_last_lr"):
            schedule.get_lr()


def test_epoch_of_a_step_is_deprecated():
    o = sgd()
    schedule = ls.StepLR(o, 1)
    o.step()
    with pytest.warns(UserWarning, match="epoch parameter in `scheduler.step"):
        schedule.step(3)
    with pytest.warns(UserWarning, match="epoch parameter in `scheduler.step"):
        ls.ReduceLROnPlateau(o).step(1.0, 3)


@pytest.mark.oracle
def test_every_scheduler_and_optimizer_of_pytorch_is_there():
    torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
    ours = {n for n in vars(optim) if not n.startswith("_")}
    assert {n for n in torch.optim.__all__ if n[0].isupper()} - ours == {"SparseAdam"}
    assert set(torch.optim.lr_scheduler.__all__) <= set(ls.__all__)
    assert all(hasattr(swa_utils, n) for n in torch.optim.swa_utils.__all__)


@pytest.mark.oracle
@pytest.mark.parametrize(
    "name",
    ["ASGD", "Adadelta", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop", "Rprop"],
)
def test_capturable_is_for_parameters_on_a_gpu(name):
    torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
    for library in (torch, dptrain):
        p = library.nn.Parameter(library.ones(3))
        p.grad = library.ones(3)
        optimizer = getattr(library.optim, name)([p], capturable=True)
        with pytest.raises(AssertionError, match=r"If capturable=True, .* supported devices"):
            optimizer.step()
        assert p.tolist() == [1.0] * 3
