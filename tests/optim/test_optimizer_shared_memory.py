"""What shares memory with a parameter or its gradient in PyTorch shares it here, flat storage or not."""

import copy

import pytest
from side_by_side import both, values

import dptrain
from dptrain.core.flat import place_of

pytestmark = pytest.mark.oracle

OPTIMIZERS = {
    "sgd": lambda lib, p: lib.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
    "adamw": lambda lib, p: lib.optim.AdamW(p, lr=0.1),
    "rmsprop": lambda lib, p: lib.optim.RMSprop(p, lr=0.1, momentum=0.5),
    "lbfgs": lambda lib, p: lib.optim.LBFGS(p, lr=0.1, max_iter=3),
    "adafactor": lambda lib, p: lib.optim.Adafactor(p, lr=0.1),
    "muon": lambda lib, p: lib.optim.Muon(p, lr=0.1),
}
SGD = OPTIMIZERS["sgd"]


def model(lib, bias=True):
    made = lib.nn.Sequential(
        lib.nn.Linear(3, 4, bias=bias), lib.nn.Tanh(), lib.nn.Linear(4, 3, bias=bias)
    ).double()
    with lib.no_grad():
        for i, p in enumerate(made.parameters()):
            p.copy_(values(lib, *p.shape, seed=i) * 0.3)
    return made


def loss_of(lib, module, seed=10):
    return (module(values(lib, 5, 3, seed=seed)) ** 2).sum()


def train(lib, module, optimizer, steps=2):
    for step in range(steps):

        def closure(seed=10 + step):
            optimizer.zero_grad()
            loss = loss_of(lib, module, seed)
            loss.backward()
            return loss

        optimizer.step(closure)


def views_made_before(lib, make):
    module = model(lib, bias=False)
    first, last = module.parameters()
    view, data, array = first.detach().view(-1), first.data, last.detach().numpy()
    optimizer = make(lib, module.parameters())
    train(lib, module, optimizer)
    after = [view.clone(), data.clone(), array.copy()]
    data.fill_(0.25)
    array[:, 0] = 0.5
    train(lib, module, optimizer)
    return [*after, view, array, *module.parameters()]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_views_made_before_the_optimizer_follow(name):
    both(views_made_before, OPTIMIZERS[name], tolerance=0.03 if name == "muon" else 1e-10)


def views_in_another_order(lib, make):
    """Parameters that are a transposed, a sliced and a strided part of something."""
    large, square = values(lib, 6, 4), values(lib, 3, 3, seed=1)
    params = [lib.nn.Parameter(t) for t in (large[:3, 1:3], large[3:, ::2], square.t())]
    optimizer = make(lib, params)
    for step in range(3):

        def closure(factor=step + 1.0):
            optimizer.zero_grad()
            loss = sum(((i + factor) * p**2 - p).sum() for i, p in enumerate(params))
            loss.backward()
            return loss

        optimizer.step(closure)
    return [large, square, *params]


@pytest.mark.parametrize("name", [n for n in OPTIMIZERS if n != "lbfgs"])  # which needs them whole
def test_parameters_that_are_parts_of_a_tensor_write_into_it(name):
    both(views_in_another_order, OPTIMIZERS[name], tolerance=0.05 if name == "muon" else 1e-10)


def tied_by_data(lib, make):
    module = model(lib)
    module[2] = lib.nn.Linear(4, 3, bias=False).double()
    module[2].weight = lib.nn.Parameter(module[0].weight.detach().t())
    optimizer = make(lib, module.parameters())
    train(lib, module, optimizer, 3)
    return module.parameters()


@pytest.mark.parametrize("name", ["sgd", "adamw", "rmsprop"])
def test_parameters_tied_by_their_memory_are_updated_one_after_the_other(name):
    both(tied_by_data, OPTIMIZERS[name])


def data_assigned_after(lib, keep):
    module, other = model(lib), values(lib, 4, 3, seed=5)
    optimizer = SGD(lib, module.parameters())
    train(lib, module, optimizer)
    if keep == "set_":
        with lib.no_grad():
            module[0].weight.set_(other)
    else:
        module[0].weight.data = other if keep == "whole" else values(lib, 8, 3, seed=5)[2:6]
    train(lib, module, optimizer)
    seen = other.clone()
    other.zero_()
    train(lib, module, optimizer)
    return [seen, other, *module.parameters()]


@pytest.mark.parametrize("keep", ["whole", "part", "set_"])
def test_data_that_was_assigned_stays_shared(keep):
    both(data_assigned_after, keep)


def data_transposed_in_place(lib):
    p = lib.nn.Parameter(values(lib, 3, 3))
    optimizer = SGD(lib, [p])
    for step in range(4):
        optimizer.zero_grad()
        (p * values(lib, 3, 3, seed=step)).sum().backward()
        optimizer.step()
        p.data = p.data.t()
    return [p]


