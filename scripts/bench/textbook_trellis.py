"""The supernet of Auto-DeepLab as a textbook writes it: see `textbook.py`, whose cells and steps these are.

Each cell is computed once for each step that leads to it, candidate by candidate, and multiplied by beta.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from textbook import MixedOp
from torch import Tensor, nn

from hwnas.problem.rules.one_path import LEVELS, STEPS, UP, existing, sources
from hwnas.spaces import Space
from hwnas.spaces.encoders.trellis_wiring import level_sizes

OPTIONS = (None, *STEPS)  # columns of the logits of a path; the first is that of places that no path passes


class Cell(nn.Module):
    """Five blocks, twenty edges; inputs are brought to its size and channels by what the compared network has there."""

    def __init__(self, space: Space, c: int, before: nn.Module | None, steps: nn.ModuleDict) -> None:
        super().__init__()
        (spec,) = space.cells
        self.nodes = spec.nodes
        self.before = copy.deepcopy(before)
        self.steps = copy.deepcopy(steps)
        self.edges = nn.ModuleList(MixedOp(spec.ops, c, 1) for i in range(spec.nodes) for _ in range(2 + i))

    def forward(self, s0: Tensor | None, h1: Tensor, step: str, weights: Tensor) -> Tensor:
        """Compute it for one step."""
        states = [s0, self.steps[step](F.relu(h1))]
        edge = 0
        for _ in range(self.nodes):
            total: Tensor | int = 0
            for state in states:
                if state is not None:
                    total = total + self.edges[edge](state, weights[edge])
                edge += 1
            states.append(total)  # type: ignore[arg-type]
        return torch.cat(states[2:], dim=1)  # type: ignore[arg-type]


class TrellisSupernet(nn.Module):
    """The same network as `net`, a supernet of `space`, with the same weights."""

    def __init__(self, net: nn.Module, space: Space, alphas: dict[str, Tensor]) -> None:
        super().__init__()
        self.layers, filters = space.scale.cells, space.scale.channels
        self.stem, self.heads = copy.deepcopy(net.stem), copy.deepcopy(net.heads)
        self.cells = nn.ModuleDict()
        for key, cell in net.cells.items():  # type: ignore[operator, union-attr]
            self.cells[key] = Cell(space, filters * 2 ** int(key.split("-")[1]), cell.before, cell.steps)
        self.alphas = nn.ParameterDict({k: nn.Parameter(v.detach().clone()) for k, v in alphas.items()})
        theirs = [p for part in (net.stem, net.cells, net.heads) for p in part.parameters()]  # type: ignore[union-attr]
        with torch.no_grad():
            for mine, other in zip(self.weights(), theirs, strict=True):
                mine.copy_(other)
        self.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]

    def weights(self) -> list[nn.Parameter]:
        """Return all but the alphas, in the order of the network it is compared with."""
        return [p for part in (self.stem, self.cells, self.heads) for p in part.parameters()]

    def forward(self, image: Tensor) -> Tensor:
        """Compute it."""
        alphas = F.softmax(self.alphas["cell"], dim=-1)
        _, last = self.stem(image)
        sizes = level_sizes(last)
        older: dict[int, Tensor] = {}
        old = {0: last}
        place = 0
        for layer in range(self.layers):
            made: dict[int, Tensor] = {}
            inputs: dict[int, Tensor | None] = {}
            for level in sources(layer):
                steps = existing(level)
                columns = [OPTIONS.index(s) for s in steps]
                betas = F.softmax(self.alphas["path"][place, columns], dim=-1)
                place += 1
                for beta, step in zip(betas, steps, strict=True):
                    to = level + STEPS[step]
                    cell = self.cells[f"{layer}-{to}"]
                    if to not in inputs:
                        h2 = older.get(to)
                        inputs[to] = None if h2 is None or cell.before is None else cell.before(F.relu(h2))
                    h1 = old[level]
                    if step == UP:
                        h1 = F.interpolate(h1, sizes[to], mode="bilinear", align_corners=False)
                    term = beta * cell(inputs[to], h1, step, alphas)
                    made[to] = made[to] + term if to in made else term
            older, old = old, made
        return sum(self.heads[level](image, [old[0], F.relu(old[level])]) for level in range(LEVELS))
