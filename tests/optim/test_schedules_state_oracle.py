"""The state of learning rate schedules beside PyTorch's, step by step, and exchanged midway."""

import copy
import warnings

import numpy as np
import pytest

import dptrain

torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
pytestmark = pytest.mark.oracle

from optim_pairs import assert_same_structure, ours_of, theirs_of  # noqa: E402

CYCLE = {"base_lr": 0.01, "max_lr": 0.1, "step_size_up": 4}
CASES = [
    ("LambdaLR", {"lr_lambda": [lambda t: 0.95**t, lambda t: 1 / (t + 1)]}),
    ("MultiplicativeLR", {"lr_lambda": lambda t: 0.95}),
    ("StepLR", {"step_size": 3, "gamma": 0.5}),
    ("MultiStepLR", {"milestones": [5, 5, 9, 30]}),
    ("ConstantLR", {"factor": 0.5, "total_iters": 0}),
    ("ConstantLR", {}),
    ("LinearLR", {"start_factor": 0.2, "end_factor": 0.7, "total_iters": 13}),
    ("ExponentialLR", {"gamma": 0.9}),
    ("PolynomialLR", {"total_iters": 20, "power": 2.5}),
    ("CosineAnnealingLR", {"T_max": 13, "eta_min": 0.01}),
    ("CosineAnnealingWarmRestarts", {"T_0": 5, "T_mult": 2, "eta_min": 0.001}),
    ("CyclicLR", {**CYCLE, "step_size_down": 9, "mode": "triangular2"}),
    ("CyclicLR", {**CYCLE, "mode": "exp_range", "gamma": 0.97, "max_momentum": [0.9, 0.95]}),
    ("CyclicLR", {**CYCLE, "scale_fn": lambda x: 0.9**x, "cycle_momentum": False}),
    ("OneCycleLR", {"max_lr": 0.5, "total_steps": 65, "max_momentum": [0.8, 0.9]}),
    (
        "OneCycleLR",
        {
            "max_lr": [0.5, 0.3],
            "epochs": 10,
            "steps_per_epoch": 7,
            "anneal_strategy": "linear",
            "three_phase": True,
        },
    ),
    ("ReduceLROnPlateau", {"patience": 2, "cooldown": 3, "min_lr": [0.001, 0.002]}),
    (
        "ReduceLROnPlateau",
        {"mode": "max", "threshold_mode": "abs", "threshold": 0.1, "factor": 0.5},
    ),
    ("SWALR", {"swa_lr": [0.05, 0.01], "anneal_epochs": 5, "anneal_strategy": "linear"}),
]


def sequential(library, o):
    s = library.lr_scheduler
    parts = [s.ConstantLR(o, 0.1, 4), s.ExponentialLR(o, 0.9), s.CosineAnnealingLR(o, 20)]
    return s.SequentialLR(o, parts, [5, 20])


def chained(library, o):
    s = library.lr_scheduler
    return s.ChainedScheduler([sequential(library, o), s.LinearLR(o, 0.5)], optimizer=o)


def made(name, options):
    def make(library, o):
        module = library.swa_utils if name == "SWALR" else library.lr_scheduler
        return getattr(module, name)(o, **copy.copy(options))

    return make


MAKERS = [
    *(
        pytest.param(made(name, options), id=f"{name}-{i}")
        for i, (name, options) in enumerate(CASES)
    ),
    pytest.param(sequential, id="SequentialLR"),
    pytest.param(chained, id="ChainedScheduler"),
]


def optimizer(library, as_tensor):
    groups = [
        {
            "params": [library.ones(2, requires_grad=True)],
            "lr": library.tensor(lr) if as_tensor else lr,
        }
        for lr in (0.1, 0.03)
    ]
    return library.optim.SGD(groups, momentum=0.9)


def options_of(o):
    return [{k: v for k, v in group.items() if k != "params"} for group in o.param_groups]


def state_of(schedule):
    """The state without functions: what they are is no state."""

    def plain(value):
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        return (
            [plain(v) for v in value]
            if isinstance(value, list)
            else None
            if callable(value)
            else value
        )

    return plain(schedule.state_dict())


@pytest.mark.parametrize("as_tensor", [False, True], ids=["number", "tensor"])
@pytest.mark.parametrize("make", MAKERS)
def test_sixty_steps_with_the_states_exchanged_midway_are_pytorchs(make, as_tensor):
    tolerance = 1e-6 if as_tensor else 1e-12  # a rate in a tensor is a float32 number
    sides = [(library, optimizer(library, as_tensor)) for library in (dptrain, torch)]
    pairs = [(o, make(library.optim, o)) for library, o in sides]
    metrics = np.random.default_rng(0).integers(0, 9, 60) / 4
    for step, metric in enumerate(metrics):
        for o, schedule in pairs:
            o.step()
            schedule.step(*([metric] if "Plateau" in type(schedule).__name__ else []))
        (oa, a), (ob, b) = pairs
        assert_same_structure(a.get_last_lr(), b.get_last_lr(), tolerance, "get_last_lr")
        assert_same_structure(options_of(oa), options_of(ob), tolerance, "param_groups")
        assert_same_structure(state_of(a), state_of(b), tolerance, "state")
        if step == 30:
            fresh = [
                (o, make(library.optim, o))
                for library, o in ((m, optimizer(m, as_tensor)) for m in (dptrain, torch))
            ]
            for (o, _), (old, _) in zip(fresh, pairs, strict=True):
                o.load_state_dict(old.state_dict())
                o.step()
            fresh[0][1].load_state_dict(ours_of(copy.deepcopy(b.state_dict())))
            fresh[1][1].load_state_dict(theirs_of(copy.deepcopy(a.state_dict())))
            pairs = fresh


@pytest.mark.parametrize(("name", "options"), [c for c in CASES if c[0] != "ReduceLROnPlateau"])
def test_schedule_that_goes_on_from_a_step_gives_the_same_rates(name, options):
    rows = []
    for library in (dptrain, torch):
        o = optimizer(library, False)
        module = library.optim.swa_utils if name == "SWALR" else library.optim.lr_scheduler
        for group in o.param_groups:
            group.update(
                initial_lr=group["lr"], max_lr=0.3, min_lr=1e-3, max_momentum=0.9, base_momentum=0.8
            )
        schedule = getattr(module, name)(o, last_epoch=10, **copy.copy(options))
        seen = [schedule.get_last_lr()]
        for _ in range(20):
            o.step()
            schedule.step()
            seen.append(schedule.get_last_lr())
        rows.append(seen)
    np.testing.assert_allclose(rows[0], rows[1], rtol=1e-12)


@pytest.mark.parametrize(
    ("name", "options"),
    [c for c in CASES if c[0] not in ("ReduceLROnPlateau", "CyclicLR", "OneCycleLR")],
)
def test_schedule_that_goes_on_without_an_initial_rate_is_refused(name, options):
    for library in (dptrain, torch):
        module = library.optim.swa_utils if name == "SWALR" else library.optim.lr_scheduler
        with pytest.raises(KeyError, match="initial_lr"):
            getattr(module, name)(optimizer(library, False), last_epoch=3, **copy.copy(options))


def test_warnings_of_use_are_those_of_pytorch():
    def seen(library):
        o = optimizer(library, False)
        schedule = library.optim.lr_scheduler.StepLR(o, 3)
        kinds = []
        for act in (schedule.step, schedule.get_lr, lambda: schedule.step(4)):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                act()
            kinds.append([w.category for w in caught])
        return kinds

    assert seen(dptrain) == seen(torch)
    assert seen(dptrain) == [[UserWarning]] * 3
