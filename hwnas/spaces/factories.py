"""The spaces of the systems: pairs of an encoder and a head in a line."""

from __future__ import annotations

from hwnas.problem.rules.one_path import Boundary
from hwnas.spaces.encoders.chain import CAS_OPS, DARTS_OPS, Chain
from hwnas.spaces.encoders.independent import Independent
from hwnas.spaces.encoders.stack import Stem
from hwnas.spaces.encoders.trellis import TRELLIS_OPS, Trellis, Weighting
from hwnas.spaces.encoders.xception import ENTRY_65, Entry, Xception
from hwnas.spaces.heads import ASPPHead, ClassifierHead, ContextHead, DecoderHead, MultiScaleHead, multiscale_ops
from hwnas.spaces.parts import Head, Scale, Task
from hwnas.spaces.space import Space


def darts_space(
    scale: Scale,
    classes: int,
    stem: Stem = "segmentation",
    head: Task = "segmentation",
    ops: tuple[str, ...] = DARTS_OPS,
    nodes: int = 4,
    keep: int = 2,
    head_channels: int = 64,
) -> Space:
    """Return the space of DARTS: `Chain`, and `Classifier` as in the paper or `Context` to segment."""
    own: Head = ContextHead(head_channels)
    if head == "classification":
        own = ClassifierHead(pool_stride=3 if stem == "cifar" else 2, second_norm=stem != "imagenet")
    return Space(Chain(scale, stem, ops, nodes, keep), own, classes)


def autodeeplab_space(
    scale: Scale,
    classes: int,
    ops: tuple[str, ...] = TRELLIS_OPS,
    nodes: int = 5,
    keep: int = 2,
    head_channels: int = 256,
    boundary: Boundary = "existing",
    weighting: Weighting = "step",
) -> Space:
    """Return the space of Auto-DeepLab: `Trellis` and `Decoder`."""
    return Space(Trellis(scale, ops, nodes, keep, boundary, weighting), DecoderHead(head_channels), classes)


def cas_space(
    scale: Scale,
    classes: int,
    ops: tuple[str, ...] = CAS_OPS,
    nodes: int = 4,
    keep: int = 2,
    head_channels: int = 64,
    head_nodes: int = 4,
    inputs: tuple[int, ...] = (-1,),
) -> Space:
    """Return the space of CAS: `Chain` to stride 16, and `MultiScaleHead` there."""
    head = MultiScaleHead(head_channels, multiscale_ops(16), head_nodes, keep, inputs)
    return Space(Chain(scale, "segmentation", ops, nodes, keep), head, classes)


def gas_space(
    scale: Scale,
    classes: int,
    stem: Stem = "segmentation",
    ops: tuple[str, ...] = CAS_OPS,
    nodes: int = 2,
    keep: int | None = None,
    shared: bool = False,
    head_channels: int = 256,
) -> Space:
    """Return the space of GAS: `Independent` and `ASPPHead`."""
    return Space(Independent(scale, stem, ops, nodes, keep, shared), ASPPHead(head_channels), classes)


def xception_space(
    scale: Scale, classes: int, entry: Entry = ENTRY_65, stride: int = 16, head_channels: int = 256
) -> Space:
    """Return DeepLabv3+ on Xception: a space of one network."""
    return Space(Xception(scale, entry, stride), DecoderHead(head_channels, separable=True), classes)
