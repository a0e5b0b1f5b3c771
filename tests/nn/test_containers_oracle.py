"""Containers of modules and parameters: every method, in both libraries."""

from collections import OrderedDict

import pytest
from scenarios import agree, attempt, collector

pytestmark = pytest.mark.oracle

SCENARIOS, scenario = collector()


def layers(lib, *sizes):
    return [lib.nn.Linear(size, size) for size in sizes]


def shown(container):
    return [list(container.state_dict()), repr(container)]


@scenario
def sequential(lib):
    nn = lib.nn
    s = nn.Sequential(*layers(lib, 1, 2, 3))
    named = nn.Sequential(OrderedDict(a=nn.Linear(1, 1), b=nn.ReLU()))
    facts = [shown(s), shown(named), len(s), shown(s[1:]), shown(named[:1]), repr(s[-1])]
    facts += [shown(s + named), shown(s * 2), shown(2 * s), [repr(m) for m in s]]
    s.append(nn.ReLU()).extend([nn.Tanh()]).insert(1, nn.Sigmoid())
    facts += [shown(s), repr(s.pop(-1)), shown(s), repr(s.pop(0)), shown(s)]
    s[0] = nn.Linear(7, 7)
    del s[1:3]
    facts.append(shown(s))
    s += named
    s *= 2
    facts.append(shown(s))
    del named[0]
    facts.append(shown(named))
    return facts


@scenario
def errors_of_sequential(lib):
    nn = lib.nn
    s = nn.Sequential(*layers(lib, 1, 2))
    return [
        attempt(action)
        for action in (
            lambda: s[5],
            lambda: s[-3],
            lambda: s["a"],
            lambda: s.insert(5, nn.ReLU()),
            lambda: s.insert(0, 3),
            lambda: s.append(3),
            lambda: s + 3,
            lambda: s * "a",
            lambda: s * 0,
            lambda: s * -1,
            lambda: s.__imul__(0),
            lambda: s.pop(7),
            lambda: nn.Sequential(3),
            lambda: nn.Sequential(OrderedDict(a=3)),
            lambda: nn.Sequential(nn.ReLU(), 3),
            lambda: nn.Sequential()(lib.ones(1)),
        )
    ]


@scenario
def module_list(lib):
    nn = lib.nn
    m = nn.ModuleList(layers(lib, 1, 2, 2, 2, 3))
    facts = [shown(m), len(m), repr(m[-1]), shown(m[1:3]), shown(m[::2]), [repr(x) for x in m]]
    m.insert(0, nn.ReLU())
    m.insert(2, nn.Tanh())
    m.insert(99, nn.Sigmoid())
    facts.append(shown(m))
    m.append(nn.ReLU()).extend([nn.Tanh()])
    m += [nn.ReLU()]
    m[-1] = nn.ReLU6()
    del m[0], m[-2:]
    facts += [shown(m), repr(m.pop(-1)), repr(m.pop(0)), shown(m), shown(m.__add__([nn.ReLU()]))]
    facts += [
        m[0] in m,
        nn.ReLU() in m,
        shown(nn.ModuleList()),
        sorted(n for n in dir(m) if n.isdigit()),
    ]
    return facts


@scenario
def errors_of_module_list(lib):
    nn = lib.nn
    m = nn.ModuleList(layers(lib, 1, 2))
    return [
        attempt(action)
        for action in (
            lambda: m[5],
            lambda: m[-3],
            lambda: m(lib.ones(1)),
            lambda: m.append(3),
            lambda: m.extend(3),
            lambda: m.extend([3]),
            lambda: m.pop(9),
            lambda: m.__setitem__(9, nn.ReLU()),
            lambda: m.__delitem__(9),
            lambda: nn.ModuleList(3),
        )
    ]


