"""ResNet, Wide ResNet and ResNeXt.

Sources: K. He et al., "Deep residual learning for image recognition", 2015; S. Zagoruyko,
N. Komodakis, "Wide residual networks", 2016; S. Xie et al., "Aggregated residual transformations for
deep neural networks", 2016. As in torchvision a bottleneck takes its stride in the 3x3 convolution.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from dptrain import nn
from dptrain.core.tensor import Tensor
from dptrain.nn import init
from dptrain.vision.models.initial import he_normal
from dptrain.vision.models.registry import register_model
from dptrain.vision.models.weights import published

__all__ = [
    "BasicBlock",
    "Bottleneck",
    "ResNet",
    "ResNet18_Weights",
    "ResNet34_Weights",
    "ResNet50_Weights",
    "ResNet101_Weights",
    "ResNet152_Weights",
    "ResNeXt50_32X4D_Weights",
    "ResNeXt101_32X8D_Weights",
    "ResNeXt101_64X4D_Weights",
    "Wide_ResNet50_2_Weights",
    "Wide_ResNet101_2_Weights",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnext50_32x4d",
    "resnext101_32x8d",
    "resnext101_64x4d",
    "wide_resnet50_2",
    "wide_resnet101_2",
]

_Norm = Callable[[int], nn.Module]

ResNet18_Weights = published("ResNet18_Weights", 11_689_512, "resnet18-f37072fd.pth")
ResNet34_Weights = published("ResNet34_Weights", 21_797_672, "resnet34-b627a593.pth")
ResNet50_Weights = published(
    "ResNet50_Weights", 25_557_032, ["resnet50-0676ba61.pth", "resnet50-11ad3fa6.pth"]
)
ResNet101_Weights = published(
    "ResNet101_Weights", 44_549_160, ["resnet101-63fe2227.pth", "resnet101-cd907fc2.pth"]
)
ResNet152_Weights = published(
    "ResNet152_Weights", 60_192_808, ["resnet152-394f9c45.pth", "resnet152-f82ba261.pth"]
)
ResNeXt50_32X4D_Weights = published(
    "ResNeXt50_32X4D_Weights",
    25_028_904,
    ["resnext50_32x4d-7cdf4587.pth", "resnext50_32x4d-1a0047aa.pth"],
)
ResNeXt101_32X8D_Weights = published(
    "ResNeXt101_32X8D_Weights",
    88_791_336,
    ["resnext101_32x8d-8ba56ff5.pth", "resnext101_32x8d-110c445d.pth"],
)
ResNeXt101_64X4D_Weights = published(
    "ResNeXt101_64X4D_Weights", 83_455_272, "resnext101_64x4d-173b62eb.pth", resize_size=232
)
Wide_ResNet50_2_Weights = published(
    "Wide_ResNet50_2_Weights",
    68_883_240,
    ["wide_resnet50_2-95faca4d.pth", "wide_resnet50_2-9ba9bcbe.pth"],
)
Wide_ResNet101_2_Weights = published(
    "Wide_ResNet101_2_Weights",
    126_886_696,
    ["wide_resnet101_2-32ee1156.pth", "wide_resnet101_2-d733dc28.pth"],
)


def _conv3x3(
    inputs: int, outputs: int, stride: int = 1, groups: int = 1, dilation: int = 1
) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, dilation, dilation, groups, bias=False)


def _conv1x1(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 1, stride, bias=False)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: (N, inplanes, H, W) -> (N, planes, H/stride, W/stride).

    Args:
        inplanes: channels of the input.
        planes: channels of the output.
        stride: of the first convolution.
        downsample: what the shortcut does where sizes change.
        groups: 1.
        base_width: 64.
        dilation: 1.
        norm_layer: makes the normalisations; batch normalisation if None.

    Raises:
        ValueError: groups or width of a bottleneck.
        NotImplementedError: dilation.
    """

    expansion: ClassVar[int] = 1

    def __init__(
        self,
        inplanes: int,
        planes: int,
        stride: int = 1,
        downsample: nn.Module | None = None,
        groups: int = 1,
        base_width: int = 64,
        dilation: int = 1,
        norm_layer: _Norm | None = None,
    ) -> None:
        super().__init__()
        norm = norm_layer or nn.BatchNorm2d
        if groups != 1 or base_width != 64:
            raise ValueError(
                "BasicBlock only supports groups=1 and base_width=64, "
                f"got groups={groups} and base_width={base_width}"
            )
        if dilation > 1:
            raise NotImplementedError(
                f"Dilation > 1 not supported in BasicBlock, got dilation={dilation}"
            )
        self.conv1 = _conv3x3(inplanes, planes, stride)
        self.bn1 = norm(planes)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = _conv3x3(planes, planes)
        self.bn2 = norm(planes)
        self.downsample = downsample
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """(N, inplanes, H, W) -> (N, planes, H/stride, W/stride)."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut: (N, inplanes, H, W) -> (N, 4 planes, H', W').

    Args:
        inplanes: channels of the input.
        planes: a quarter of the channels of the output.
        stride: of the 3x3 convolution.
        downsample: what the shortcut does where sizes change.
        groups: of the 3x3 convolution.
        base_width: channels per group at 64 planes.
        dilation: of the 3x3 convolution.
        norm_layer: makes the normalisations; batch normalisation if None.
    """

    expansion: ClassVar[int] = 4

    def __init__(
        self,
        inplanes: int,
        planes: int,
        stride: int = 1,
        downsample: nn.Module | None = None,
        groups: int = 1,
        base_width: int = 64,
        dilation: int = 1,
        norm_layer: _Norm | None = None,
    ) -> None:
        super().__init__()
        norm = norm_layer or nn.BatchNorm2d
        width = int(planes * (base_width / 64.0)) * groups
        self.conv1 = _conv1x1(inplanes, width)
        self.bn1 = norm(width)
        self.conv2 = _conv3x3(width, width, stride, groups, dilation)
        self.bn2 = norm(width)
        self.conv3 = _conv1x1(width, planes * self.expansion)
        self.bn3 = norm(planes * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """(N, inplanes, H, W) -> (N, 4 planes, H/stride, W/stride)."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


class ResNet(nn.Module):
    """A stem, four stages of residual blocks and a linear layer: (N, 3, H, W) -> (N, num_classes).

    Args:
        block: `BasicBlock` or `Bottleneck`.
        layers: blocks of each stage.
        num_classes: outputs.
        zero_init_residual: let each block start as its shortcut (its last normalisation scales by 0).
        groups: of the bottlenecks' 3x3 convolutions.
        width_per_group: their channels per group in the first stage.
        replace_stride_with_dilation: for each of the last three stages, dilate instead of striding.
        norm_layer: makes the normalisations; batch normalisation if None.

    Raises:
        ValueError: `replace_stride_with_dilation` has not three elements.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        layers: Sequence[int],
        num_classes: int = 1000,
        zero_init_residual: bool = False,
        groups: int = 1,
        width_per_group: int = 64,
        replace_stride_with_dilation: Sequence[bool] | None = None,
        norm_layer: _Norm | None = None,
    ) -> None:
        super().__init__()
        self._norm_layer = norm_layer or nn.BatchNorm2d
        self.inplanes = 64
        self.dilation = 1
        dilate = (
            (False,) * 3 if replace_stride_with_dilation is None else replace_stride_with_dilation
        )
        if len(dilate) != 3:
            raise ValueError(
                "replace_stride_with_dilation should be None or a 3-element tuple, "
                f"got {replace_stride_with_dilation}"
            )
        self.groups = groups
        self.base_width = width_per_group
        self.conv1 = nn.Conv2d(3, self.inplanes, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = self._norm_layer(self.inplanes)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        self.layer1 = self._make_layer(block, 64, layers[0])
        self.layer2 = self._make_layer(block, 128, layers[1], 2, dilate[0])
        self.layer3 = self._make_layer(block, 256, layers[2], 2, dilate[1])
        self.layer4 = self._make_layer(block, 512, layers[3], 2, dilate[2])
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(512 * block.expansion, num_classes)
        he_normal(self)
        if zero_init_residual:
            self._start_as_shortcuts()

    def _start_as_shortcuts(self) -> None:
        for module in self.modules():
            last = getattr(module, "bn3" if isinstance(module, Bottleneck) else "bn2", None)
            if (
                isinstance(module, (BasicBlock, Bottleneck))
                and getattr(last, "weight", None) is not None
            ):
                init.zeros_(last.weight)  # type: ignore[union-attr]

    def _make_layer(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        planes: int,
        blocks: int,
        stride: int = 1,
        dilate: bool = False,
    ) -> nn.Sequential:
        # The first block of a dilated stage keeps the dilation of the stage before.
        first_dilation = self.dilation
        if dilate:
            self.dilation *= stride
            stride = 1
        downsample = None
        if stride != 1 or self.inplanes != planes * block.expansion:
            downsample = nn.Sequential(
                _conv1x1(self.inplanes, planes * block.expansion, stride),
                self._norm_layer(planes * block.expansion),
            )
        stage: list[nn.Module] = []
        for position in range(blocks):
            first = position == 0
            stage.append(
                block(
                    self.inplanes,
                    planes,
                    stride if first else 1,
                    downsample if first else None,
                    self.groups,
                    self.base_width,
                    first_dilation if first else self.dilation,
                    self._norm_layer,
                )
            )
            self.inplanes = planes * block.expansion
        return nn.Sequential(*stage)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, num_classes)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.avgpool(x).flatten(1))


