"""The decoder of Fast NAS: what the public code gives, and what its lists mean."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from matplotlib.figure import Figure

from hwnas.errors import HwnasError
from hwnas.ops import layers
from hwnas.problem import Architecture
from hwnas.records import decode, encode
from hwnas.spaces import Head, MobileNetV2, Scale, Space, own_space, published, trace_space
from hwnas.spaces.heads.fastnas import OPS, PUBLISHED, FastNASHead

SIZE, CLASSES = (512, 512), 21
NAMES = ("FAST_NAS_0", "FAST_NAS_1", "FAST_NAS_2")
# The MobileNetV2 of the public code, nn/layer_factory.py, has a 1x1 convolution of 32 channels to 32 and a BatchNorm in
# its first block, at half the size of the image. That of the paper has none there.
EXPAND = 32 * 32 + 2 * 32


def of(name: str) -> tuple[Space, Architecture]:
    space = own_space(name, SIZE, CLASSES)
    assert space is not None
    return space, published(name, space)


class TestPublished:
    def test_the_first_has_the_size_of_the_public_code(self) -> None:
        """DrSleep/nas-segm-pytorch: parameters and multiply-adds of convolutions at 512x512 without auxiliary heads."""
        space, arch = of("FAST_NAS_0")
        with torch.device("meta"):
            net = space.build(arch, "deploy")
        assert sum(p.numel() for p in net.parameters()) + EXPAND == 2_629_909
        encoder = sum(p.numel() for n, p in net.named_parameters() if not n.startswith("head."))
        assert encoder + EXPAND == 1_812_800
        trace = trace_space(space, arch, labels=False)
        assert trace.cost().macs + 32 * 32 * 256 * 256 == 4_208_189_440
        (scores,) = [c.out_shape for c in trace.calls if c.name == "head.classifier"]
        assert scores == (1, CLASSES, 128, 128)

    @pytest.mark.parametrize(("name", "side", "loose"), [("FAST_NAS_1", 64, 2), ("FAST_NAS_2", 64, 2)])
    def test_blocks_that_no_other_reads_are_joined_at_the_size_of_the_largest(
        self, name: str, side: int, loose: int
    ) -> None:
        space, arch = of(name)
        (scores,) = [c for c in trace_space(space, arch).calls if c.name == "head.classifier"]
        (joined,) = [c for c in trace_space(space, arch).calls if c.name == "head.project"]
        assert scores.out_shape[2:] == (side, side)
        assert joined.spec.in_shapes == ((1, loose * 64, side, side),)

    @pytest.mark.parametrize("name", NAMES)
    def test_it_prints_as_the_list_of_the_public_code(self, name: str) -> None:
        space, arch = of(name)
        first, steps, blocks = PUBLISHED[int(name[-1])]
        assert str(space.head.genotype(arch)) == str([[first, *map(list, steps)], [*map(list, blocks)]])
        figure = Figure()
        space.draw(figure, arch, {}, {"stem": 1.0})
        texts = [t.get_text() for axes in figure.axes for t in axes.texts]
        assert {"feature 3", "block 2", "result", f"1: {OPS[first]}"} <= set(texts)
        assert texts.count("result") == 2
        arrows = sum(len(dict.fromkeys(block)) for block in blocks)
        assert sum('-> "blocks block' in line for line in space.dot(arch).splitlines()) >= arrows


class TestCell:
    def head(self, *steps: tuple[int, int, int, int], **settings: Any) -> FastNASHead:
        return FastNASHead(4, **{"first": 9, "steps": steps, "blocks": ((0, 1),), "repeats": 1, **settings})

    def test_what_no_step_reads_is_the_result(self) -> None:
        """By hand, of identities: states 0 to 4 are x, x, x, x and 2x; of a second step x, 2x and 3x."""
        for steps, loose, times in (
            (((0, 0, 9, 9),), (1, 4), 3),
            (((1, 0, 9, 9),), (4,), 2),
            (((0, 0, 9, 9), (0, 4, 9, 9)), (1, 7), 4),
            (((0, 0, 9, 9), (0, 0, 9, 9)), (1, 4, 7), 5),
        ):
            head = self.head(*steps)
            assert head.loose_states == loose
            net = Space(MobileNetV2(Scale(8, 7, (64, 64))), head, 2).build().eval()
            cell = net.head.blocks[0].cells[0]  # type: ignore[union-attr]
            x = torch.rand(1, 4, 5, 6)
            torch.testing.assert_close(cell(x), times * x)

    def test_every_op_is_built(self) -> None:
        for first in range(len(OPS)):
            head = self.head((1, 0, first, 9), first=first)
            net = Space(MobileNetV2(Scale(8, 7, (64, 64))), head, 2).build().eval()
            cell = net.head.blocks[0].cells[0]  # type: ignore[union-attr]
            with torch.no_grad():
                assert cell(torch.rand(1, 4, 5, 6)).shape == (1, 4, 5, 6)

    def test_a_separable_convolution_is_repeated(self) -> None:
        for repeats in (1, 2, 3):
            head = self.head((1, 0, 8, 9), repeats=repeats)
            net = Space(MobileNetV2(Scale(8, 7, (64, 64))), head, 2).build()
            convs = [m for m in net.head.blocks[0].cells[0].modules() if isinstance(m, layers.DilConv)]  # type: ignore[union-attr]
            assert len(convs) == repeats
            assert {(m.attrs["kernel"], m.attrs["dilation"]) for m in convs} == {(5, 6)}

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"first": 10}, "ops from 0 to 9"),
            ({"steps": ((2, 0, 1, 1),)}, "steps that read earlier states"),
            ({"blocks": ((4, 0),)}, "blocks that read features or earlier blocks"),
            ({"steps": ()}, "steps that read earlier states"),
            ({"repeats": 0}, "repeats of 1 or more"),
        ],
    )
    def test_what_cannot_be_built_is_refused(self, settings: dict[str, Any], message: str) -> None:
        with pytest.raises(HwnasError, match=message):
            FastNASHead(**settings)

    def test_it_is_stored_whole(self) -> None:
        for own in (FastNASHead(), self.head((0, 1, 2, 3), blocks=((0, 3), (4, 1)))):
            assert decode(encode(own, Head), Head) == own
