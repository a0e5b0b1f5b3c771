"""The modules that PyTorch's scripts import by file: `from torch.nn.modules.conv import Conv2d`.

Nothing lives here: each name below resolves on first use to `dptrain.nn`'s, or to the place that
`_ELSEWHERE` gives for what is not public there.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

_NAMES = {
    "activation": "CELU ELU GELU GLU Hardshrink Hardsigmoid Hardswish Hardtanh LeakyReLU LogSigmoid "
    "LogSoftmax Mish MultiheadAttention PReLU RReLU ReLU ReLU6 SELU SiLU Sigmoid Softmax Softmax2d "
    "Softmin Softplus Softshrink Softsign Tanh Tanhshrink Threshold",
    "adaptive": "AdaptiveLogSoftmaxWithLoss _ASMoutput",
    "batchnorm": "BatchNorm1d BatchNorm2d BatchNorm3d LazyBatchNorm1d LazyBatchNorm2d "
    "LazyBatchNorm3d _BatchNorm _LazyNormBase _NormBase",
    "channelshuffle": "ChannelShuffle",
    "container": "ModuleDict ModuleList ParameterDict ParameterList Sequential",
    "conv": "Conv1d Conv2d Conv3d ConvTranspose1d ConvTranspose2d ConvTranspose3d LazyConv1d "
    "LazyConv2d LazyConv3d LazyConvTranspose1d LazyConvTranspose2d LazyConvTranspose3d _ConvNd "
    "_ConvTransposeNd",
    "distance": "CosineSimilarity PairwiseDistance",
    "dropout": "AlphaDropout Dropout Dropout1d Dropout2d Dropout3d FeatureAlphaDropout _DropoutNd",
    "flatten": "Flatten Unflatten",
    "fold": "Fold Unfold",
    "instancenorm": "InstanceNorm1d InstanceNorm2d InstanceNorm3d LazyInstanceNorm1d "
    "LazyInstanceNorm2d LazyInstanceNorm3d _InstanceNorm",
    "lazy": "LazyModuleMixin",
    "linear": "Bilinear Identity LazyLinear Linear NonDynamicallyQuantizableLinear",
    "loss": "BCELoss BCEWithLogitsLoss CTCLoss CosineEmbeddingLoss CrossEntropyLoss GaussianNLLLoss "
    "HingeEmbeddingLoss HuberLoss KLDivLoss L1Loss MSELoss MarginRankingLoss MultiLabelMarginLoss "
    "MultiLabelSoftMarginLoss MultiMarginLoss NLLLoss NLLLoss2d PoissonNLLLoss SmoothL1Loss "
    "SoftMarginLoss TripletMarginLoss TripletMarginWithDistanceLoss _Loss _WeightedLoss",
    "module": "Module _IncompatibleKeys register_module_backward_hook "
    "register_module_buffer_registration_hook register_module_forward_hook "
    "register_module_forward_pre_hook register_module_full_backward_hook "
    "register_module_full_backward_pre_hook register_module_module_registration_hook "
    "register_module_parameter_registration_hook",
    "normalization": "CrossMapLRN2d GroupNorm LayerNorm LocalResponseNorm RMSNorm",
    "padding": "CircularPad1d CircularPad2d CircularPad3d ConstantPad1d ConstantPad2d ConstantPad3d "
    "ReflectionPad1d ReflectionPad2d ReflectionPad3d ReplicationPad1d ReplicationPad2d "
    "ReplicationPad3d ZeroPad1d ZeroPad2d ZeroPad3d",
    "pixelshuffle": "PixelShuffle PixelUnshuffle",
    "pooling": "AdaptiveAvgPool1d AdaptiveAvgPool2d AdaptiveAvgPool3d AdaptiveMaxPool1d "
    "AdaptiveMaxPool2d AdaptiveMaxPool3d AvgPool1d AvgPool2d AvgPool3d FractionalMaxPool2d "
    "FractionalMaxPool3d LPPool1d LPPool2d LPPool3d MaxPool1d MaxPool2d MaxPool3d MaxUnpool1d "
    "MaxUnpool2d MaxUnpool3d",
    "rnn": "GRU GRUCell LSTM LSTMCell RNN RNNBase RNNCell RNNCellBase",
    "sparse": "Embedding EmbeddingBag",
    "transformer": "Transformer TransformerDecoder TransformerDecoderLayer TransformerEncoder "
    "TransformerEncoderLayer",
    "upsampling": "Upsample UpsamplingBilinear2d UpsamplingNearest2d",
    "utils": "_ntuple _pair _quadruple _single _triple consume_prefix_in_state_dict_if_present",
}

#: Names that are not `dptrain.nn`'s: the module that has them, and their names there if others.
_ELSEWHERE = {
    "LazyModuleMixin": "lazy",
    "NonDynamicallyQuantizableLinear": "multihead_attention",
    "_ASMoutput": "adaptive_softmax ASMoutput",
    "_BatchNorm": "batchnorm",
    "_ConvNd": "conv",
    "_ConvTransposeNd": "conv",
    "_DropoutNd": "dropout",
    "_IncompatibleKeys": "state IncompatibleKeys",
    "_InstanceNorm": "batchnorm",
    "_LazyNormBase": "lazy_layers",
    "_Loss": "loss_regression Loss",
    "_NormBase": "batchnorm",
    "_WeightedLoss": "loss_binary WeightedLoss",
    "_ntuple": "tuples ntuple",
    "_pair": "tuples pair",
    "_quadruple": "tuples quadruple",
    "_single": "tuples single",
    "_triple": "tuples triple",
    "consume_prefix_in_state_dict_if_present": "state",
    **{name: "global_hooks" for name in _NAMES["module"].split() if name.startswith("register_")},
}


class _Place(ModuleType):
    """A module whose names resolve on first use."""

    def __getattr__(self, name: str) -> Any:
        if name not in self.__all__:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        found = _resolve(name)
        setattr(self, name, found)
        return found

    def __dir__(self) -> list[str]:
        return self.__all__


def _resolve(name: str) -> Any:
    room, _, there = _ELSEWHERE.get(name, "").partition(" ")
    owner = import_module(f"dptrain.nn.{room}" if room else "dptrain.nn")
    return getattr(owner, there or name)


def _place(file: str, names: list[str]) -> ModuleType:
    made = _Place(f"{__name__}.{file}", f"PyTorch's `torch.nn.modules.{file}`.")
    made.__all__ = names  # type: ignore[attr-defined]
    sys.modules[made.__name__] = made
    return made


globals().update({file: _place(file, names.split()) for file, names in _NAMES.items()})

_PUBLIC = frozenset(n for names in _NAMES.values() for n in names.split() if n[0].isupper())


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return _resolve(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
