"""Where the arrays of a step come from: `dptrain/core/heap.py`."""

import os
import platform
import subprocess
import sys

import pytest

_CODE = """
import numpy as np
import dptrain
dptrain.nn.Linear(300, 300)
place = np.ones(2 << 20, np.uint8).__array_interface__["data"][0]
here = flags = None
for line in open("/proc/self/smaps"):
    first, *rest = line.split()
    if "-" in first and not first.endswith(":"):
        start, end = (int(x, 16) for x in first.split("-"))
        here = rest[-1] if start <= place < end else None
    elif here and first == "VmFlags:":
        print(here, "hg" in rest)
"""


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc" or not os.path.exists("/sys/kernel/mm/transparent_hugepage"),
    reason="the C library is not glibc, or the system has no large pages to give",
)
def test_an_array_lies_in_the_heap_which_is_asked_for_in_large_pages():
    found = subprocess.run(
        [sys.executable, "-c", _CODE], capture_output=True, text=True, timeout=120
    )
    assert found.stdout.split() == ["[heap]", "True"], found.stderr
