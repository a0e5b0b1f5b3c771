"""`torch.backends`'s names: which backends there are, and their flags."""

import sys
from types import ModuleType

from dptrain.backends import cpu, cuda, cudnn, mkl, mkldnn, mps, openmp, opt_einsum
from dptrain.core.conv_algo import get_conv_algo, set_conv_algo

__all__ = ["cpu", "cuda", "cudnn", "mkl", "mkldnn", "mps", "openmp", "opt_einsum"]


class _Backends(ModuleType):
    @property
    def conv_algo(self) -> str:
        """Algorithms of convolution on the CPU: "auto", or "direct" for those that round as plain sums do.

        With "auto", filters of 3 x 3 and 5 x 5 at stride 1 are transformed (Winograd), which is about
        twice as fast and rounds about ten times as coarsely. Assigning another value is a ValueError.
        """
        return get_conv_algo()

    @conv_algo.setter
    def conv_algo(self, name: str) -> None:
        set_conv_algo(name)


# A module has no properties of its own; the switch is one, so that a wrong value is refused at once.
sys.modules[__name__].__class__ = _Backends
