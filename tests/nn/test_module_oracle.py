"""What a caller sees of modules' state and copies, each scenario run in both libraries."""

import copy
import io
import pickle
from collections import OrderedDict

import pytest
from scenarios import agree, attempt, collector, filled, net, state

import dptrain

pytestmark = pytest.mark.oracle
torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")

SCENARIOS, scenario = collector()


# ---- state -----------------------------------------------------------------------------------------


@scenario
def names_of_parameters_and_buffers(lib):
    module = net(lib)
    return [
        [name for name, _ in module.named_parameters()],
        [name for name, _ in module.named_parameters(remove_duplicate=False)],
        [name for name, _ in module.named_parameters(prefix="p", recurse=False)],
        [name for name, _ in module.named_buffers()],
        [name for name, _ in module.named_modules(remove_duplicate=False)],
        [name for name, _ in module.named_children()],
        len(list(module.modules())),
        len(list(module.modules(remove_duplicate=False))),
        list(module.state_dict()),
        state(module),
    ]


@scenario
def options_of_state_dict(lib):
    module, into = net(lib), OrderedDict()
    kept = module.state_dict(prefix="a.", keep_vars=True)
    module.state_dict(destination=into, prefix="b.")
    return [
        list(kept),
        kept["a.scale"] is module.scale,
        kept["a.first.weight"].requires_grad,
        list(into),
        hasattr(into, "_metadata"),
        dict(module.state_dict()._metadata),
        list(module.state_dict(OrderedDict(), "c.", False)),
    ]


def _report(lib, change, **options):
    module, given = net(lib), net(lib).state_dict()
    change(lib, given)
    return attempt(lambda: str(module.load_state_dict(given, **options)))


CHANGES = {
    "nothing": lambda lib, s: None,
    "missing": lambda lib, s: s.pop("scale"),
    "missing below": lambda lib, s: [s.pop(k) for k in list(s) if k.startswith("first")],
    "unexpected": lambda lib, s: s.update(x=lib.zeros(1), **{"first.y": lib.zeros(1)}),
    "unexpected path": lambda lib, s: s.update({"other.weight": lib.zeros(1)}),
    "size": lambda lib, s: s.update(scale=lib.zeros(3)),
    "several": lambda lib, s: (s.pop("seen"), s.update(x=lib.zeros(1), scale=lib.zeros(1, 2))),
    "hidden": lambda lib, s: s.update(hidden=lib.zeros(1)),
    "no tensor": lambda lib, s: s.update(scale=[1, 2]),
    "old scalar": lambda lib, s: s.update(
        {"norm.num_batches_tracked": lib.zeros(1, dtype=lib.int64)}
    ),
    "extra": lambda lib, s: s.update(_extra_state=3),
}
for _name, _change in CHANGES.items():
    for _strict in (True, False):
        SCENARIOS[f"load_state_dict, {_name}, strict={_strict}"] = (
            lambda lib, c=_change, s=_strict: _report(lib, c, strict=s)
        )


@scenario
def batch_counts_are_not_asked_of_old_files(lib):
    module, given = net(lib), dict(net(lib).state_dict())  # a plain dict has no versions
    del given["norm.num_batches_tracked"]
    new = net(lib).state_dict()
    del new["norm.num_batches_tracked"]
    return [str(module.load_state_dict(given)), attempt(lambda: module.load_state_dict(new))]


@scenario
def assigned_state(lib):
    module = net(lib)
    held, given = module.scale, {"scale": lib.tensor([5.0, 6.0], dtype=lib.float64)}
    seen = lib.tensor([3.0])
    module.scale.requires_grad_(False)
    module.load_state_dict({**given, "seen": seen}, strict=False, assign=True)
    parameter = lib.nn.Parameter(lib.zeros(2))
    module.load_state_dict({"scale": parameter}, strict=False, assign=True)
    return [
        module.scale is held,
        module.scale is parameter,
        module.scale.requires_grad,
        module.seen is seen,
        type(module.scale).__name__,
        attempt(lambda: module.load_state_dict({"scale": lib.zeros(3)}, strict=False, assign=True)),
    ]


@scenario
def extra_state(lib):
    class Extra(lib.nn.Module):
        def __init__(self):
            super().__init__()
            self.note = "new"

        def get_extra_state(self):
            return {"note": self.note}

        def set_extra_state(self, state):
            self.note = state["note"]

    one, two = lib.nn.Sequential(Extra()), lib.nn.Sequential(Extra())
    one[0].note = "old"
    given = one.state_dict()
    two.load_state_dict(given)
    plainly = lib.nn.Sequential(lib.nn.ReLU())
    return [
        dict(given),
        two[0].note,
        attempt(lambda: two.load_state_dict({})),
        attempt(lambda: plainly.load_state_dict(given)),
    ]


