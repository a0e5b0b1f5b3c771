"""`biject_to` and `transform_to`: what leads from real numbers to a constraint, compared with PyTorch."""

import numpy as np
import pytest

import dptrain

MAKERS = {
    "real": lambda lib, c: c.real,
    "positive": lambda lib, c: c.positive,
    "nonnegative": lambda lib, c: c.nonnegative,
    "greater_than": lambda lib, c: c.greater_than(lib.tensor([1.0, -2.0, 0.5])),
    "greater_than_eq": lambda lib, c: c.greater_than_eq(2.0),
    "less_than": lambda lib, c: c.less_than(-1.5),
    "unit_interval": lambda lib, c: c.unit_interval,
    "interval": lambda lib, c: c.interval(-1.0, 3.0),
    "half_open_interval": lambda lib, c: c.half_open_interval(2.0, 5.0),
    "simplex": lambda lib, c: c.simplex,
    "lower_cholesky": lambda lib, c: c.lower_cholesky,
    "positive_definite": lambda lib, c: c.positive_definite,
    "positive_semidefinite": lambda lib, c: c.positive_semidefinite,
    "independent": lambda lib, c: c.independent(c.positive, 1),
    "real_vector": lambda lib, c: c.real_vector,
    "of a distribution": lambda lib, c: lib.distributions.Dirichlet(lib.ones(3)).support,
    "boolean": lambda lib, c: c.boolean,
    "dependent": lambda lib, c: c.dependent,
    "square": lambda lib, c: c.square,
}


def _led(lib, registry, maker, values):
    d = lib.distributions
    constraint = maker(lib, d.constraints)
    try:
        transform = getattr(d, registry)(constraint)
    except NotImplementedError as error:
        return str(error)
    x = lib.tensor(values)
    y = transform(x)
    assert constraint.check(y).all()
    found = [type(transform).__name__, y.numpy(), transform.inv(y).numpy()]
    if transform.bijective:
        found.append(transform.log_abs_det_jacobian(x, y).numpy())
    return found


@pytest.mark.oracle
@pytest.mark.parametrize("registry", ["biject_to", "transform_to"])
@pytest.mark.parametrize("name", MAKERS)
def test_transforms_lead_to_the_constraint_as_in_pytorch(name, registry):
    torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
    values = np.array([[0.3, -1.2, 0.8], [1.5, 0.1, -0.4], [-0.7, 0.9, 0.2]], np.float32)
    ours, theirs = (_led(lib, registry, MAKERS[name], values) for lib in (dptrain, torch))
    if isinstance(theirs, str):
        assert ours == theirs
        return
    assert ours[0] == theirs[0]
    assert len(ours) == len(theirs)
    for a, b in zip(ours[1:], theirs[1:], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_a_constraint_of_the_users_own():
    d = dptrain.distributions

    class Even(d.constraints.Constraint):
        pass

    registry = d.constraint_registry.ConstraintRegistry()

    @registry.register(Even)
    def doubled(constraint):
        return d.AffineTransform(0, 2)

    assert registry(Even())(dptrain.tensor(3.0)).item() == 6
    registry.register(Even(), lambda constraint: d.AffineTransform(0, 4))
    assert registry(Even())(dptrain.tensor(3.0)).item() == 12
    with pytest.raises(TypeError, match="Expected constraint to be either"):
        registry.register(3, doubled)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16", "int64", "bool"])
def test_a_batch_lies_in_a_set_where_all_its_elements_do(dtype):
    constraints = dptrain.distributions.constraints
    sets = [
        *(constraints.boolean, constraints.real, constraints.positive, constraints.nonnegative),
        *(constraints.unit_interval, constraints.half_open_interval(0.0, 1.0)),
        *(constraints.simplex, constraints.one_hot, constraints.real_vector),
        *(constraints.multinomial(2), constraints.positive_integer, constraints.less_than(0.5)),
        *(constraints.integer_interval(0, 1), constraints.nonnegative_integer),
        constraints.interval(dptrain.tensor([0.0, 0.5]), dptrain.tensor([1.0, 1.0])),
    ]
    values = [[0.0, 1.0], [0.5, 0.5], [2.0, 0.0], [0.3, 0.3], [-1.0, 2.0], [1.0, 1.0]]
    if dtype not in ("int64", "bool"):
        values += [[float("nan"), 1.0], [float("inf"), 0.0]]
    found = set()
    for value in values:
        x = dptrain.tensor([value, [0.0, 1.0]]).to(getattr(dptrain, dtype))
        for constraint in sets:
            inside = bool(constraint.check(x).all())
            assert constraint.holds(x) is inside, (constraint, value)
            found.add(inside)
    assert found == {True, False}


def test_a_check_of_the_users_sees_tensors():
    class Even(dptrain.distributions.constraints.Constraint):
        def check(self, value):
            return value.remainder(2).eq(0)

    class Positive(type(dptrain.distributions.constraints.positive)):
        def check(self, value):
            return value.gt(self.lower_bound)

    x = dptrain.tensor([2.0, 4.0], requires_grad=True)
    assert Even().holds(x)
    assert not Even().holds(x + 1)
    assert Positive(3.0).holds(x + 2)
    assert not Positive(3.0).holds(x)
