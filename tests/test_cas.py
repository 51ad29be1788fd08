"""Customizable Architecture Search: the multi-scale cell, resources in the loss, pre-training between stages."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest
import torch

from hwnas.errors import HwnasError
from hwnas.files import read_json
from hwnas.problem import Architecture
from hwnas.spaces import MultiScaleHead, Scale, Space, cas_space, multiscale_ops, sample, trace_space
from tests.contracts import SpaceContract
from tests.verbs import STAGES, do_job

SMALL = cas_space(Scale(4, 3, (45, 61)), 5, nodes=2, head_channels=6, head_nodes=2)


class TestSpace(SpaceContract):
    N_ARCHS = 3

    @pytest.fixture
    def space(self) -> Space:
        return SMALL


class TestMultiScaleCell:
    def test_rates_see_as_far_at_every_stride(self) -> None:
        rates = {s: [int(o.rpartition("_r")[2]) for o in multiscale_ops(s) if "_r" in o] for s in (8, 16, 32)}
        assert rates == {8: [12, 24, 36], 16: [6, 12, 18], 32: [3, 6, 9]}
        for stride in rates:
            Space(SMALL.encoder, MultiScaleHead(4, multiscale_ops(stride), stride=stride), 5).build()

    def test_it_is_computed_at_its_stride(self) -> None:
        arch = Architecture.of(SMALL.name, {})
        (last,) = [c for c in trace_space(SMALL, arch).calls if c.name == "head.classifier"]
        assert last.spec.in_shapes == ((1, 12, 3, 4),)
        assert not [c for c in trace_space(SMALL).calls if c.spec.kind == "resize" and c.name.startswith("head.pre")]

    def test_it_reads_low_level_features_too(self) -> None:
        space = Space(SMALL.encoder, MultiScaleHead(4, nodes=2, inputs=(-1, 0), stride=8), 5)
        spec = space.head.cells[0]
        assert (spec.inputs, spec.edges[:2]) == (2, ((0, 2), (1, 2)))
        image = torch.rand(2, 3, *space.scale.size)
        assert space.build()(image, space.problem.uniform()).shape == (2, 5, 45, 61)
        with torch.no_grad():
            arch = sample(space, np.random.default_rng(0))
            assert space.build(arch, "deploy").eval()(image).shape == (2, 5, 45, 61)

    def test_inputs_are_features_that_there_are(self) -> None:
        for inputs in ((), (-1, -1)):
            with pytest.raises(HwnasError, match="different features, one or more"):
                MultiScaleHead(inputs=inputs)
        for inputs in ((-1, 2), (3,), (-4,)):
            with pytest.raises(HwnasError, match="of an encoder that has 3"):
                Space(SMALL.encoder, MultiScaleHead(inputs=inputs), 5).build()


def test_the_whole_job(tmp_path: Path) -> None:
    verbs = [("profile", "cas-tiny", "--engine", "fake"), *((verb, "cas-tiny") for verb in STAGES[1:])]
    do_job(tmp_path, verbs)
    with contextlib.chdir(tmp_path):
        report = read_json(Path("runs/cas-tiny/report.json"), "a report")
        assert report["met"]
        assert report["measured_ms"] == pytest.approx(report["predicted_ms"], rel=0.1)
        drawing = Path("runs/cas-tiny/arch.svg").read_text()
        assert all(f"<!-- {name} -->" in drawing for name in ("normal", "reduce", "multiscale"))
