"""What bad use of modules, of their parts and of `nn.utils` gets: PyTorch's kind of exception, with the facts."""

import warnings

import numpy as np
import pytest

import dptrain
import dptrain.nn.utils.fusion
import dptrain.nn.utils.parametrizations

torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
pytestmark = pytest.mark.oracle


def graded(lib):
    p = lib.nn.Parameter(lib.ones(3))
    (p * p).sum().backward()
    return p


def packed(lib):
    return lib.nn.utils.rnn.pack_padded_sequence(lib.ones(3, 2, 1), [3, 1])


WRONG = {
    "None": lambda lib: None,
    "str": lambda lib: "x",
    "int": lambda lib: 1,
    "float": lambda lib: 2.5,
    "object": lambda lib: object(),
    "list": lambda lib: [1.0],
    "array": lambda lib: np.ones((2, 3), np.float32),
    "tensor": lambda lib: lib.ones(2, 3),
    "module": lambda lib: lib.nn.Linear(2, 2),
}

#: One use with a wrong value; both libraries refuse the same values.
USES = {
    "Parameter": lambda lib, v: lib.nn.Parameter(v),
    "Parameter's requires_grad": lambda lib, v: lib.nn.Parameter(lib.ones(1), v),
    "requires_grad_": lambda lib, v: lib.nn.Linear(1, 1).requires_grad_(v),
    "Buffer": lambda lib, v: lib.nn.Buffer(v),
    "register_parameter": lambda lib, v: lib.nn.Linear(1, 1).register_parameter("p", v),
    "register_buffer": lambda lib, v: lib.nn.Linear(1, 1).register_buffer("b", v),
    "register_buffer's name": lambda lib, v: lib.nn.Linear(1, 1).register_buffer(v, lib.ones(1)),
    "add_module": lambda lib, v: lib.nn.Linear(1, 1).add_module("m", v),
    "weight": lambda lib, v: setattr(lib.nn.Linear(1, 1), "weight", v),
    "load_state_dict": lambda lib, v: lib.nn.Linear(1, 1).load_state_dict(v),
    "get_submodule": lambda lib, v: (
        lib.nn.Linear(1, 1).get_submodule(v) if v is not None else 1 / 0
    ),
    "Sequential": lambda lib, v: lib.nn.Sequential(v),
    "ModuleList": lambda lib, v: lib.nn.ModuleList([v]),
    "clip_grad_norm_": lambda lib, v: lib.nn.utils.clip_grad_norm_([v], 1.0),
    "clip_grad_value_": lambda lib, v: lib.nn.utils.clip_grad_value_([v], 1.0),
    "parameters_to_vector": lambda lib, v: lib.nn.utils.parameters_to_vector([v]),
    "vector_to_parameters": lambda lib, v: lib.nn.utils.vector_to_parameters(lib.ones(3), [v]),
    "pad_sequence": lambda lib, v: lib.nn.utils.rnn.pad_sequence([v]),
    "padding_value": lambda lib, v: lib.nn.utils.rnn.pad_packed_sequence(
        packed(lib), padding_value=v
    ),
    "pad_packed_sequence": lambda lib, v: lib.nn.utils.rnn.pad_packed_sequence(v),
    "pack_sequence": lambda lib, v: lib.nn.utils.rnn.pack_sequence(v),
    "PackedSequence": lambda lib, v: lib.nn.utils.rnn.PackedSequence(v),
    "batch_sizes": lambda lib, v: lib.nn.utils.rnn.PackedSequence(lib.ones(2), v),
    "weight_norm": lambda lib, v: lib.nn.utils.parametrizations.weight_norm(v),
    "weight_norm's dim": lambda lib, v: lib.nn.utils.parametrizations.weight_norm(
        lib.nn.Linear(2, 2), dim=v
    ),
    "spectral_norm": lambda lib, v: lib.nn.utils.parametrizations.spectral_norm(v),
    "register_parametrization": lambda lib, v: lib.nn.utils.parametrize.register_parametrization(
        lib.nn.Linear(2, 2), "weight", v
    ),
    "fuse_conv_bn_eval": lambda lib, v: lib.nn.utils.fusion.fuse_conv_bn_eval(v, v),
    "skip_init": lambda lib, v: lib.nn.utils.skip_init(v),
    "kaiming_uniform_": lambda lib, v: lib.nn.init.kaiming_uniform_(v),
    "orthogonal_": lambda lib, v: lib.nn.init.orthogonal_(v),
    "bidirectional": lambda lib, v: lib.nn.LSTM(2, 2, bidirectional=v)(lib.ones(1, 1, 2)),
    "num_layers": lambda lib, v: lib.nn.GRU(2, 2, num_layers=v),
    "LSTM": lambda lib, v: lib.nn.LSTM(2, 2)(v),
    "a state": lambda lib, v: lib.nn.LSTM(2, 2)(lib.ones(1, 1, 2), (v, v)),
    **{
        f"{name} of it": lambda lib, v, name=name, args=args: getattr(lib.nn, name)(*args)(v)
        for name, args in {
            "Linear": (4, 2),
            "BatchNorm1d": (4,),
            "BatchNorm2d": (3,),
            "InstanceNorm2d": (3,),
            "LayerNorm": (4,),
            "GroupNorm": (1, 4),
            "Conv2d": (3, 2, 2),
            "MaxPool2d": (2,),
            "AdaptiveAvgPool2d": ((2, None),),
            "PixelShuffle": (2,),
            "GRUCell": (2, 2),
            "LazyLinear": (2,),
            "LazyBatchNorm2d": (),
        }.items()
    },
}


