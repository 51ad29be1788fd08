"""Networks that were published, by name: another one is a function with the decorator `network`, or `alone`.

The former is an architecture of a space of others, the latter a space of its own.
"""

from __future__ import annotations

from collections.abc import Callable

from hwnas.errors import HwnasError, unknown
from hwnas.problem import Architecture
from hwnas.problem.rules.one_path import Path
from hwnas.spaces.encoders.trellis import Trellis, trellis_architecture
from hwnas.spaces.genotype import Genotype
from hwnas.spaces.heads.dpc import DPCGenotype, DPCHead
from hwnas.spaces.space import Space

Maker = Callable[[Space], Architecture]
SpaceMaker = Callable[[tuple[int, int], int], Space]
SIZE, CLASSES = (1024, 2048), 19  # of Cityscapes, which networks that are alone were published for
_NETWORKS: dict[str, Maker] = {}
_ALONE: dict[str, SpaceMaker] = {}


def network(name: str) -> Callable[[Maker], Maker]:
    """Register a function that returns a network as an architecture of a space, or raises where it does not fit."""

    def register(make: Maker) -> Maker:
        assert name not in _NETWORKS, f"two networks are called {name}"
        _NETWORKS[name] = make
        return make

    return register


def alone(name: str) -> Callable[[SpaceMaker], SpaceMaker]:
    """Register a function of (height, width) and a number of classes that returns a network as a space of its own."""

    def register(make: SpaceMaker) -> SpaceMaker:
        def in_space(space: Space) -> Architecture:
            if space != make(space.scale.size, space.classes):
                raise HwnasError(
                    f"{name} is a space of its own, and the space {space.name!r} is another one, or of other sizes"
                )
            return Architecture.of(space.name, {})

        network(name)(in_space)
        _ALONE[name] = make
        return make

    return register


def alone_names() -> list[str]:
    """Return the names of the published networks that are spaces of their own."""
    return list(_ALONE)


def own_space(name: str, size: tuple[int, int] = SIZE, classes: int = CLASSES) -> Space | None:
    """Return the space of a published network that has one of its own; None for one of a space of others."""
    return _ALONE[name](size, classes) if name in _ALONE else None


def published_names() -> list[str]:
    """Return the names of all published networks."""
    return list(_NETWORKS)


def published(name: str, space: Space) -> Architecture:
    """Return a published network as an architecture of a space.

    Raises:
        HwnasError: If there is none of this name, or networks of the space are made of other cells, or of more or less.
    """
    if name not in _NETWORKS:
        raise unknown("published network", name, _NETWORKS)
    return _NETWORKS[name](space)


# Public DARTS code, cnn/genotypes.py, quark0/darts at f276dd3.
DARTS_V1 = Genotype.parse(
    "Genotype(normal=[('sep_conv_3x3', 1), ('sep_conv_3x3', 0), ('skip_connect', 0), ('sep_conv_3x3', 1), "
    "('skip_connect', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 0), ('skip_connect', 2)], normal_concat=[2, 3, 4, 5], "
    "reduce=[('max_pool_3x3', 0), ('max_pool_3x3', 1), ('skip_connect', 2), ('max_pool_3x3', 0), ('max_pool_3x3', 0), "
    "('skip_connect', 2), ('skip_connect', 2), ('avg_pool_3x3', 0)], reduce_concat=[2, 3, 4, 5])"
)
DARTS_V2 = Genotype.parse(
    "Genotype(normal=[('sep_conv_3x3', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 0), ('sep_conv_3x3', 1), "
    "('sep_conv_3x3', 1), ('skip_connect', 0), ('skip_connect', 0), ('dil_conv_3x3', 2)], normal_concat=[2, 3, 4, 5], "
    "reduce=[('max_pool_3x3', 0), ('max_pool_3x3', 1), ('skip_connect', 2), ('max_pool_3x3', 1), ('max_pool_3x3', 0), "
    "('skip_connect', 2), ('skip_connect', 2), ('max_pool_3x3', 1)], reduce_concat=[2, 3, 4, 5])"
)


def _darts(name: str, genotype: Genotype, space: Space) -> Architecture:
    if not {"normal", "reduce"} <= {spec.name for spec in space.cells}:
        raise HwnasError(
            f"{name} is made of DARTS cells, and networks of the space {space.name!r} have none; name another --recipe"
        )
    return genotype.architecture(space)


@network("DARTS_V1")
def _darts_v1(space: Space) -> Architecture:
    return _darts("DARTS_V1", DARTS_V1, space)


@network("DARTS_V2")
def _darts_v2(space: Space) -> Architecture:
    return _darts("DARTS_V2", DARTS_V2, space)


# The published architecture (Cityscapes): levels of the layers; for each block (op, state), where state 0 is H^{l-2}
# and state 1 is H^{l-1}. tensorflow/models, research/deeplab/core/nas_network.py.
PUBLISHED_PATH: Path = (0, 0, 0, 1, 2, 1, 2, 2, 3, 3, 2, 1)
PUBLISHED_CELL = (
    (("atrous_conv_5x5", 0), ("sep_conv_3x3", 1)),
    (("sep_conv_3x3", 0), ("atrous_conv_3x3", 1)),
    (("sep_conv_3x3", 3), ("sep_conv_3x3", 0)),
    (("sep_conv_5x5", 4), ("sep_conv_5x5", 2)),
    (("sep_conv_5x5", 3), ("atrous_conv_5x5", 5)),
)


@network("AUTO_DEEPLAB")
def _auto_deeplab(space: Space) -> Architecture:
    """Return the architecture of figure 3 of the paper."""
    encoder, expected = space.encoder, (len(PUBLISHED_PATH), len(PUBLISHED_CELL))
    if not isinstance(encoder, Trellis):
        raise HwnasError(
            f"AUTO_DEEPLAB is a path through a trellis, and networks of the space {space.name!r} have none; name "
            "another --recipe"
        )
    if (space.scale.cells, encoder.nodes) != expected:
        raise HwnasError(
            f"the published network has {expected[0]} layers and {expected[1]} blocks in a cell, networks of this "
            f"space {space.scale.cells} and {encoder.nodes}"
        )
    return trellis_architecture(space, PUBLISHED_PATH, PUBLISHED_CELL)


# The best cell of the paper's search: tensorflow/models,
# research/deeplab/core/dense_prediction_cell_branch5_top1_cityscapes.json.
DPC_CELL = DPCGenotype.parse(
    '[{"kernel": 3, "rate": [1, 6], "op": "conv", "input": -1}, {"kernel": 3, "rate": [18, 15], "op": "conv", '
    '"input": 0}, {"kernel": 3, "rate": [6, 3], "op": "conv", "input": 1}, {"kernel": 3, "rate": [1, 1], "op": "conv", '
    '"input": 0}, {"kernel": 3, "rate": [6, 21], "op": "conv", "input": 0}]'
)


@network("DPC")
def _dpc(space: Space) -> Architecture:
    """Return figure 5 of the paper; the encoder has no decisions."""
    head = space.head
    if not isinstance(head, DPCHead) or space.encoder.groups:
        raise HwnasError(
            f"DPC is a dense prediction cell on an encoder without decisions, and networks of the space {space.name!r} "
            "are not; name another --recipe"
        )
    arch = Architecture.of(space.name, head.answers(DPC_CELL))
    space.problem.check(arch)
    return arch
