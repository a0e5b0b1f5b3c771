"""What the processor can do."""

from __future__ import annotations

import numpy as np


def get_cpu_capability() -> str:
    """The widest vector instructions that NumPy found: "AVX512", "AVX2" or "DEFAULT"."""
    found = np.show_config(mode="dicts")["SIMD Extensions"]["found"]
    for name, spellings in (("AVX512", ("AVX512", "X86_V4")), ("AVX2", ("AVX2", "X86_V3"))):
        if any(f.startswith(spellings) for f in found):
            return name
    return "DEFAULT"
