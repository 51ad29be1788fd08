"""The networks of a trellis: the supernet, one as it ships, and all of them at once for a trace."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from hwnas.ops import layers
from hwnas.ops.mixed import On
from hwnas.ops.registry import active_tracer
from hwnas.problem import Architecture
from hwnas.problem.rules.one_path import Path, any_walk
from hwnas.problem.walks import Walk
from hwnas.spaces.cell import Cell, preprocessing
from hwnas.spaces.encoders.trellis_wiring import STEM, Stem, Step, Wiring, left_at, level_sizes
from hwnas.spaces.parts import EncoderNet, Map, Maps, OpenEncoderNet, Probs, Sampled

if TYPE_CHECKING:
    from hwnas.spaces.encoders.trellis import Trellis


class TrellisSupernet(EncoderNet):
    """The supernet: a cell at every stride of every layer, mixed over what leads to it (Auto-DeepLab, equation 6).

    H^l at stride s is the sum over the steps into it of beta times the cell of (H^{l-1} where the step comes from,
    brought to stride s; H^{l-2} at stride s). The three computations of a cell share its weights, and each has its own
    batch statistics. Where there is no H^{l-2} at stride s yet, in the first layers, it adds nothing.
    """

    def __init__(self, trellis: Trellis, arch: Architecture) -> None:
        """Build it; use `Trellis.build`."""
        super().__init__()
        self.trellis, self.arch = trellis, arch
        self.stem = Stem()
        self.cells = nn.ModuleDict()
        wiring = trellis.wiring
        for layer in range(wiring.layers):
            for level in wiring.levels(layer):
                self.cells[f"{layer}-{level}"] = _SupernetCell(wiring, arch, layer, level)
        self.relu = layers.ReLU()
        path = trellis.groups[1]
        self._rows = {d.name: row for row, d in enumerate(path.decisions)}
        self._columns = {option: column for column, option in enumerate(path.options)}

    def forward(self, image: Tensor, probs: Probs | None = None, sampled: Sampled | None = None) -> Maps:
        """Compute the features; see `EncoderNet.forward`."""
        probs, wiring = probs or {}, self.trellis.wiring
        path, alphas = probs.get("path"), probs.get("cell")
        paths, on = (None if sampled is None else sampled.get(name) for name in ("path", "cell"))
        _, last = self.stem(image)
        sizes = level_sizes(last)
        older: dict[int, Tensor] = {}
        old = {0: last}
        by_path, every = self.trellis.weighting == "path", sampled is None and path is not None
        passed = {0: last.new_ones(())}  # by level: how probable it is that the path passes, of "path"
        reached = {0}  # levels that a path that is computed passes, of "path"
        for layer in range(wiring.layers):
            into: dict[int, list[tuple[Step, Tensor, Tensor]]] = {}  # by level: steps, their inputs and weights
            betas = self._betas(wiring.steps(layer), path, image)
            for step, beta in betas.items():
                weight = passed[step.start] * beta if by_path else beta
                if every or ((not by_path or step.start in reached) and self._taken(step, paths)):
                    into.setdefault(step.end, []).append((step, step.brought(old[step.start], sizes), weight))
            made: dict[int, Tensor] = {
                to: self.cells[f"{layer}-{to}"](older.get(to), terms, alphas, on) for to, terms in into.items()
            }
            for level in wiring.levels(layer):
                if level not in made:  # no path comes here
                    made[level] = last.new_zeros((len(image), wiring.width(layer, level), *sizes[level]))
            older, old, reached = old, dict(sorted(made.items())), set(into)
            if by_path:
                passed = {to: last.new_zeros(()) + sum(w for _, _, w in into.get(to, ())) for to in old}
        ends: list[Map | None] = []
        for level, h in old.items():
            if not by_path:
                ends.append(Map(self.relu(h)))
            else:
                ends.append(Map(self.relu(h), passed[level]) if every or level in reached else None)
        return Maps(((Map(last),), tuple(ends)), last)

    def _taken(self, step: Step, paths: On | None) -> bool:
        """Tell whether a step is computed where not all are: it is the answer, or may be."""
        answer = self.arch.get(step.place)
        if answer is not None:
            return step.name == answer
        return paths is None or bool(paths[self._rows[step.place], self._columns[step.name]])

    def _betas(self, steps: Sequence[Step], path: Tensor | None, like: Tensor) -> dict[Step, Tensor]:
        """Return what multiplies each step."""
        out: dict[Step, Tensor] = {}
        for place in dict.fromkeys(step.place for step in steps):
            own = [step for step in steps if step.place == place]
            answer = self.arch.get(place)
            if answer is not None:
                out |= {step: like.new_full((), float(step.name == answer)) for step in own}
                continue
            assert path is not None, "the path is open and was given no probabilities"
            row = path[self._rows[place]]
            p = torch.stack([row[self._columns[step.name]] for step in own])
            p = p / p.sum().clamp_min(torch.finfo(p.dtype).tiny)
            if self.trellis.boundary == "two-thirds" and len(own) == 2:
                p = p * (2 / 3)
            out |= dict(zip(own, p.unbind(), strict=True))
        return out


class _SupernetCell(nn.Module):
    """A cell of the supernet, and what brings its inputs to it, for each step into it."""

    def __init__(self, wiring: Wiring, arch: Architecture, layer: int, level: int) -> None:
        super().__init__()
        c = wiring.channels(level)
        self.relu = layers.ReLU()
        older = wiring.width(layer - 2, level) if level in wiring.levels(layer - 2) else None
        self.before = None if older is None else layers.ConvBN(older, c, affine=False)
        self.steps = nn.ModuleDict(
            {
                step.name: layers.ConvBN(
                    wiring.width(layer - 1, step.start), c, *((3, 2) if step.down else (1, 1)), affine=False
                )
                for step in wiring.into(layer, level)
            }
        )
        for _ in range(wiring.spec.inputs):  # drawn and left: initial weights follow from a seed and this order
            preprocessing(c, c, search=True)
        self.cell = Cell(wiring.spec, arch, [nn.Sequential(), nn.Sequential()], c, search=True)

    def forward(
        self, h2: Tensor | None, into: Sequence[tuple[Step, Tensor, Tensor]], alphas: Tensor | None, sampled: On | None
    ) -> Tensor:
        """Return the sum over steps (step, H^{l-1} at the size of the result or twice that, weight)."""
        s0 = None if self.before is None or h2 is None else self.before(self.relu(h2))
        s1 = [self.steps[step.name](self.relu(h1)) for step, h1, _ in into]
        terms = [w * h for (_, _, w), h in zip(into, self.cell.join_each([s0], s1, alphas, sampled), strict=True)]
        total = terms[0]
        for term in terms[1:]:
            total = total + term
        return total


class TrellisNet(EncoderNet):
    """A network whose path is decided, as it ships: stride-2 ops where the stride doubles."""

    def __init__(self, wiring: Wiring, arch: Architecture, path: Path) -> None:
        """Build it; use `Trellis.build`."""
        super().__init__()
        self.stem = Stem()
        self.steps = wiring.taken(path)
        widths = [STEM[0], *(wiring.width(layer, level) for layer, level in enumerate((0, *path), start=-1))]
        self.cells = nn.ModuleList(
            wiring.cell(step.end, step.down, arch, *widths[step.layer : step.layer + 2]) for step in self.steps
        )
        self.low = left_at(path)
        self.relu = layers.ReLU()

    def forward(self, image: Tensor, probs: Probs | None = None, sampled: Sampled | None = None) -> Maps:
        """Compute the features; see `EncoderNet.forward`."""
        states, low = self.states(image, (probs or {}).get("cell"), None if sampled is None else sampled.get("cell"))
        return Maps(((Map(low),), (Map(self.relu(states[-1])),)), low)

    def states(
        self, image: Tensor, alphas: Tensor | None = None, sampled: On | None = None
    ) -> tuple[list[Tensor], Tensor]:
        """Return the outputs of all cells, and the low-level map."""
        states = list(self.stem(image))
        sizes = level_sizes(states[1])
        for step, cell in zip(self.steps, self.cells, strict=True):
            states.append(cell([step.brought(h, sizes) for h in states[-2:]], alphas, sampled))
        return states[2:], states[self.low + 1]


class _Input(NamedTuple):
    """What tells inputs of cells apart, whatever the layer.

    Attributes:
        level: Of the cell.
        down: Whether the cell halves the size.
        which: 0 for H^{l-2}, 1 for H^{l-1}.
        channels: Of the input.
    """

    level: int
    down: bool
    which: int
    channels: int


class OpenTrellisNet(OpenEncoderNet):
    """All networks at once, to be traced: each alternative under the gate of the walk it lies on.

    It has weights for each kind of cell and not for each layer, because a trace reads none; it computes nothing.
    """

    def __init__(self, trellis: Trellis, arch: Architecture) -> None:
        """Build it; use `Trellis.build`."""
        super().__init__()
        self.wiring, self.arch = trellis.wiring, arch
        self.gates = [[f.gate for f in alternatives] for alternatives in trellis.features(arch, "deploy")]
        self.stem = Stem()
        self.relu = layers.ReLU()

    def forward(self, image: Tensor) -> Iterator[tuple[int, int, Tensor]]:
        """Write down all alternatives: the low-level map from the stem or the first cell, the last at each stride."""
        tracer = active_tracer.get()
        assert tracer is not None, "an open trellis is for tracing"
        wiring = self.wiring
        before, last = self.stem(image)
        sizes = level_sizes(last)
        older, old = {0: before}, {0: last}
        # What is the same in every layer is written down once, and counted. Only resizes and ReLUs are shared.
        inputs: dict[_Input, dict[Walk, Tensor]] = {}
        for layer in range(wiring.layers):
            for walk, a, step in wiring.walks(layer):
                for which, h, steps in ((0, older[a], walk), (1, old[step.start], walk[-1:])):
                    read = inputs.setdefault(_Input(step.end, step.down, which, h.shape[1]), {})
                    if steps not in read:  # H^{l-1} is read once, wherever H^{l-2} was
                        with tracer.gated(any_walk([steps])):
                            read[steps] = self.relu(step.brought(h, sizes))
            older, old = (
                old,
                {
                    level: tracer.value((1, wiring.width(layer, level), *sizes[level]), f"h{layer}-{level}")
                    for level in wiring.levels(layer)
                },
            )
            if layer == 0:
                yield 0, 0, last
                yield 0, 1, old[0]
        self._cells(inputs)
        for i, (h, gate) in enumerate(zip(old.values(), self.gates[1], strict=True)):
            with tracer.gated(gate):
                high = self.relu(h)
            yield 1, i, high

    def _cells(self, inputs: Mapping[_Input, Mapping[Walk, Tensor]]) -> None:
        """Write down the projections of all inputs, and the cells that read them."""
        tracer = active_tracer.get()
        assert tracer is not None
        states: dict[tuple[int, bool], dict[Walk, Tensor]] = {}
        for key, read in inputs.items():
            with tracer.gated(any_walk(read)):
                out = layers.ConvBN(key.channels, self.wiring.channels(key.level))(next(iter(read.values())))
            if key.which == 1:
                states.setdefault((key.level, key.down), {}).update(dict.fromkeys(read, out))
        for (level, down), read in states.items():
            s1 = tracer.join(next(iter(read.values())))
            with tracer.gated(any_walk(read)):
                self.wiring.cell(level, down, self.arch, 1, 1).join([tracer.join(s1), s1], None)
