"""Search spaces."""

from hwnas.spaces.base import Form, Scale, SearchSpace, check, decisions, sample, trace_space
from hwnas.spaces.chain import DARTS_OPS, ChainSpace
from hwnas.spaces.genotype import DARTS_V1, DARTS_V2, Genotype, derived_genotype

__all__ = [
    "DARTS_OPS",
    "DARTS_V1",
    "DARTS_V2",
    "ChainSpace",
    "Form",
    "Genotype",
    "Scale",
    "SearchSpace",
    "check",
    "decisions",
    "derived_genotype",
    "sample",
    "trace_space",
]
