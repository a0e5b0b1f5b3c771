"""The names of `torch.utils.data`, their signatures, and where a script finds them."""

import importlib
import inspect

import pytest

import dptrain

#: Names of PyTorch that are not here, and why.
LEFT_OUT = {
    **dict.fromkeys(
        (
            "DFIterDataPipe",
            "DataChunk",
            "IterDataPipe",
            "MapDataPipe",
            "argument_validation",
            "datapipes",
            "functional_datapipe",
            "graph",
            "graph_settings",
            "guaranteed_datapipes_determinism",
            "non_deterministic",
            "runtime_validation",
            "runtime_validation_disabled",
        ),
        "data pipes, which PyTorch no longer develops",
    ),
}
#: Parameters beyond PyTorch's, all by keyword only.
FURTHER = {"DistributedSampler": {"pad"}}
#: Defaults that are other objects: here None stands for the generator that manual_seed seeds.
OTHER_DEFAULTS = {("random_split", "generator")}


def names():
    torch_data = pytest.importorskip("torch.utils.data", reason="oracle extra not installed")
    return [name for name in dir(torch_data) if not name.startswith("_")]


@pytest.mark.oracle
def test_every_name_is_here_or_left_out_for_a_reason():
    missing = {name for name in names() if not hasattr(dptrain.utils.data, name)}
    assert missing == set(LEFT_OUT)
    assert {name for name in names() if name not in LEFT_OUT} <= set(dir(dptrain.utils.data))


@pytest.mark.oracle
def test_signatures_are_those_of_pytorch():
    theirs = pytest.importorskip("torch.utils.data", reason="oracle extra not installed")

    for name in set(names()) - set(LEFT_OUT):
        if not callable(getattr(theirs, name)):
            continue
        ours = inspect.signature(getattr(dptrain.utils.data, name)).parameters
        expected = inspect.signature(getattr(theirs, name)).parameters
        kept = {k: p for k, p in ours.items() if k not in FURTHER.get(name, ())}
        assert list(kept) == list(expected), name
        for key, parameter in expected.items():
            assert kept[key].kind == parameter.kind, (name, key)
            if (name, key) not in OTHER_DEFAULTS:
                assert kept[key].default == parameter.default, (name, key)
        for key in FURTHER.get(name, ()):
            assert ours[key].kind is inspect.Parameter.KEYWORD_ONLY


@pytest.mark.oracle
@pytest.mark.parametrize("module", ["dataloader", "dataset", "distributed", "sampler"])
def test_the_modules_inside_hold_what_pytorchs_hold(module):
    theirs = pytest.importorskip(f"torch.utils.data.{module}", reason="oracle extra not installed")
    ours = importlib.import_module(f"dptrain.utils.data.{module}")
    missing = {name for name in theirs.__all__ if not hasattr(ours, name)}
    assert missing == set()
    assert getattr(dptrain.utils.data, module) is ours


@pytest.mark.oracle
@pytest.mark.parametrize(
    "name",
    ["DataLoader", "WorkerInfo", "ConcatDataset", "StackDataset", "RandomSampler", "BatchSampler"],
)
def test_public_attributes_are_those_of_pytorch(name):
    torch_data = pytest.importorskip("torch.utils.data", reason="oracle extra not installed")
    import torch.utils.data._utils.worker as torch_worker

    from dptrain.data import worker

    def make(library, info):
        data = [1, 2, 3]
        return {
            "DataLoader": lambda: library.DataLoader(data, num_workers=1),
            "WorkerInfo": lambda: info(id=0, num_workers=1, seed=2, dataset=data),
            "ConcatDataset": lambda: library.ConcatDataset([data]),
            "StackDataset": lambda: library.StackDataset(data, data),
            "RandomSampler": lambda: library.RandomSampler(data),
            "BatchSampler": lambda: library.BatchSampler(data, 2, False),
        }[name]()

    theirs, ours = make(torch_data, torch_worker.WorkerInfo), make(dptrain.data, worker.WorkerInfo)
    expected = {attr for attr in dir(theirs) if not attr.startswith("_")}
    assert expected - set(dir(ours)) <= {
        "check_worker_number_rationality"
    }  # called by the constructor
    if name == "WorkerInfo":
        assert repr(ours) == repr(theirs)


def test_classes_take_the_type_of_their_samples():
    for name in ("DataLoader", "Dataset", "IterableDataset", "Subset", "ConcatDataset", "Sampler"):
        cls = getattr(dptrain.utils.data, name)
        assert cls[int].__origin__ is cls
    loader = dptrain.utils.data.DataLoader[int]([1, 2], batch_size=2)
    assert [batch.tolist() for batch in loader] == [[1, 2]]