@scenario
def hooks_on_state(lib):
    said, module = [], net(lib)
    module.register_state_dict_pre_hook(lambda m, prefix, keep: said.append(("pre", prefix, keep)))
    module.register_state_dict_post_hook(lambda m, s, prefix, local: s.pop(prefix + "seen"))
    late = attempt(lambda: module.state_dict())
    module._state_dict_hooks.clear()

    def forget(m, s, prefix, local):
        s.pop(prefix + "seen")

    def rename(m, s, prefix, local, strict, missing, unexpected, errors):
        said.append((type(m).__name__, prefix, dict(local), strict))
        s[prefix + "scale"] = s.pop(prefix + "factor")

    def after(m, found):
        said.append((list(found.missing_keys), list(found.unexpected_keys), m.scale.tolist()))
        found.missing_keys.clear()

    handle = module.register_state_dict_post_hook(forget)
    outer = lib.nn.Sequential(module)
    given = outer.state_dict()
    given["0.factor"] = given.pop("0.scale") + 1
    module.register_load_state_dict_pre_hook(rename)
    module.register_load_state_dict_post_hook(after)
    outer.load_state_dict(given)
    handle.remove()
    wrong = lib.nn.Linear(1, 1)
    wrong.register_load_state_dict_post_hook(lambda m, found: 3)
    return [
        late,
        said,
        list(given),
        list(outer.state_dict()),
        attempt(lambda: wrong.load_state_dict(wrong.state_dict()))[0],
    ]


@scenario
def own_ways_to_save_and_load(lib):
    class Doubled(lib.nn.Linear):
        def _save_to_state_dict(self, destination, prefix, keep_vars):
            super()._save_to_state_dict(destination, prefix, keep_vars)
            destination[prefix + "twice"] = destination.pop(prefix + "weight") * 2

        def _load_from_state_dict(self, state_dict, prefix, *args):
            state_dict[prefix + "weight"] = state_dict.pop(prefix + "twice") / 2
            super()._load_from_state_dict(state_dict, prefix, *args)

    one, two = (lib.nn.Sequential(filled(lib, Doubled(2, 1)), lib.nn.ReLU()) for _ in range(2))
    with lib.no_grad():
        one[0].weight.fill_(3.0)
    two.load_state_dict(one.state_dict())
    return [state(one), two[0].weight]


@scenario
def prefixes_are_taken_off(lib):
    outer = lib.nn.ModuleDict({"module": net(lib)})
    given = outer.state_dict()
    lib.nn.modules.utils.consume_prefix_in_state_dict_if_present(given, "module.")
    return [list(given), sorted(given._metadata), str(net(lib).load_state_dict(given))]


@scenario
def tied_weights_stay_tied(lib):
    class Tied(lib.nn.Module):
        def __init__(self):
            super().__init__()
            self.a = lib.nn.Linear(2, 2, bias=False)
            self.b = lib.nn.Linear(2, 2, bias=False)
            self.b.weight = self.a.weight

    module = filled(lib, Tied())
    twin = copy.deepcopy(module)
    module.load_state_dict({"a.weight": lib.ones(2, 2), "b.weight": lib.zeros(2, 2)})
    module.double()
    return [
        twin.a.weight is twin.b.weight,
        module.a.weight is module.b.weight,
        twin.a.weight is module.a.weight,
        [n for n, _ in twin.named_parameters()],
        list(twin.state_dict()),
        state(module),
        state(twin),
    ]


# ---- copies ----------------------------------------------------------------------------------------


@scenario
def copies(lib):
    module = lib.nn.Sequential(lib.nn.Linear(2, 2), lib.nn.BatchNorm1d(2)).eval()
    filled(lib, module)[0].weight.requires_grad_(False)
    module[0].bias.grad = lib.ones(2)
    deep, shallow = copy.deepcopy(module), copy.copy(module)
    back = pickle.loads(pickle.dumps(module))
    shallow.extra = 1
    return [
        [state(m) for m in (deep, shallow, back)],
        [(m.training, m[0].weight.requires_grad, m[0].bias.grad is None) for m in (deep, back)],
        [deep[0] is module[0], shallow[0] is module[0], shallow._modules is module._modules],
        hasattr(module, "extra"),
        repr(back),
    ]


@scenario
def copies_of_parametrized_modules(lib):
    parametrize = lib.nn.utils.parametrize

    class Double(lib.nn.Module):
        def forward(self, x):
            return 2 * x

    layer = filled(lib, lib.nn.Linear(2, 2))
    parametrize.register_parametrization(layer, "weight", Double())
    twin = copy.deepcopy(layer)
    layer = filled(lib, lib.nn.Linear(1, 1))
    parametrize.register_parametrization(layer, "weight", Double())
    parametrize.remove_parametrizations(layer, "weight")
    return [
        list(twin.state_dict()),
        twin.weight,
        type(twin).__name__,
        parametrize.is_parametrized(twin),
        type(layer).__name__,
        attempt(lambda: pickle.dumps(twin))[0],
        repr(twin),
    ]


@scenario
def old_weight_norm_state_loads_into_the_new_form(lib):
    parametrizations = lib.nn.utils.parametrizations
    new = lib.nn.Sequential(parametrizations.weight_norm(lib.nn.Linear(2, 3)))
    given = {"0.bias": lib.ones(3), "0.weight_g": lib.ones(3, 1), "0.weight_v": lib.ones(3, 2) * 2}
    return [str(new.load_state_dict(given)), state(new), list(given)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SCENARIOS)
def test_both_libraries_agree(name):
    agree(SCENARIOS[name])


def test_a_load_that_fails_changes_nothing():
    module = net(dptrain)
    before = state(module)
    given = {k: v + 1 for k, v in module.state_dict().items()}
    given["scale"] = dptrain.zeros(7)
    with pytest.raises(RuntimeError, match="size mismatch for scale"):
        module.load_state_dict(given)
    assert state(module) == before


def test_metadata_survives_a_pickle():
    given = pickle.load(io.BytesIO(pickle.dumps(net(dptrain).state_dict())))
    assert given._metadata["norm"] == {"version": 2}