def outcome(lib, use, value=lambda lib: None):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            use(lib, value(lib))
        except Exception as error:
            return error
    return None


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_values_are_refused_where_pytorch_refuses_them(use, wrong):
    theirs = outcome(torch, USES[use], WRONG[wrong])
    ours = outcome(dptrain, USES[use], WRONG[wrong])
    if theirs is None:
        assert ours is None or type(ours) is TypeError
        return
    if "Could this error message be improved" in str(theirs):
        return  # an assertion inside, not a refusal
    assert ours is not None, f"PyTorch says {theirs!r}"
    if type(theirs) is AttributeError:
        # What Python says about a value that nobody looked at; here the argument is named.
        assert type(ours) in (AttributeError, TypeError, type(theirs))
    assert "object has no attribute '_" not in str(ours)
    assert "numpy" not in type(ours).__module__


#: Two libraries, one kind of exception.
CASES = {
    "integers as data": lambda lib: setattr(graded(lib), "data", lib.ones(3, dtype=lib.int64)),
    "dim beyond": lambda lib: lib.nn.utils.parametrizations.weight_norm(lib.nn.Linear(2, 2), dim=5),
    "dim far below": lambda lib: lib.nn.utils.parametrizations.weight_norm(
        lib.nn.Linear(2, 2), dim=-5
    ),
    "integers to draw": lambda lib: lib.nn.init.trunc_normal_(lib.ones(2, 2, dtype=lib.int64)),
    "dropout of True": lambda lib: lib.nn.RNN(2, 2, dropout=True),
    "batch of the state": lambda lib: lib.nn.RNNCell(2, 2)(lib.ones(3, 2), lib.ones(5, 2)),
    "batch of no state": lambda lib: lib.nn.GRUCell(2, 2)(lib.ones(3, 2), lib.ones(2)),
    "size of the state": lambda lib: lib.nn.GRUCell(2, 2)(lib.ones(3, 2), lib.ones(3, 7)),
    "kernel of 0": lambda lib: lib.nn.FractionalMaxPool3d(0, output_size=2),
    "eps below 0": lambda lib: lib.nn.CosineSimilarity(eps=-1.0)(lib.ones(2, 3), lib.ones(2, 3)),
    "a larger target": lambda lib: lib.nn.SoftMarginLoss()(lib.ones(1, 3), lib.ones(2, 3)),
    "many classes of one": lambda lib: lib.nn.CrossEntropyLoss()(
        lib.ones(3), lib.zeros(2, dtype=lib.int64)
    ),
    "no calls": lambda lib: lib.nn.ModuleList()(1),
    "no such module": lambda lib: lib.nn.Sequential(lib.nn.ReLU()).get_submodule("7"),
    "no such weight": lambda lib: lib.nn.utils.parametrizations.weight_norm(
        lib.nn.Linear(2, 2), "x"
    ),
    "training": lambda lib: lib.nn.utils.fusion.fuse_conv_bn_eval(
        lib.nn.Conv2d(1, 1, 1), lib.nn.BatchNorm2d(1)
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_kind_of_exception_is_pytorchs(name):
    theirs, ours = (outcome(lib, lambda lib, _: CASES[name](lib)) for lib in (torch, dptrain))
    assert theirs is not None
    assert type(ours) is type(theirs)


MIXED = {
    "Huber of float16": ("HuberLoss", "float16", "float32"),
    "Huber of a float64 target": ("HuberLoss", "float32", "float64"),
    "soft margin of float16": ("SoftMarginLoss", "float16", "float32"),
    "soft margin of a float64 target": ("SoftMarginLoss", "float32", "float64"),
}


@pytest.mark.parametrize("name", MIXED)
def test_losses_of_two_types_have_that_of_the_input(name):
    loss, input, target = MIXED[name]
    found = [
        getattr(lib.nn, loss)()(
            lib.ones(2, 3, dtype=getattr(lib, input)), lib.zeros(2, 3, dtype=getattr(lib, target))
        )
        for lib in (torch, dptrain)
    ]
    assert str(found[0].dtype).split(".")[1] == found[1].dtype.name


def test_a_target_with_more_dimensions_is_summed_where_pytorch_does():
    values = [[0.5, -1.0, 2.0], [1.0, 0.0, 1.0], [0.0, 1.0, 1.0]]
    theirs, ours = (
        lib.nn.MultiLabelSoftMarginLoss(reduction="none")(
            lib.tensor(values[0]), lib.tensor(values[1:])
        )
        for lib in (torch, dptrain)
    )
    np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=1e-6)


@pytest.mark.parametrize("option", ["lr", "weight_decay", "momentum"])
def test_an_option_that_became_none_is_no_nan(option):
    p = graded(dptrain)
    optimizer = dptrain.optim.SGD([p], lr=0.1)
    optimizer.param_groups[0][option] = None
    with pytest.raises(TypeError, match=rf"SGD.step: option '{option}' .* is None"):
        optimizer.step()
    assert p.tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("name", ["Adam", "AdamW", "Adamax", "NAdam", "RAdam"])
@pytest.mark.parametrize("betas", [(), (0.9,), [], None, (0.9, None), ("a", "b"), (1.0, 0.9)])
def test_betas_are_two_numbers(name, betas):
    kinds = []
    for lib in (torch, dptrain):
        with pytest.raises((TypeError, ValueError, IndexError)) as caught:
            getattr(lib.optim, name)([graded(lib)], betas=betas).step()
        kinds.append(caught.type)
    assert kinds[0] is kinds[1] or kinds[1] is TypeError
