"""Shared by the tests of compiled steps: the stand-ins for CuPy and NCCL are importable by their names."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / folder) for folder in ("comm", "core")]
