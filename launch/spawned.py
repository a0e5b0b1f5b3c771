"""What ``spawn`` starts on every rank: ``python -m dptrain.launch.spawned folder``.

Owns: unpacking the function and calling it. Must not know: how the rank was started.
"""

from __future__ import annotations

import os
import pickle
import sys
from pathlib import Path

from .spawning import PAYLOAD


def main() -> None:
    """Call the function of the folder with this rank and its arguments."""
    folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    Path(folder, f"{rank}.pid").write_text(str(os.getpid()))
    fn, args = pickle.loads(Path(folder, PAYLOAD).read_bytes())
    fn(rank, *args)


if __name__ == "__main__":
    main()
