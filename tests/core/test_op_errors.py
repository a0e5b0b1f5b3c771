"""Bad use of tensor operations: an exception of PyTorch's kind that names what matters, at once."""

import pytest
from op_error_cases import CASES

import dptrain

IDS = [case[0].replace(" ", "-") for case in CASES]


def test_names_of_cases_are_unique():
    assert len(set(IDS)) == len(IDS)


@pytest.mark.parametrize(("name", "call", "error", "words"), CASES, ids=IDS)
def test_bad_use_raises(name, call, error, words):
    with pytest.raises(error, match=words) as caught:
        call(dptrain)
    assert caught.value.__cause__ is None, "a foreign traceback is shown with the error"


@pytest.mark.oracle
@pytest.mark.parametrize(("name", "call", "error", "words"), CASES, ids=IDS)
def test_pytorch_raises_the_same_kind(name, call, error, words):
    torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
    with pytest.raises(error):
        call(torch)