@register_model(ResNet18_Weights)
def resnet18(**kwargs: Any) -> ResNet:
    """ResNet of 18 layers; `kwargs` are the class's arguments."""
    return ResNet(BasicBlock, [2, 2, 2, 2], **kwargs)


@register_model(ResNet34_Weights)
def resnet34(**kwargs: Any) -> ResNet:
    """ResNet of 34 layers; `kwargs` are the class's arguments."""
    return ResNet(BasicBlock, [3, 4, 6, 3], **kwargs)


@register_model(ResNet50_Weights)
def resnet50(**kwargs: Any) -> ResNet:
    """ResNet of 50 layers; `kwargs` are the class's arguments."""
    return ResNet(Bottleneck, [3, 4, 6, 3], **kwargs)


@register_model(ResNet101_Weights)
def resnet101(**kwargs: Any) -> ResNet:
    """ResNet of 101 layers; `kwargs` are the class's arguments."""
    return ResNet(Bottleneck, [3, 4, 23, 3], **kwargs)


@register_model(ResNet152_Weights)
def resnet152(**kwargs: Any) -> ResNet:
    """ResNet of 152 layers; `kwargs` are the class's arguments."""
    return ResNet(Bottleneck, [3, 8, 36, 3], **kwargs)


@register_model(ResNeXt50_32X4D_Weights)
def resnext50_32x4d(**kwargs: Any) -> ResNet:
    """ResNeXt of 50 layers, 32 groups of 4 channels; `kwargs` are the class's arguments."""
    return ResNet(Bottleneck, [3, 4, 6, 3], **({"groups": 32, "width_per_group": 4} | kwargs))