@scenario
def module_dict(lib):
    nn = lib.nn
    d = nn.ModuleDict({"b": nn.Linear(1, 1), "a": nn.ReLU()})
    facts = [
        shown(d),
        len(d),
        list(d),
        list(d.keys()),
        [k for k, _ in d.items()],
        "a" in d,
        "x" in d,
    ]
    d["c"] = nn.Tanh()
    d.update([("d", nn.Sigmoid()), ["b", nn.Linear(2, 2)]])
    d.update(nn.ModuleDict({"e": nn.ReLU()}))
    d.update(OrderedDict(f=nn.ReLU()))
    facts += [shown(d), repr(d.pop("d")), len(d.values())]
    del d["a"]
    facts.append(shown(d))
    d.clear()
    return [*facts, shown(d), shown(nn.ModuleDict([["z", nn.ReLU()], ("y", nn.ReLU())]))]


@scenario
def errors_of_module_dict(lib):
    nn = lib.nn
    d = nn.ModuleDict({"a": nn.ReLU()})
    return [
        attempt(action)
        for action in (
            lambda: d["x"],
            lambda: d.pop("x"),
            lambda: d.__delitem__("x"),
            lambda: d.__setitem__("b", 3),
            lambda: d.__setitem__(3, nn.ReLU()),
            lambda: d.__setitem__("forward", nn.ReLU()),
            lambda: d.update(3),
            lambda: d.update([3]),
            lambda: d.update([("a", "b", "c")]),
            lambda: d(lib.ones(1)),
        )
    ]


@scenario
def parameter_list(lib):
    nn = lib.nn
    p = nn.ParameterList([nn.Parameter(lib.ones(2)), lib.zeros(1, 3)])
    p.append(nn.Parameter(lib.ones(1))).extend([lib.ones(2, 2), "text", 3])
    p += [lib.zeros(1)]
    p[0] = lib.zeros(4)
    facts = [
        shown(p),
        len(p),
        p[-1],
        p[1:3][1],
        [type(x).__name__ for x in p],
        list(p.state_dict()),
    ]
    return [*facts, [n for n, _ in p.named_parameters()], shown(nn.ParameterList())]


@scenario
def errors_of_parameter_list(lib):
    nn = lib.nn
    p = nn.ParameterList([lib.ones(2)])
    return [
        attempt(action)
        for action in (
            lambda: p[5],
            lambda: p[-2],
            lambda: p.__setitem__(4, lib.ones(1)),
            lambda: p.extend(3),
            lambda: p.extend(lib.ones(2)),
            lambda: p(),
            lambda: p.__getitem__("a"),
        )
    ]


@scenario
def parameter_dict(lib):
    nn = lib.nn
    d = nn.ParameterDict({"b": nn.Parameter(lib.ones(2)), "a": lib.zeros(1)})
    d["c"] = lib.ones(1, 2)
    d.update([("d", lib.zeros(3)), ["e", "text"]])
    d.update(nn.ParameterDict({"f": lib.zeros(1)}))
    facts = [shown(d), len(d), list(d), list(d.keys()), list(reversed(d)), "a" in d]
    facts += [
        d.get("a"),
        d.get("x"),
        d.get("x", 5),
        d.setdefault("a", 9),
        d.setdefault("g", lib.ones(1)),
    ]
    facts += [
        d.pop("b"),
        d.popitem()[0],
        shown(d.copy()),
        [k for k, _ in d.items()],
        len(list(d.values())),
    ]
    both = d | nn.ParameterDict({"z": lib.ones(1)})
    d |= nn.ParameterDict({"y": lib.ones(1)})
    facts += [shown(both), shown(d), shown(d.fromkeys(["p", "q"], 2)), shown(d.fromkeys(["p"]))]
    del d["a"]
    facts.append(shown(d))
    d.clear()
    return [*facts, shown(d)]


@scenario
def errors_of_parameter_dict(lib):
    nn = lib.nn
    d = nn.ParameterDict({"a": lib.ones(1)})
    return [
        attempt(action)
        for action in (
            lambda: d["x"],
            lambda: d.pop("x"),
            lambda: d.__delitem__("x"),
            lambda: d.__setitem__(3, lib.ones(1)),
            lambda: d.update(3),
            lambda: d.update([3]),
            lambda: d.update([("a", "b", "c")]),
            lambda: d(3),
            lambda: d.__getitem__(3),
            lambda: nn.ParameterDict().popitem(),
        )
    ]


@pytest.mark.parametrize("name", SCENARIOS)
def test_both_libraries_agree(name):
    agree(SCENARIOS[name])
