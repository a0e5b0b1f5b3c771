"""dptrain.func against torch.func: derivatives, batches, modules as functions, and what is refused."""

import copy
from itertools import pairwise

import pytest
from side_by_side import both, error_of, values

import dptrain

pytestmark = [
    pytest.mark.oracle,
    pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node:UserWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning"),
]


def net(lib, *sizes):
    layers = []
    for i, (n, m) in enumerate(pairwise(sizes)):
        linear = lib.nn.Linear(n, m).double()
        with lib.no_grad():
            for k, p in enumerate(linear.parameters()):
                p.copy_(values(lib, *p.shape, seed=10 * i + k) * 0.3)
        layers += [linear, lib.nn.Tanh()]
    return lib.nn.Sequential(*layers[:-1])


def test_derivatives_of_functions_of_one_tensor():
    def program(lib):
        f, x = lib.func, values(lib, 4)

        def wave(x):
            return (x.sin() * x).sum()

        def mixed(x):
            return x**2 * x.sum()

        slopes, value = f.grad_and_value(wave)(x)
        output, pull = f.vjp(lambda a, b: (a * b, a + b), x, x * 2)
        sine, pull_one = f.vjp(lib.sin, x)
        image, push = f.linearize(lambda a: a.exp() * a, x)
        found = [
            f.grad(wave)(x), slopes, value,
            f.grad(f.grad(lambda x: x.sin()))(lib.tensor(0.3)),
            f.jacrev(mixed)(x), f.jacfwd(mixed)(x), f.hessian(wave)(x), f.jacrev(f.jacrev(mixed))(x),
            output, pull((x, x)), sine, pull_one(lib.ones_like(x)),
            f.jvp(lambda a, b: a * b.exp(), (x, x), (x, x * 2)), image, push(x),
        ]  # fmt: skip
        return [*found, slopes.requires_grad, value.requires_grad, sine.requires_grad]

    both(program, tolerance=1e-6)


def test_nested_arguments_and_auxiliary_results():
    def program(lib):
        f = lib.func
        params = {"w": values(lib, 3, 2), "b": values(lib, 3, seed=1)}
        x, y = values(lib, 5, 2), values(lib, 5, 3)

        def loss(params, x, y):
            out = x @ params["w"].T + params["b"]
            return ((out - y) ** 2).mean(), {"out": out}

        def parts(params, x):
            return {"a": x @ params["w"].T, "s": params["b"].sum()}

        return [
            f.grad_and_value(loss, has_aux=True)(params, x, y),
            f.grad(loss, (0, 1), has_aux=True)(params, x, y),
            f.jacrev(parts, argnums=(0, 1))(params, x),
            f.jacfwd(parts, argnums=1)(params, x),
        ]

    both(program)


def test_gradients_of_single_samples_and_ensembles():
    def program(lib):
        f, module, x = lib.func, net(lib, 3, 4, 2), values(lib, 6, 3)
        params = {k: v.detach() for k, v in module.named_parameters()}
        target = lib.tensor([0, 1, 0, 1, 1, 0])

        def loss(params, sample, target):
            out = f.functional_call(module, params, (sample.unsqueeze(0),))
            return lib.nn.functional.cross_entropy(out, target.unsqueeze(0))

        models = [net(lib, 3, 2) for _ in range(3)]
        stacked = f.stack_module_state(models)
        base = copy.deepcopy(models[0])

        def run(params, buffers, x):
            return f.functional_call(base, (params, buffers), (x,))

        return [
            f.vmap(f.grad(loss), in_dims=(None, 0, 0))(params, x, target),
            f.vmap(run, in_dims=(0, 0, None))(*stacked, x),
            f.vmap(run)(*stacked, x[:3]),
            f.vmap(f.jacrev(lambda a: a.sin() * a.sum()))(x),
            f.vmap(f.hessian(lambda a: (a**3).sum()))(x),
        ]

    both(program)


def test_dimensions_of_a_map():
    def program(lib):
        x = values(lib, 3, 4)
        return [
            lib.vmap(lib.dot)(x, x),
            lib.vmap(lib.dot, in_dims=(1, None))(x, x[:, 0]),
            lib.vmap(lambda a: (a, a.sum()), out_dims=(1, 0))(x),
            lib.vmap(lambda a: {"x": a, "y": [a]}, out_dims={"x": 1, "y": [-1]})(x),
            lib.vmap(lambda d, k: d["a"] * k, in_dims=({"a": 1}, None))({"a": x}, 2.0),
            lib.vmap(lib.vmap(lib.mul, in_dims=(None, 0)), in_dims=(0, None))(x[0], x[1]),
            lib.vmap(lambda a, *, b: a * b)(x, b=x),
            lib.vmap(lib.sin, chunk_size=2)(x),
        ]

    both(program)


def test_gradients_reach_what_the_caller_differentiates_by():
    """An inner step that is differentiated through, as in model-agnostic meta-learning."""

    def program(lib):
        f, module = lib.func, net(lib, 1, 8, 1)
        params = dict(module.named_parameters())
        losses = []
        for task in range(3):
            x = values(lib, 5, 1, seed=task)

            def loss(params, x, factor=task + 1):
                out = f.functional_call(module, params, (x,))
                return ((out - (factor * x).sin()) ** 2).mean()

            slopes = f.grad(loss)(params, x)
            losses.append(loss({k: params[k] - 0.1 * slopes[k] for k in params}, x * 0.5))
        total = lib.stack(losses).mean()
        total.backward()
        return [total, *(p.grad for p in module.parameters())]

    both(program)


