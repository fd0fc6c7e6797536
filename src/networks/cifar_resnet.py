"""ResNet-20/32/44/56 for small images (He et al. 2016, section 4.2), with option-A shortcuts.

Three stages of n blocks, widths 16, 32, 64, depth 6n + 2; where the width doubles, the shortcut
takes every second pixel and pads the new channels with zeros: no parameters. D = 64.

With a blur (src/networks/anti_alias.py) both ways into a narrower map are blurred, the shortcut
too: half of the signal takes it, and without weights nothing there could learn to smooth.
"""

import math

import torch
from timm.layers import BlurPool2d, SelectAdaptivePool2d
from torch import nn
from torch.nn import functional as F

WIDTHS = (16, 32, 64)
DEPTHS = {f"cifar_resnet{6 * n + 2}": n for n in (3, 5, 7, 9)}


class Block(nn.Module):
    """conv3-BN-ReLU-conv3-BN, plus the shortcut, then ReLU. blur: a class, or None."""

    def __init__(self, width_in: int, width: int, blur: type[BlurPool2d] | None = None):
        super().__init__()
        narrows = width_in != width
        self.blur = blur(width, stride=2) if blur and narrows else None
        self.blur_shortcut = blur(width_in, stride=2) if blur and narrows else None
        stride = 2 if narrows and not blur else 1
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.new_channels = width - width_in

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        if self.blur is not None:
            out = self.blur(out)
        out = self.bn2(self.conv2(out))
        if self.new_channels:
            half = self.new_channels // 2
            x = x[:, :, ::2, ::2] if self.blur_shortcut is None else self.blur_shortcut(x)
            x = F.pad(x, (0, 0, 0, 0, half, self.new_channels - half))
        return F.relu(out + x)


class CifarResNet(nn.Module):
    """images [N, 3, H, W] → pooled features [N, 64]; H and W divisible by 4.

    width: share of their 32 and 64 channels that the later stages have, above 0.5
    """

    def __init__(
        self, blocks_per_stage: int, blur: type[BlurPool2d] | None = None, width: float = 1.0
    ):
        super().__init__()
        widths = (WIDTHS[0], *(math.ceil(width * channels) for channels in WIDTHS[1:]))
        self.num_features = widths[-1]
        self.conv1 = nn.Conv2d(3, WIDTHS[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        width_in, stages = widths[0], []
        for width_out in widths:
            blocks = []
            for _ in range(blocks_per_stage):
                blocks.append(Block(width_in, width_out, blur))
                width_in = width_out
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3 = stages
        self.global_pool = SelectAdaptivePool2d(pool_type="fast", flatten=True)  # the mean
        self.feature_info = [  # as timm's models have it
            {"num_chs": width_out, "reduction": 2**i, "module": f"layer{i + 1}"}
            for i, width_out in enumerate(widths)
        ]
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn1(self.conv1(images)))  # [N, 16, H, W]
        return self.layer3(self.layer2(self.layer1(x)))  # [N, 64, H/4, W/4]

    def forward_head(self, last: torch.Tensor) -> torch.Tensor:
        return self.global_pool(last)  # [N, 64]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.forward_head(self.forward_features(images))
