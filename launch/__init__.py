"""Starting, watching and ending ranks: the launcher ``dprun``.

Standard library only, and nothing of dptrain: the folder is installed as ``dptrain.launch`` and
also runs from a bare clone (``python -m launch -n 2 script.py``), so everything inside imports
relatively.

========== ==================================================================================
cli        arguments, the checks that need no process, ``main``
mpirun     which MPI launcher there is, its family, the command and the environment it needs
supervisor the running job: signals, the first failure, the end of every process
hub        the launcher's end of the side channel; ``protocol`` is the wire format
output     which rank's output is shown, and how
processes  the job's processes in ``/proc``: who is left, ending them
report     the final block
rank       what runs in each rank around the user's script
spawning   ``spawn``: a function instead of a script; ``spawned`` is what it runs on each rank
========== ==================================================================================
"""

from __future__ import annotations

from typing import Any

__all__ = ["ProcessContext", "ProcessExitedException", "ProcessRaisedException", "spawn"]


def __getattr__(name: str) -> Any:
    # On first use: every rank imports this package, and few spawn.
    if name in __all__:
        from . import spawning

        return getattr(spawning, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
