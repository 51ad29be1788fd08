"""The networks of a space: the parts of an encoder and of a head as one, computed or traced."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor, nn

from hwnas.ops import layers
from hwnas.ops.registry import active_tracer
from hwnas.problem import Architecture
from hwnas.spaces.parts import (
    Encoder,
    EncoderNet,
    Feature,
    Features,
    Form,
    Head,
    HeadNet,
    Maps,
    OpenEncoderNet,
    Probs,
    Sampled,
)


class SpaceNet(nn.Module):
    """A network that computes: a supernet, one of its one-hots, or what ships.

    The parts of the encoder go by their own names, ``stem.first``, those of the head by ``head.classifier``. Where a
    supernet has several alternatives of a feature, each has a head of its own, ``heads.0`` and so on, and their scores
    are added.
    """

    def __init__(
        self, encoder: Encoder, head: Head, classes: int, arch: Architecture, form: Form, labels: bool
    ) -> None:
        """Build it; use `Space.build`."""
        super().__init__()
        features, net = encoder.features(arch, form), encoder.build(arch, form)
        assert isinstance(net, EncoderNet), "one of several alternatives has to be weighted"
        self._encoder = _adopt(self, net)
        self.several = any(len(f) > 1 for f in features)
        if self.several:
            count = max(map(len, features))
            self.heads = nn.ModuleList(
                head.build(_one_each(features, i), classes, False, arch, form) for i in range(count)
            )
            self.argmax = layers.ArgMax() if labels else nn.Identity()
        else:
            self.head = head.build(_one_each(features, 0), classes, labels, arch, form)

    @property
    def encoder(self) -> EncoderNet:
        """The network of the encoder."""
        net = self._encoder[0]
        assert isinstance(net, EncoderNet)
        return net

    def forward(self, image: Tensor, probs: Probs | None = None, sampled: Sampled | None = None) -> Tensor:
        """Compute class scores.

        Args:
            image: (N, 3, H, W).
            probs: ``{group: (decisions, options)}`` where decisions are open.
            sampled: ``{group: (decisions, options)}``, which options are computed: memory is that of these. The others
                must have a probability of 0. None for all.

        Returns:
            (N, classes), or (N, classes, H, W); with `labels` (N,) or (N, H, W) of uint8.
        """
        return self.with_auxiliary(image, probs, sampled)[0]

    def with_auxiliary(
        self, image: Tensor, probs: Probs | None = None, sampled: Sampled | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return what `forward` does, and the map that an auxiliary head reads."""
        maps: Maps = self.encoder(image, probs, sampled)
        if self.several:
            return self._summed(image, maps, probs, sampled), maps.auxiliary
        chosen = [f[0].value for f in maps.features if f[0] is not None]
        scores: Tensor = self.head(image, chosen, probs, sampled)
        return scores, maps.auxiliary

    def _summed(self, image: Tensor, maps: Maps, probs: Probs | None, sampled: Sampled | None) -> Tensor:
        scores = []
        for i, head in enumerate(self.heads):
            chosen = [f[i if len(f) > 1 else 0] for f in maps.features]
            there = [m for m in chosen if m is not None]
            if len(there) == len(chosen):
                own = head(image, [m.value for m in there], probs, sampled)
                for m in there:
                    own = own if m.weight is None else m.weight * own
                scores.append(own)
        out: Tensor = self.argmax(torch.stack(scores).sum(0))
        return out


class OpenNet(nn.Module):
    """All networks of a space whose features have alternatives, to be traced: each neck under its alternative's gate.

    The body of the head is the same for all alternatives and written down once. It computes nothing.
    """

    def __init__(self, encoder: Encoder, head: Head, classes: int, arch: Architecture, labels: bool) -> None:
        """Build it; use `Space.build`."""
        super().__init__()
        net = encoder.build(arch, "deploy")
        assert isinstance(net, OpenEncoderNet), "features with alternatives come from a network to be traced"
        self._encoder = _adopt(self, net)
        self.features = encoder.features(arch, "deploy")
        # A head is built for one alternative of each feature; of the head for another one the neck alone is taken.
        self.necks: dict[tuple[int, int], HeadNet] = {}
        for i, alternatives in enumerate(self.features):
            for a, feature in enumerate(alternatives):
                chosen = [feature if i == j else f[0] for j, f in enumerate(self.features)]
                self.necks[i, a] = head.build(chosen, classes, labels, arch, "deploy")

    def forward(self, image: Tensor, probs: Probs | None = None, sampled: Sampled | None = None) -> Tensor:
        """Write down all alternatives; return what stands for the result."""
        tracer = active_tracer.get()
        assert tracer is not None, (
            "a network with alternatives is for tracing: answer its decisions, or build a supernet"
        )
        body, necks = self.necks[0, 0], dict[int, Tensor]()
        for i, a, x in self._encoder[0](image):
            if i not in body.reads:
                continue
            several, feature, neck = len(self.features[i]) > 1, self.features[i][a], self.necks[i, a]
            with tracer.gated(feature.active_gate or feature.gate) if several else nullcontext():
                active = neck.active(i, x)
            with tracer.gated(feature.gate) if several else nullcontext():
                necks[i] = neck.neck(i, active, image, probs, sampled)
        for i in necks:
            if len(self.features[i]) > 1:
                necks[i] = tracer.join(necks[i])
        return body.body(image, [necks[i] for i in body.reads], probs, sampled)


def _adopt(network: nn.Module, part: nn.Module) -> tuple[nn.Module]:
    """Make the children of a part those of a network, and return the part so that it is not a child itself."""
    for name, child in part.named_children():
        network.add_module(name, child)
    return (part,)


def _one_each(features: Features, i: int) -> list[Feature]:
    """Return alternative i of each feature that has several, and those that have one."""
    return [f[i if len(f) > 1 else 0] for f in features]