def test_results_have_a_history_only_where_it_leads_outside():
    def program(lib):
        f, x = lib.func, values(lib, 3)
        weight = values(lib, 3, seed=1).requires_grad_()

        def by_closure(x):
            return (x**2 * weight).sum()

        slopes = f.grad(by_closure)(x)
        slopes.sum().backward()
        with lib.no_grad():
            plain = f.grad(by_closure)(x)
        y = x.clone().requires_grad_()
        third = f.grad(lambda y: (y**3).sum())(y)
        output, pull = f.vjp(lambda a: a * weight, x)
        return [
            slopes, weight.grad, slopes.requires_grad, plain, plain.requires_grad, third.requires_grad,
            lib.autograd.grad(third.sum(), y), output.requires_grad, pull(x), pull(x)[0].requires_grad,
            f.grad(lambda x: (x**2).sum())(x).requires_grad,
        ]  # fmt: skip

    both(program)


def test_random_numbers_in_a_map():
    def program(lib):
        zeros = lib.zeros(3, 2)
        same = lib.vmap(lambda a: a + lib.rand(2), randomness="same")(zeros)
        different = lib.vmap(lambda a: a + lib.rand(2), randomness="different")(zeros)
        return [
            bool((same[0] == same[1]).all()),
            bool((different[0] == different[1]).any()),
            error_of(lambda: lib.vmap(lambda a: a + lib.rand(2))(zeros)),
        ]

    both(program)


MISUSES = {
    "grad of a vector": lambda lib, x: lib.func.grad(lambda x: x)(x),
    "grad of a number": lambda lib, x: lib.func.grad(lambda x: x.sum().item())(x),
    "argnum beyond": lambda lib, x: lib.func.grad(lambda x: x.sum(), argnums=1)(x),
    "argnum twice": lambda lib, x: lib.func.grad(lambda x: x.sum(), argnums=(0, 0))(x),
    "grad by a number": lambda lib, x: lib.func.grad(lambda x: x * 2)(3.0),
    "grad by integers": lambda lib, x: lib.func.grad(lambda x: x.sum())(x.long()),
    "no pair": lambda lib, x: lib.func.grad(lambda x: x.sum(), has_aux=True)(x),
    "jvp without tuple": lambda lib, x: lib.func.jvp(lib.sin, x, x),
    "jvp of nothing": lambda lib, x: lib.func.jvp(lib.sin, (), ()),
    "jvp shapes": lambda lib, x: lib.func.jvp(lib.sin, (x,), (x[0],)),
    "vjp shapes": lambda lib, x: lib.func.vjp(lib.sin, x)[1](x[0]),
    "vjp structure": lambda lib, x: lib.func.vjp(lambda x: (x, x), x)[1](x),
    "jacrev of a number": lambda lib, x: lib.func.jacrev(lambda x: 3)(x),
    "jacrev chunk": lambda lib, x: lib.func.jacrev(lib.sin, chunk_size=0),
    "sizes": lambda lib, x: lib.vmap(lib.add)(x, x[:2]),
    "in_dim beyond": lambda lib, x: lib.vmap(lib.add, in_dims=(0, 5))(x, x),
    "in_dims of a kind": lambda lib, x: lib.vmap(lib.add, in_dims=None)(x, x),
    "nothing mapped": lambda lib, x: lib.vmap(lib.add, in_dims=(None, None))(x, x),
    "in_dims structure": lambda lib, x: lib.vmap(lib.add, in_dims=(0,))(x, x),
    "no inputs": lambda lib, x: lib.vmap(lambda: x)(),
    "mapped number": lambda lib, x: lib.vmap(lambda a, b: a)(x, 3.0),
    "result of a number": lambda lib, x: lib.vmap(lambda a: a.shape[0])(x),
    "out_dim beyond": lambda lib, x: lib.vmap(lib.sin, out_dims=4)(x),
    "out_dims structure": lambda lib, x: lib.vmap(lib.sin, out_dims=(0, 1))(x),
    "chunk": lambda lib, x: lib.vmap(lib.sin, chunk_size=0)(x),
    "randomness": lambda lib, x: lib.vmap(lib.sin, randomness="some")(x),
}


@pytest.mark.parametrize("use", MISUSES.values(), ids=MISUSES)
def test_misuse_is_the_error_of_pytorch(use):
    both(lambda lib: error_of(lambda: use(lib, values(lib, 3, 4))))


def test_batch_normalisation_without_running_statistics():
    def program(lib):
        module = lib.nn.Sequential(lib.nn.Conv2d(1, 2, 3), lib.nn.BatchNorm2d(2))
        lib.func.replace_all_batch_norm_modules_(module)
        return [module[1].track_running_stats, list(module.state_dict())]

    both(program)


def test_linear_maps_of_a_deep_function_are_those_of_its_jacobian():
    """A map of products against the Jacobian, without another library."""
    module, x, v = net(dptrain, 3, 5, 4), values(dptrain, 3), values(dptrain, 3, seed=9)
    table = dptrain.func.jacrev(module)(x)
    _, push = dptrain.func.linearize(module, x)
    assert dptrain.allclose(push(v), table @ v)
    assert dptrain.allclose(dptrain.vmap(push)(dptrain.eye(3, dtype=dptrain.float64)).T, table)
