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
========== ==================================================================================
"""
