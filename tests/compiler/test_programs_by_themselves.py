"""Whole programs over modules that are replayed by themselves: the bits of the plain run, step by step."""

import copy

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from replayed import AHEAD
from training import F, nn

import dptrain
from dptrain.compiler import automatic, explain
from dptrain.nn import replays
from dptrain.utils.checkpoint import checkpoint


def tensor(draws, *shape):
    return dptrain.from_numpy(draws.standard_normal(shape).astype(np.float32))


def grads(*modules):
    return [
        None if p.grad is None else p.grad.numpy().tobytes()
        for m in modules
        for p in m.parameters()
    ]


def with_and_without(program):
    """What a program yields when its modules are not replayed, and when they are."""
    for enabled in (False, True):
        replays.state.enabled = enabled
        dptrain.manual_seed(0)
        yield program(np.random.default_rng(0))


@pytest.mark.parametrize("calls", [2, 3, 4])
def test_several_calls_of_one_module_before_a_backward_pass(calls):
    """One of these calls is the second recording; those after it must not take its memory.

    Each of those that wait gets a recording of its own then.
    """

    def program(draws):
        model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2))
        seen = []
        for _ in range(10):
            model.zero_grad()
            outs = [model(tensor(draws, 4, 6)) for _ in range(calls)]
            sum((out * tensor(draws, 4, 2)).sum() for out in outs).backward()
            seen.append(grads(model))
        assert explain(model).recordings == (calls if replays.state.enabled else 0)
        return seen

    plain, mine = with_and_without(program)
    assert mine == plain


def test_two_networks_that_play_against_each_other():
    """Gradients go through one into the other, in the memory order that they have without replays."""

    def program(draws):
        maker = nn.Sequential(
            nn.ConvTranspose2d(8, 12, 4), nn.BatchNorm2d(12), nn.ReLU(True),
            nn.ConvTranspose2d(12, 3, 4, 2, 1), nn.Tanh(),
        )  # fmt: skip
        judge = nn.Sequential(
            nn.Conv2d(3, 6, 4, 2, 1), nn.LeakyReLU(0.2, True), nn.BatchNorm2d(6),
            nn.Conv2d(6, 1, 4), nn.Sigmoid(), nn.Flatten(0),
        )  # fmt: skip
        steps = [dptrain.optim.Adam(m.parameters(), 1e-2) for m in (maker, judge)]
        real, seen = tensor(draws, 5, 3, 8, 8), []
        for _ in range(AHEAD + 2):
            judge.zero_grad()
            F.binary_cross_entropy(judge(real), dptrain.ones(5)).backward()
            fake = maker(tensor(draws, 5, 8, 1, 1))
            F.binary_cross_entropy(judge(fake.detach()), dptrain.zeros(5)).backward()
            steps[1].step()
            maker.zero_grad()
            F.binary_cross_entropy(judge(fake), dptrain.ones(5)).backward()
            steps[0].step()
            seen.append([fake.tolist(), grads(maker, judge)])
        assert replays.state.enabled is (min(explain(m).replays for m in (maker, judge)) > 0)
        return seen

    plain, mine = with_and_without(program)
    assert mine == plain


def test_a_loss_of_derivatives_from_the_first_step_on():
    """Its second derivatives add up in the order of the plain graph, of which no recording knows."""

    def program(draws):
        model = nn.Sequential(
            nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1)
        )
        optimizer, seen = dptrain.optim.Adam(model.parameters(), 1e-3), []
        for _ in range(AHEAD + 3):
            x = tensor(draws, 20, 2).requires_grad_()
            y = model(x)
            (dx,) = dptrain.autograd.grad(y.sum(), x, create_graph=True)
            optimizer.zero_grad()
            (dx[:, 0] * y[:, 0] + dx[:, 1] - y[:, 0] ** 2).pow(2).mean().backward()
            optimizer.step()
            seen.append(grads(model))
        assert "differentiated twice" in str(explain(model)) or not replays.state.enabled
        return seen

    plain, mine = with_and_without(program)
    assert mine == plain


