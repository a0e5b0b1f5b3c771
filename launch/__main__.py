"""``python -m launch`` in a bare clone, ``python -m dptrain.launch``: the same as ``dprun``."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
