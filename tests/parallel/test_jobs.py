"""The main features on real ranks: one job for each number of ranks, with a time limit."""

import json
from pathlib import Path

import pytest

FEATURES = ["weighted", "uneven", "joined", "sync_batchnorm", "hooks", "zero", "timeline"]


@pytest.mark.launch
@pytest.mark.parametrize("ranks", [2, 3])
def test_features_on_real_ranks(dprun, ranks):
    done = dprun(ranks, Path(__file__).with_name("job.py"), timeout_s=80)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == FEATURES