def test_data_in_another_order_of_the_same_memory():
    both(data_transposed_in_place)


def data_of_another_model(lib):
    a = model(lib)
    b = copy.deepcopy(a)
    first, second = SGD(lib, a.parameters()), OPTIMIZERS["adamw"](lib, b.parameters())
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        q.data = p.data
    for _ in range(2):
        train(lib, a, first)
        train(lib, b, second)
    return [*a.parameters(), *b.parameters()]


def test_two_models_over_one_memory():
    both(data_of_another_model)


def state_assigned(lib, before):
    module = model(lib)
    state = {k: v.clone() * 2 for k, v in module.state_dict().items()}
    old = list(module.parameters())
    if before:
        module.load_state_dict(state, assign=True)
    optimizer = SGD(lib, module.parameters())
    train(lib, module, optimizer)
    if not before:
        module.load_state_dict(state, assign=True)
        train(lib, module, optimizer)
    return [*old, *module.parameters(), *state.values()]


@pytest.mark.parametrize("before", [True, False])
def test_a_state_dict_that_was_assigned_stays_shared(before):
    both(state_assigned, before)


def one_vector(lib):
    module = model(lib)
    flat = lib.cat([p.detach().reshape(-1) for p in module.parameters()])
    start = 0
    for p in module.parameters():
        p.data = flat[start : start + p.numel()].view_as(p)
        start += p.numel()
    optimizer = OPTIMIZERS["adamw"](lib, module.parameters())
    train(lib, module, optimizer, 3)
    flat *= 0.5
    train(lib, module, optimizer, 1)
    return [flat, *module.parameters()]


def test_parameters_laid_into_a_vector_by_hand():
    both(one_vector)


def gradients_held(lib, how):
    module = model(lib)
    optimizer = SGD(lib, module.parameters())
    held = []
    for step in range(3):
        optimizer.zero_grad()
        loss_of(lib, module, step).backward()
        held += [how(p.grad) for p in module.parameters()]
        optimizer.step()
    return [*held, *module.parameters()]


@pytest.mark.parametrize(
    "how",
    [lambda g: g, lambda g: g.detach(), lambda g: g.numpy(), lambda g: g.view(-1)],
    ids=["gradient", "detached", "numpy", "view"],
)
def test_gradients_of_passes_before_keep_their_values(how):
    both(gradients_held, how)


def gradient_held_while_it_grows(lib):
    module = model(lib)
    optimizer = SGD(lib, module.parameters())
    loss_of(lib, module, 1).backward()
    first, second, *_ = module.parameters()
    whole, part, gone = first.grad, first.grad.detach(), second.grad
    second.grad = None
    loss_of(lib, module, 2).backward()  # adds to the first, makes the second anew
    kept = [whole.clone(), part.clone(), gone.clone()]
    loss_of(lib, module, 3).backward()
    optimizer.step()
    return [*kept, whole, part, gone, *(p.grad for p in module.parameters()), *module.parameters()]


def test_gradient_that_is_added_to_is_seen_by_who_holds_it():
    both(gradient_held_while_it_grows)


def gradient_from_outside(lib):
    """A buffer that is filled anew each step, assigned once."""
    p = lib.nn.Parameter(values(lib, 4))
    buffer = lib.zeros(4, dtype=lib.float64)
    optimizer = SGD(lib, [p])
    p.grad = buffer
    for step in range(3):
        buffer.copy_(values(lib, 4, seed=step))
        optimizer.step()
    return [p, p.grad, buffer]


def test_gradient_that_is_written_from_outside():
    both(gradient_from_outside)


def test_parameters_without_onlookers_lie_together():
    module = model(dptrain)
    optimizer = SGD(dptrain, module.parameters())
    train(dptrain, module, optimizer, 3)
    assert len(optimizer._plan.runs) == 1
    grads = [p.grad for p in module.parameters()]
    optimizer.zero_grad()
    del grads
    storage = place_of(module[0].weight).storage
    memory = storage.grad
    train(dptrain, module, optimizer, 3)
    assert storage.grad is memory
    assert len(optimizer._plan.runs) == 1


def test_parameter_moves_in_when_nobody_looks_any_more():
    module = model(dptrain)
    view = module[0].weight.detach()
    optimizer = SGD(dptrain, module.parameters())
    storage = place_of(module[0].weight).storage
    train(dptrain, module, optimizer, 1)
    assert not storage.lies_here(module[0].weight)
    del view
    train(dptrain, module, optimizer, 2)
    assert storage.lies_here(module[0].weight)


def test_memory_that_processes_share_does_not_move():
    module = model(dptrain)
    module.share_memory()
    optimizer = SGD(dptrain, module.parameters())
    train(dptrain, module, optimizer)
    assert all(p.is_shared() for p in module.parameters())
