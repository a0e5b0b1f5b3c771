"""Learning rate schedules against PyTorch: rates, momenta, state, resuming."""

import math
import warnings

import numpy as np
import pytest

import dptrain
from dptrain import nn, optim

torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
pytestmark = pytest.mark.oracle

SIDES = ((dptrain, optim), (torch, torch.optim))


def sequential(first, second, at=4):
    def make(s, o):
        return s.SequentialLR(o, [first(s, o), second(s, o)], [at])

    return make


def chained(*parts):
    return lambda s, o: s.ChainedScheduler([part(s, o) for part in parts])


MAKERS = {
    "multiplicative": lambda s, o: s.MultiplicativeLR(o, lambda t: 0.9 + 0.01 * t),
    "multiplicative, by group": lambda s, o: s.MultiplicativeLR(o, [lambda t: 0.9, lambda t: 0.8]),
    "constant": lambda s, o: s.ConstantLR(o),
    "constant half": lambda s, o: s.ConstantLR(o, factor=0.5, total_iters=9),
    "linear": lambda s, o: s.LinearLR(o),
    "linear down": lambda s, o: s.LinearLR(o, 0.9, 0.1, total_iters=8),
    "polynomial": lambda s, o: s.PolynomialLR(o),
    "polynomial, squared": lambda s, o: s.PolynomialLR(o, total_iters=17, power=2.0),
    "restarts": lambda s, o: s.CosineAnnealingWarmRestarts(o, 4),
    "longer restarts": lambda s, o: s.CosineAnnealingWarmRestarts(o, 3, 2, eta_min=0.01),
    "triangular": lambda s, o: s.CyclicLR(o, 0.01, 0.2, step_size_up=4),
    "triangular2": lambda s, o: s.CyclicLR(
        o, [0.01, 0.02], [0.2, 0.4], 3, 5, "triangular2", base_momentum=0.5, max_momentum=0.7
    ),
    "exp_range": lambda s, o: s.CyclicLR(
        o, 0.01, 0.2, 4, mode="exp_range", gamma=0.9, cycle_momentum=False
    ),
    "cyclic, own scale": lambda s, o: s.CyclicLR(
        o, 0.01, 0.2, 4, scale_fn=lambda x: 1 / (1 + x), scale_mode="iterations"
    ),
    "one cycle": lambda s, o: s.OneCycleLR(o, 0.5, total_steps=30),
    "one cycle, linear": lambda s, o: s.OneCycleLR(
        o, [0.5, 0.2], epochs=7, steps_per_epoch=5, anneal_strategy="linear", pct_start=0.4
    ),
    "one cycle, three phases": lambda s, o: s.OneCycleLR(
        o, 0.5, 30, three_phase=True, div_factor=10.0, final_div_factor=100.0, cycle_momentum=False
    ),
    "sequential": sequential(
        lambda s, o: s.ConstantLR(o, 0.1, total_iters=3), lambda s, o: s.ExponentialLR(o, 0.9)
    ),
    "sequential, cosine": sequential(
        lambda s, o: s.LinearLR(o, 0.1, total_iters=5),
        lambda s, o: s.CosineAnnealingLR(o, T_max=10, eta_min=0.001),
        at=5,
    ),
    "sequential, step": sequential(
        lambda s, o: s.StepLR(o, 2, 0.5), lambda s, o: s.MultiStepLR(o, [3, 6], 0.3)
    ),
    "sequential, restarts": sequential(
        lambda s, o: s.LinearLR(o), lambda s, o: s.CosineAnnealingWarmRestarts(o, 3)
    ),
    "chained": chained(
        lambda s, o: s.ConstantLR(o, 0.1, total_iters=3), lambda s, o: s.ExponentialLR(o, 0.9)
    ),
    "chained, sequential": chained(
        sequential(lambda s, o: s.LinearLR(o, 0.5), lambda s, o: s.PolynomialLR(o, 20)),
        lambda s, o: s.StepLR(o, 7),
    ),
}
SWA = {
    "swa": lambda m, o: m.SWALR(o, 0.05),
    "swa, linear": lambda m, o: m.SWALR(o, [0.05, 0.5], anneal_epochs=4, anneal_strategy="linear"),
    "swa, at once": lambda m, o: m.SWALR(o, 0.05, anneal_epochs=0),
}


def optimizer(lib, module, kind="SGD"):
    params = [lib.nn.Parameter(lib.zeros(2)) for _ in range(2)]
    groups = [{"params": params[:1]}, {"params": params[1:], "lr": 0.3}]
    options = {"momentum": 0.9} if kind == "SGD" else {}
    return getattr(module, kind)(groups, lr=0.1, **options)


def facts(o):
    keys = ("lr", "momentum", "betas")
    return [v for g in o.param_groups for k in keys if k in g for v in np.ravel(g[k])]


def keys(state):
    # PyTorch also keeps what we compute from the mode (`_scale_fn_ref`), or can tell by a name.
    inner = [keys(s) for s in state.get("_schedulers", [])]
    return sorted(k for k in state if k not in ("_scale_fn_ref", "anneal_func")), inner


