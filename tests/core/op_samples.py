"""One line of samples per operation: what the registry-walking tests run.

Collected from the `samples_<family>.py` files beside this one; each has a dict `SAMPLES`.
"""

from importlib import import_module
from pathlib import Path

from sample_args import Arg, Call

__all__ = ["SAMPLES", "Arg", "Call"]

SAMPLES: dict[str, list[Call]] = {}
for _file in sorted(Path(__file__).parent.glob("samples_*.py")):
    _found = import_module(_file.stem).SAMPLES
    _twice = SAMPLES.keys() & _found.keys()
    assert not _twice, f"samples for {_twice} are in two files"
    SAMPLES.update(_found)
