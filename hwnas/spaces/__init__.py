"""Search spaces: pairs of an encoder and a head."""

import hwnas.spaces.baselines  # noqa: F401 - registers its networks
from hwnas.spaces.cell import Cell, CellSpec
from hwnas.spaces.encoders import (
    Chain,
    Independent,
    Lite,
    MobileNetV2,
    ResNet,
    Trellis,
    Xception,
    encoder,
    registered_encoders,
)
from hwnas.spaces.encoders.chain import CAS_OPS, DARTS_OPS
from hwnas.spaces.encoders.trellis import TRELLIS_OPS, TrellisGenotype, trellis_architecture
from hwnas.spaces.factories import autodeeplab_space, cas_space, darts_space, gas_space, xception_space
from hwnas.spaces.genotype import Genotype, derived_genotype
from hwnas.spaces.heads import (
    ASPPHead,
    ClassifierHead,
    ContextHead,
    DecoderHead,
    DPCGenotype,
    DPCHead,
    FPNHead,
    MultiScaleHead,
    head,
    multiscale_ops,
    registered_heads,
)
from hwnas.spaces.net import SpaceNet
from hwnas.spaces.parts import Encoder, EncoderNet, Feature, Form, Head, HeadNet, Map, Maps, Scale
from hwnas.spaces.published import DARTS_V1, DARTS_V2, DPC_CELL, alone_names, own_space, published, published_names
from hwnas.spaces.sources import Source
from hwnas.spaces.space import Space, check, decisions, sample, trace_alternatives, trace_space

__all__ = [
    "CAS_OPS",
    "DARTS_OPS",
    "DARTS_V1",
    "DARTS_V2",
    "DPC_CELL",
    "TRELLIS_OPS",
    "ASPPHead",
    "Cell",
    "CellSpec",
    "Chain",
    "ClassifierHead",
    "ContextHead",
    "DPCGenotype",
    "DPCHead",
    "DecoderHead",
    "Encoder",
    "EncoderNet",
    "FPNHead",
    "Feature",
    "Form",
    "Genotype",
    "Head",
    "HeadNet",
    "Independent",
    "Lite",
    "Map",
    "Maps",
    "MobileNetV2",
    "MultiScaleHead",
    "ResNet",
    "Scale",
    "Source",
    "Space",
    "SpaceNet",
    "Trellis",
    "TrellisGenotype",
    "Xception",
    "alone_names",
    "autodeeplab_space",
    "cas_space",
    "check",
    "darts_space",
    "decisions",
    "derived_genotype",
    "encoder",
    "gas_space",
    "head",
    "multiscale_ops",
    "own_space",
    "published",
    "published_names",
    "registered_encoders",
    "registered_heads",
    "sample",
    "trace_alternatives",
    "trace_space",
    "trellis_architecture",
    "xception_space",
]
