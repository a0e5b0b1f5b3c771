"""Dual tensors against torch.autograd.forward_ad."""

import pytest
from side_by_side import both, error_of, values

pytestmark = [
    pytest.mark.oracle,
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning"),
]


def test_derivatives_along_directions():
    def program(lib):
        fwd = lib.autograd.forward_ad
        x, along = values(lib, 3), values(lib, 3, seed=1)
        module = lib.nn.Linear(3, 2).double()
        with lib.no_grad():
            module.weight.copy_(values(lib, 2, 3, seed=2))
            module.bias.zero_()
        with fwd.dual_level():
            dual, other = fwd.make_dual(x, along), fwd.make_dual(x * 2, along * 3)
            wave = fwd.unpack_dual((dual.sin() * other).sum())
            parts = fwd.unpack_dual(dual[1:] ** 2)
            weights = [fwd.make_dual(p.detach(), p.detach() * 0 + 1) for p in module.parameters()]
            out = lib.func.functional_call(
                module, dict(zip(("weight", "bias"), weights, strict=True)), x
            )
            found = [*wave, *parts, *fwd.unpack_dual(dual), *fwd.unpack_dual(out)]
            found += [
                fwd.unpack_dual(x).tangent,
                wave.tangent.requires_grad,
                wave.primal.requires_grad,
            ]
        return [*found, fwd.unpack_dual(x).primal]

    both(program)


def test_derivatives_along_directions_can_be_differentiated():
    def program(lib):
        fwd, x = lib.autograd.forward_ad, values(lib, 3).requires_grad_()
        with fwd.dual_level():
            tangent = fwd.unpack_dual((fwd.make_dual(x, values(lib, 3, seed=1)) ** 3).sum()).tangent
            return [tangent, *lib.autograd.grad(tangent, x)]

    both(program)


MISUSES = {
    "no level": lambda fwd, x: fwd.make_dual(x, x),
    "no level to exit": lambda fwd, x: fwd.exit_dual_level(),
    "shape": lambda fwd, x: inside(fwd, lambda: fwd.make_dual(x, x[:1])),
    "integers": lambda fwd, x: inside(fwd, lambda: fwd.make_dual(x.long(), x)),
    "nested": lambda fwd, x: inside(fwd, fwd.enter_dual_level),
}


def inside(fwd, use):
    with fwd.dual_level():
        return use()


@pytest.mark.parametrize("use", MISUSES.values(), ids=MISUSES)
def test_misuse_is_the_error_of_pytorch(use):
    both(lambda lib: error_of(lambda: use(lib.autograd.forward_ad, values(lib, 2))))
