"""The promises: the number of ranks does not show in the losses, and a run repeats bit by bit."""

import json
from pathlib import Path

import numpy as np
import pytest

TRAIN = Path(__file__).with_name("train.py")


@pytest.fixture
def train(dprun):
    def run(ranks, *options):
        done = dprun(ranks, TRAIN, *options)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return run


@pytest.fixture(scope="module")
def alone():
    """The run on one rank, which the others are compared with; made once."""
    return {}


@pytest.mark.parametrize(("ranks", "accumulate"), [(2, 1), (4, 1), (1, 3), (2, 2), (4, 3)])
def test_ranks_and_accumulation_do_not_show_in_the_losses(train, alone, ranks, accumulate):
    if not alone:
        alone.update(train(1))
    found = train(ranks, "--accumulate", str(accumulate))
    assert alone["losses"][-1] < 0.8 * alone["losses"][0], (
        "the run does not learn; it proves nothing"
    )
    np.testing.assert_allclose(found["losses"], alone["losses"], rtol=1e-10)
    assert len(set(found["digests"])) == 1, "the ranks' parameters differ"


@pytest.mark.parametrize("ranks", [1, 2])
def test_two_runs_with_one_seed_are_equal_bit_by_bit(train, ranks):
    first, second = (train(ranks, "--dtype", "float32") for _ in range(2))
    assert first == second