@register_model(ResNeXt101_32X8D_Weights)
def resnext101_32x8d(**kwargs: Any) -> ResNet:
    """ResNeXt of 101 layers, 32 groups of 8 channels; `kwargs` are the class's arguments."""
    return ResNet(Bottleneck, [3, 4, 23, 3], **({"groups": 32, "width_per_group": 8} | kwargs))


@register_model(ResNeXt101_64X4D_Weights)
def resnext101_64x4d(**kwargs: Any) -> ResNet:
    """ResNeXt of 101 layers, 64 groups of 4 channels; `kwargs` are the class's arguments."""
    return ResNet(Bottleneck, [3, 4, 23, 3], **({"groups": 64, "width_per_group": 4} | kwargs))


@register_model(Wide_ResNet50_2_Weights)
def wide_resnet50_2(**kwargs: Any) -> ResNet:
    """ResNet of 50 layers, its bottlenecks twice as wide; `kwargs` are the class's arguments."""
    return ResNet(Bottleneck, [3, 4, 6, 3], **({"width_per_group": 128} | kwargs))


@register_model(Wide_ResNet101_2_Weights)
def wide_resnet101_2(**kwargs: Any) -> ResNet:
    """ResNet of 101 layers, its bottlenecks twice as wide; `kwargs` are the class's arguments."""
    return ResNet(Bottleneck, [3, 4, 23, 3], **({"width_per_group": 128} | kwargs))
