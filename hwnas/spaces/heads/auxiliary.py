"""Auxiliary heads: a second classifier in the middle of a network, so that its loss reaches early cells.

They are trained beside a network and thrown away. Each is ``auxiliary(image, map) -> scores``.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from hwnas.errors import HwnasError
from hwnas.ops import layers
from hwnas.spaces.parts import Feature


class AuxiliarySegmentation(nn.Module):
    """A small FCN head (Long et al. 2015), as real-time networks are trained (BiSeNet, section 3.4)."""

    def __init__(self, feature: Feature, channels: int, classes: int) -> None:
        """Build it for a feature, with so many channels between."""
        super().__init__()
        self.layers = nn.Sequential(
            layers.ConvBN(feature.channels, channels, 3, relu=True),
            layers.Classifier(channels, classes),
        )

    def forward(self, image: Tensor, x: Tensor) -> Tensor:
        """Compute scores (N, classes, H, W) of the size of the image."""
        scores: Tensor = self.layers(x)
        return F.interpolate(scores, size=image.shape[2:], mode="bilinear", align_corners=False)


class AuxiliaryClassification(nn.Module):
    """That of the public DARTS code, model.py."""

    def __init__(
        self, feature: Feature, size: tuple[int, int], classes: int, pool_stride: int, second_norm: bool
    ) -> None:
        """Build it.

        Args:
            feature: What it reads.
            size: (height, width) of that. Maps are 8x8 on CIFAR and 7x7 on ImageNet, and pooling gives 2x2.
            classes: Number of classes.
            pool_stride: Of its pooling.
            second_norm: Whether it has a second BatchNorm.

        Raises:
            HwnasError: If the maps are too small for its pooling.
        """
        super().__init__()
        least, side = 5 + pool_stride, min(size)
        if side < least:
            raise HwnasError(
                f"an auxiliary head reads maps of at least {least}x{least}, here they are {side} high or wide; take "
                "larger images, or train without it (aux_weight=0)"
            )
        self.layers = nn.Sequential(
            nn.ReLU(),
            nn.AvgPool2d(5, pool_stride, count_include_pad=False),
            nn.Conv2d(feature.channels, 128, 1, bias=False),
            nn.BatchNorm2d(128),
            nn.ReLU(),
            nn.Conv2d(128, 768, 2, bias=False),
            *([nn.BatchNorm2d(768)] if second_norm else []),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),  # larger images leave more than one pixel
            nn.Flatten(),
            nn.Linear(768, classes),
        )

    def forward(self, image: Tensor, x: Tensor) -> Tensor:
        """Compute scores (N, classes)."""
        scores: Tensor = self.layers(x)
        return scores
