"""The environment in which tests start ranks of their own."""

import os
import sys
from pathlib import Path

_RANK_VARIABLES = ("OMPI_", "PMIX_", "PMI_", "PRTE_", "MPI_", "SLURM_", "DPTRAIN_")
_RANK_NAMES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")


def clean_environment(**changes):
    """The environment without what an MPI launcher around this test run may have set."""
    kept = {
        k: v
        for k, v in os.environ.items()
        if not k.startswith(_RANK_VARIABLES) and k not in _RANK_NAMES
    }
    kept["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', '')}"
    return {**kept, **changes}
