"""The environment in which tests start ranks of their own."""

import os
import sys
from pathlib import Path

#: What Open MPI's mpirun by itself (versions 4 and 5) needs to run as root and with fewer cores than ranks, and
#: to start without a look at every network; dprun sets it alone.
OPEN_MPI = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "PRTE_MCA_hwloc_default_binding_policy": "none",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "OMPI_MCA_hwloc_base_binding_policy": "none",
    "OMPI_MCA_pml": "ob1",
    "OMPI_MCA_btl": "^ofi,uct,openib,usnic,smcuda",
    "OMPI_MCA_osc": "^ucx",
}
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
