"""Networks made by hand or found by others, each a space of its own: what a searched network is to be compared with.

They are as published, for any size of image and number of classes; `docs/baselines.md` has their sources, and where
they differ.
"""

from __future__ import annotations

from hwnas.spaces.encoders.bisenetv2 import PUBLISHED as BISENETV2
from hwnas.spaces.encoders.bisenetv2 import BiSeNetV2
from hwnas.spaces.encoders.ddrnet import PUBLISHED as DDRNET
from hwnas.spaces.encoders.ddrnet import DDRNet
from hwnas.spaces.encoders.fast_scnn import PUBLISHED as FAST_SCNN
from hwnas.spaces.encoders.fast_scnn import FastSCNN
from hwnas.spaces.encoders.lmffnet import PUBLISHED as LMFFNET
from hwnas.spaces.encoders.lmffnet import LMFFNet
from hwnas.spaces.encoders.mobilenetv2 import MobileNetV2
from hwnas.spaces.encoders.pidnet import PUBLISHED as PIDNET
from hwnas.spaces.encoders.pidnet import PIDNet
from hwnas.spaces.encoders.stdc import PUBLISHED as STDC1
from hwnas.spaces.encoders.stdc import STDC
from hwnas.spaces.heads import BoundaryHead, DualHead, FusionHead, GuidedHead, MultiAttentionHead, RefinementHead
from hwnas.spaces.heads.fastnas import PUBLISHED as FAST_NAS
from hwnas.spaces.heads.fastnas import FastNASHead
from hwnas.spaces.parts import Scale
from hwnas.spaces.published import alone
from hwnas.spaces.space import Space

Size = tuple[int, int]


@alone("FAST_SCNN")
def fast_scnn(size: Size, classes: int) -> Space:
    """Return Fast-SCNN (Poudel et al. 2019)."""
    return Space(FastSCNN(Scale(*FAST_SCNN, size)), FusionHead(), classes)


@alone("BISENETV2")
def bisenetv2(size: Size, classes: int) -> Space:
    """Return BiSeNetV2 (Yu et al. 2021)."""
    return Space(BiSeNetV2(Scale(*BISENETV2, size)), GuidedHead(), classes)


@alone("STDC1")
def stdc1(size: Size, classes: int) -> Space:
    """Return STDC1-Seg (Fan et al. 2021)."""
    return Space(STDC(Scale(*STDC1, size)), RefinementHead(), classes)


@alone("PIDNET_S")
def pidnet_s(size: Size, classes: int) -> Space:
    """Return PIDNet-S (Xu et al. 2023)."""
    return Space(PIDNet(Scale(*PIDNET, size)), BoundaryHead(), classes)


@alone("DDRNET_23_SLIM")
def ddrnet_23_slim(size: Size, classes: int) -> Space:
    """Return DDRNet-23-slim (Hong et al. 2021)."""
    return Space(DDRNet(Scale(*DDRNET, size)), DualHead(), classes)


@alone("LMFFNET")
def lmffnet(size: Size, classes: int) -> Space:
    """Return LMFFNet-3-8 (Shi et al. 2022)."""
    return Space(LMFFNet(Scale(*LMFFNET, size)), MultiAttentionHead(), classes)


def _fast_nas(index: int, size: Size, classes: int) -> Space:
    first, steps, blocks = FAST_NAS[index]
    head = FastNASHead(first=first, steps=steps, blocks=blocks)
    return Space(MobileNetV2(Scale(32, 7, size)), head, classes)


@alone("FAST_NAS_0")
def fast_nas_0(size: Size, classes: int) -> Space:
    """Return the first network of Fast NAS (Nekrasov et al. 2019), which it calls arch0."""
    return _fast_nas(0, size, classes)


@alone("FAST_NAS_1")
def fast_nas_1(size: Size, classes: int) -> Space:
    """Return arch1."""
    return _fast_nas(1, size, classes)


@alone("FAST_NAS_2")
def fast_nas_2(size: Size, classes: int) -> Space:
    """Return arch2."""
    return _fast_nas(2, size, classes)
