"""`python -m dptrain.distributed.run ...` is `dprun ...`, as `torch.distributed.run` is `torchrun`."""

import sys

from dptrain.launch.cli import main

if __name__ == "__main__":
    sys.exit(main())