class Program:
    """Something that a user may do with two modules, of which one feeds the other."""

    def __init__(self, draws):
        self.draws = draws
        self.first = nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)
        )
        self.second = nn.Sequential(nn.Flatten(), nn.Dropout(0.2), nn.Linear(16, 3))
        self.optimizer = dptrain.optim.SGD(
            [p for m in self.both for p in m.parameters()], lr=0.01, momentum=0.9
        )
        self.waiting, self.kept, self.seen = [], [], []

    @property
    def both(self):
        return self.first, self.second

    def step(self):
        self.forward()
        self.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def forward(self):
        out = self.second(self.first(tensor(self.draws, 3, 2, 4, 4)))
        self.waiting.append((out * tensor(self.draws, 3, 3)).sum())
        self.kept = [out, out.detach().numpy(), *self.kept[:5]]

    def forward_with_gradients(self):
        x = tensor(self.draws, 3, 2, 4, 4).requires_grad_()
        self.waiting.append(self.second(self.first(x)).pow(2).sum())
        self.kept = [x, *self.kept[:5]]

    def channels_last(self):
        x = tensor(self.draws, 3, 4, 4, 2).permute(0, 3, 1, 2)
        middle = self.first(x)
        middle.retain_grad()
        self.waiting.append(self.second(middle).sin().mean())
        self.kept = [middle, *self.kept[:5]]

    def of_each_alone(self):
        self.waiting.append(self.first(tensor(self.draws, 3, 2, 4, 4)).sum())
        self.waiting.append(self.second(tensor(self.draws, 3, 4, 2, 2)).sum())

    def in_place(self):
        out = self.first(tensor(self.draws, 3, 2, 4, 4))
        out.mul_(2).add_(1)
        self.waiting.append(self.second(out).sum())

    def without_gradients(self):
        with dptrain.no_grad():
            self.seen.append(self.second(self.first(tensor(self.draws, 3, 2, 4, 4))).tolist())

    def backward(self):
        if self.waiting:
            self.waiting.pop().backward()

    def backward_of_the_oldest(self):
        if self.waiting:
            self.waiting.pop(0).backward()

    def backward_of_all(self):
        if self.waiting:
            sum(self.waiting).backward()
            self.waiting.clear()

    def twice(self):
        if self.waiting:
            self.waiting[-1].backward(retain_graph=True)

    def gradients_alone(self):
        if self.waiting:
            found = dptrain.autograd.grad(self.waiting.pop(), self.second[2].weight)
            self.seen.append(found[0].tolist())

    def drop(self):
        self.waiting.clear()

    def update(self):
        self.optimizer.step()  # what waits needs the parameters as they were: an error, later

    def forget_gradients(self):
        self.optimizer.zero_grad()

    def switch_mode(self):
        self.first.train(not self.first.training)

    def freeze(self):
        if not self.waiting:  # else what it had depends on when the graph was made
            self.first[0].weight.requires_grad_(not self.first[0].weight.requires_grad)

    def smaller_batch(self):
        self.waiting.append(self.second(self.first(tensor(self.draws, 2, 2, 4, 4))).sum())

    def part_alone(self):
        self.waiting.append(self.first[0](tensor(self.draws, 3, 2, 4, 4)).sum())

    def of_an_average(self):
        with dptrain.no_grad():
            for p in self.second.parameters():
                p.mul_(0.5)

    def load(self):
        self.first.load_state_dict({k: v * 0.9 for k, v in self.first.state_dict().items()})

    def through_data(self):
        self.second[2].bias.data = self.second[2].bias.data + 1

    def new_part(self):
        self.second[2] = nn.Linear(16, 3)

    def attribute(self):
        self.second[1].p = 0.7 - self.second[1].p

    def hook(self):
        handle = self.first[2].register_forward_hook(lambda m, args, out: self.seen.append(3))
        self.forward()
        handle.remove()

    def gradient_hook(self):
        handle = self.second[2].weight.register_hook(lambda grad: 2 * grad)
        self.step()
        handle.remove()

    def copied(self):
        self.first = copy.deepcopy(self.first)

    def under_autocast(self):
        with dptrain.autocast("cpu"):
            out = self.second(self.first(tensor(self.draws, 3, 2, 4, 4)))
        self.waiting.append(out.float().sum())

    def checkpointed(self):
        middle = self.first(tensor(self.draws, 3, 2, 4, 4))
        self.waiting.append(checkpoint(self.second, middle, use_reentrant=False).sum())

    def changed_argument(self):
        x = tensor(self.draws, 3, 2, 4, 4)
        self.waiting.append(self.second(self.first(x)).sum())
        x.zero_()

    def same_argument_twice(self):
        x = tensor(self.draws, 3, 4, 2, 2).requires_grad_()
        self.waiting.append((self.second(x) + self.second(x)).sum())
        self.kept = [x, *self.kept[:5]]

    def look(self):
        self.seen.append([k.grad if isinstance(k, dptrain.Tensor) else k for k in self.kept])
        self.seen[-1] = [None if v is None else v.tolist() for v in self.seen[-1]]
        self.seen.append(grads(*self.both))


ACTIONS = [name for name in vars(Program) if name[0] != "_" and name != "both"]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from(ACTIONS), max_size=40), st.integers(0, AHEAD))
@example(["forward"] * 9 + ["backward_of_the_oldest"] * 9, 0)
@example(["forward", "forward_with_gradients", "backward_of_all"] * 5, 2)
@example(["in_place", "channels_last", "of_each_alone", "backward_of_all", "update"] * 9, 0)
def test_whatever_a_program_does(actions, ahead):
    def program(draws):
        run = Program(draws)
        for action in ["step"] * ahead + actions + ["forward", "look"]:
            try:
                getattr(run, action)()
            except RuntimeError as error:
                run.seen.append(type(error).__mro__[-4:])
                run.waiting.clear()
                [m.zero_grad() for m in run.both]  # the pass may have come to some parameters
            run.seen.append([float(loss.detach()) for loss in run.waiting])
        values = [v.tolist() for m in run.both for v in m.state_dict().values()]
        return [*run.seen, values, dptrain.rand(2).tolist()]

    plain, mine = with_and_without(program)
    assert mine == plain


def test_a_module_that_is_called_in_a_loop_is_replayed_throughout_in_time(monkeypatch):
    """There are more recordings after so many calls each, and no more than fit into some memory."""
    monkeypatch.setattr(automatic, "_CALLS_FOR_EACH", 5)
    calls = 9

    def program(draws):
        cell, start = nn.Sequential(nn.Linear(6, 6), nn.Tanh()), tensor(draws, 4, 6)
        seen = []
        for _ in range(40):
            cell.zero_grad()
            h = start
            for _ in range(calls):
                h = cell(h + 1)
            (h * tensor(draws, 4, 6)).sum().backward()
            seen.append(grads(cell))
        report = explain(cell)
        return seen, report.recordings, report.replays

    (plain, none, _), (mine, recordings, replays) = with_and_without(program)
    assert mine == plain
    assert none == 0
    assert recordings == calls
    assert replays > 20 * calls

    monkeypatch.setattr(automatic, "_MOST_LOOP_BYTES", 0)
    (_, (few, fewer, _)) = with_and_without(program)
    assert few == plain
    assert fewer == 1 + automatic._MOST_AT_ONCE  # the first call of a loop is of another kind