@pytest.mark.parametrize("kind", ["SGD", "Adam"])
@pytest.mark.parametrize("name", [*MAKERS, *SWA])
def test_rates_and_momenta_are_those_of_pytorch_also_after_a_resume(name, kind):
    seen, states = [], []
    for lib, module in SIDES:
        make = (
            (lambda o, m=module: SWA[name](m.swa_utils, o))
            if name in SWA
            else (lambda o, m=module: MAKERS[name](m.lr_scheduler, o))
        )
        o = optimizer(lib, module, kind)
        schedule, rows = make(o), []
        for step in range(24):
            rows.append([*facts(o), *schedule.get_last_lr()])
            o.step()
            schedule.step()
            if step == 9:
                state, saved = schedule.state_dict(), o.state_dict()
                o = optimizer(lib, module, kind)
                schedule = make(o)
                o.load_state_dict(saved)
                schedule.load_state_dict(state)
        seen.append(rows)
        states.append(keys(schedule.state_dict()))
    np.testing.assert_allclose(seen[0], seen[1], rtol=1e-12, atol=1e-15)
    assert states[0] == states[1]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mode": "max", "factor": 0.5, "patience": 1},
        {"patience": 0, "cooldown": 2, "threshold": 0.1},
        {"patience": 0, "threshold_mode": "abs", "threshold": 0.2, "min_lr": 0.01},
        {"mode": "max", "threshold_mode": "abs", "patience": 0, "min_lr": [0.05, 0.0], "eps": 0.02},
    ],
)
def test_plateaus_are_seen_as_pytorch_sees_them(options):
    metrics = np.random.default_rng(0).integers(0, 8, 40) / 4
    seen = []
    for lib, module in SIDES:
        o = optimizer(lib, module)
        schedule, rows = module.lr_scheduler.ReduceLROnPlateau(o, **options), []
        for step, metric in enumerate(metrics):
            schedule.step(lib.tensor(metric) if step % 2 else metric)
            rows.append([*facts(o), *schedule.get_last_lr(), schedule.num_bad_epochs])
            if step == 15:
                state = schedule.state_dict()
                schedule = module.lr_scheduler.ReduceLROnPlateau(o, **options)
                schedule.load_state_dict(state)
        seen.append((rows, sorted(schedule.state_dict())))
    assert seen[0] == seen[1]


def test_step_may_be_given_for_schedules_with_a_closed_form():
    makers = {
        "StepLR": {"step_size": 3},
        "MultiStepLR": {"milestones": [2, 5]},
        "ConstantLR": {},
        "LinearLR": {},
        "ExponentialLR": {"gamma": 0.9},
        "PolynomialLR": {},
        "CosineAnnealingLR": {"T_max": 6},
        "CosineAnnealingWarmRestarts": {"T_0": 3, "T_mult": 2},
    }
    for name, options in makers.items():
        seen = []
        for lib, module in SIDES:
            o = optimizer(lib, module)
            schedule, rows = getattr(module.lr_scheduler, name)(o, **options), []
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                for epoch in (4, 1, 7, 2):
                    schedule.step(epoch)
                    rows.append(schedule.get_last_lr())
            seen.append(rows)
        np.testing.assert_allclose(seen[0], seen[1], rtol=1e-12, err_msg=name)


def test_fractions_of_steps_between_restarts():
    seen = []
    for lib, module in SIDES:
        o = optimizer(lib, module)
        schedule = module.lr_scheduler.CosineAnnealingWarmRestarts(o, 3, 2)
        rows = []
        for epoch in np.arange(0, 12, 0.25):
            schedule.step(float(epoch))
            rows.append([*schedule.get_last_lr(), schedule.last_epoch])
        seen.append(rows)
    np.testing.assert_allclose(seen[0], seen[1], rtol=1e-12)


@pytest.mark.parametrize(
    "average",
    [
        {},
        {"avg_fn": "get_swa_avg_fn"},
        {"multi_avg_fn": "get_swa_multi_avg_fn"},
        {"avg_fn": "get_ema_avg_fn"},
        {"multi_avg_fn": "get_ema_multi_avg_fn", "use_buffers": True},
    ],
)
def test_averaged_models_are_those_of_pytorch(average):
    results = []
    for lib, module in SIDES:
        utils = module.swa_utils
        model = lib.nn.Linear(3, 2)
        model.register_buffer("count", lib.tensor([1.0, 2.0]))
        options = {
            k: getattr(utils, v)(*((0.7,) if "ema" in v else ())) if isinstance(v, str) else v
            for k, v in average.items()
        }
        averaged = utils.AveragedModel(model, **options)
        for step in range(4):
            with lib.no_grad():
                for i, t in enumerate((*model.parameters(), *model.buffers())):
                    t.copy_(lib.tensor(np.random.default_rng(9 * step + i).random(t.shape)))
            averaged.update_parameters(model)
        assert averaged.n_averaged == 4
        state = averaged.state_dict()
        out = averaged(lib.ones(1, 3)).detach().numpy()
        results.append({"out": out, **{k: v.numpy() for k, v in state.items()}})
    assert list(results[0]) == list(results[1])
    for key, held in results[0].items():
        np.testing.assert_allclose(held, results[1][key], rtol=1e-6)


class Statistics(nn.Module):
    """Stands for a batch normalisation: the mean of its inputs over all batches."""

    def __init__(self):
        super().__init__()
        self.momentum = 0.1
        self.register_buffer("running_mean", dptrain.zeros(2))
        self.register_buffer("num_batches_tracked", dptrain.tensor(0))

    def reset_running_stats(self):
        self.running_mean.zero_()
        self.num_batches_tracked.zero_()

    def forward(self, x):
        if self.training:
            self.num_batches_tracked += 1
            weight = 1 / self.num_batches_tracked.item() if self.momentum is None else self.momentum
            self.running_mean += (x.mean(0) - self.running_mean) * weight
        return x


def test_statistics_are_computed_anew_over_all_batches():
    model = nn.Sequential(Statistics()).eval()
    batches = [dptrain.full((4, 2), float(i)) for i in range(5)]
    model[0].running_mean.fill_(math.nan)
    optim.swa_utils.update_bn([(b, None) for b in batches], model)
    assert model[0].running_mean.tolist() == [2.0, 2.0]
    assert model[0].momentum == 0.1
    assert not model.training
    optim.swa_utils.update_bn(batches, nn.Linear(2, 2))  # nothing to do
