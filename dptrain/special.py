"""Special functions: PyTorch's `torch.special`. Nothing is defined here; see `dptrain.core.ops.special*`."""

from dptrain.core import ops as _ops  # fills FUNCTIONS  # noqa: F401
from dptrain.core.export import FUNCTIONS

digamma = psi = FUNCTIONS["digamma"]
entr = FUNCTIONS["special.entr"]
erf = FUNCTIONS["erf"]
erfc = FUNCTIONS["erfc"]
erfcx = FUNCTIONS["special.erfcx"]
erfinv = FUNCTIONS["erfinv"]
exp2 = FUNCTIONS["exp2"]
expit = FUNCTIONS["sigmoid"]
expm1 = FUNCTIONS["expm1"]
gammainc = FUNCTIONS["special.gammainc"]
gammaincc = FUNCTIONS["special.gammaincc"]
gammaln = FUNCTIONS["lgamma"]
i0 = modified_bessel_i0 = FUNCTIONS["special.i0"]
i0e = FUNCTIONS["special.i0e"]
i1 = modified_bessel_i1 = FUNCTIONS["special.i1"]
i1e = FUNCTIONS["special.i1e"]
log1p = FUNCTIONS["log1p"]
log_ndtr = FUNCTIONS["special.log_ndtr"]
log_softmax = FUNCTIONS["log_softmax"]
logit = FUNCTIONS["logit"]
logsumexp = FUNCTIONS["logsumexp"]
multigammaln = FUNCTIONS["special.multigammaln"]
ndtr = FUNCTIONS["special.ndtr"]
ndtri = FUNCTIONS["special.ndtri"]
polygamma = FUNCTIONS["polygamma"]
round = FUNCTIONS["round"]
sinc = FUNCTIONS["sinc"]
softmax = FUNCTIONS["softmax"]
xlog1py = FUNCTIONS["special.xlog1py"]
xlogy = FUNCTIONS["xlogy"]
zeta = FUNCTIONS["special.zeta"]

__all__ = [
    "digamma",
    "entr",
    "erf",
    "erfc",
    "erfcx",
    "erfinv",
    "exp2",
    "expit",
    "expm1",
    "gammainc",
    "gammaincc",
    "gammaln",
    "i0",
    "i0e",
    "i1",
    "i1e",
    "log1p",
    "log_ndtr",
    "log_softmax",
    "logit",
    "logsumexp",
    "modified_bessel_i0",
    "modified_bessel_i1",
    "multigammaln",
    "ndtr",
    "ndtri",
    "polygamma",
    "psi",
    "round",
    "sinc",
    "softmax",
    "xlog1py",
    "xlogy",
    "zeta",
]
