"""`python -m dptrain.cli`, the same as the command `dptrain`."""

import sys

from dptrain.cli.main import main

sys.exit(main())
