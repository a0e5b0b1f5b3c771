"""The main features on real ranks: one job for each number of ranks, with a time limit."""

import json
from pathlib import Path

import pytest

FEATURES = ["weighted", "uneven", "joined", "sync_batchnorm", "hooks", "zero", "scattered"]
DIGESTS = set()


@pytest.mark.launch
@pytest.mark.parametrize("ranks", [2, 3])
def test_features_on_real_ranks(dprun, ranks):
    done = dprun(ranks, Path(__file__).with_name("job.py"), timeout_s=80)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert list(found) == [*FEATURES, "timeline", "resumed", "reproducible"]
    DIGESTS.add(found["reproducible"])
    assert len(DIGESTS) == 1, "the number of ranks shows in the bits"


@pytest.mark.launch
def test_reproducible_mode_gives_the_bits_of_several_ranks_on_one(dprun):
    done = dprun(1, Path(__file__).with_name("job.py"), "reproducible")
    assert done.returncode == 0, done.stderr
    DIGESTS.add(json.loads(done.stdout.splitlines()[-1])["reproducible"])
    assert len(DIGESTS) == 1, "the number of ranks shows in the bits"
