"""One path through layers and strides (Liu et al. 2019, section 3.2): its rule, and the walks on it.

A path goes from layer to layer. At each it sits at one of four strides, 4 to 32 (levels 0 to 3), and goes on to the
same stride or to one beside it. Before the first layer it is at stride 4. A decision is a place that the path may pass,
``"path/3/16"``; its options are the steps that go on from there, and `none` where the path does not pass.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal as Literal_

import numpy as np
import torch
from torch import Tensor

from hwnas.errors import HwnasError
from hwnas.problem.arch import Architecture, Decision, Group
from hwnas.problem.gates import Gate
from hwnas.problem.linear import Row
from hwnas.problem.probabilities import Literal, Literals, Probabilities
from hwnas.problem.rules.base import Fixed, Rule
from hwnas.problem.walks import Walk, Walks

LEVELS = 4  # strides 4, 8, 16 and 32
UP, SAME, DOWN = "up", "same", "down"  # to half the stride, to the same, to twice the stride
STEPS = {UP: -1, SAME: 0, DOWN: 1}
NONE = "none"
LEAST = 1e-300  # a probability below counts as this, so that its logarithm is finite

Path = tuple[int, ...]  # the level of each layer
Boundary = Literal_["existing", "two-thirds"]


def stride_of(level: int) -> int:
    """Return the stride of a level, in pixels of the image."""
    return 4 << level


def existing(level: int) -> tuple[str, ...]:
    """Return the steps that exist at a level: there is none above stride 4 and none below stride 32."""
    return tuple(s for s, by in STEPS.items() if 0 <= level + by < LEVELS)


def sources(layer: int) -> range:
    """Return the levels a path can come from into a layer; the stem, before layer 0, is at level 0."""
    return range(min(layer + 1, LEVELS))


def arrow(layer: int, level: int) -> str:
    """Return the name of the decision where a path goes on from a level into a layer, ``"path/3/16"``."""
    return f"path/{layer}/{stride_of(level)}"


def path_group(layers: int, name: str = "path") -> Group:
    """Return the decisions of a path: at each place it may pass, where it goes on to."""
    places = [(layer, level) for layer in range(layers) for level in sources(layer)]
    options = (NONE, *STEPS)
    return Group(name, tuple(Decision(arrow(k, v), options, frozenset(options) - set(existing(v))) for k, v in places))


def path_answers(path: Path) -> dict[str, str]:
    """Return a path as answers.

    Raises:
        HwnasError: If it leaves the levels or goes from one to another that is not beside it.
    """
    answers = {arrow(layer, level): NONE for layer in range(len(path)) for level in sources(layer)}
    names = {step: name for name, step in STEPS.items()}
    before = 0
    for layer, level in enumerate(path):
        if level - before not in names or not 0 <= level < LEVELS:
            raise HwnasError(f"a path goes from level to level by at most one, 0 to {LEVELS - 1}; got {path}")
        answers[arrow(layer, before)] = names[level - before]
        before = level
    return answers


def path_of(arch: Architecture, layers: int) -> Path | None:
    """Return the path of an architecture; None if it is not decided."""
    out: list[int] = []
    level = 0
    for layer in range(layers):
        step = arch.get(arrow(layer, level))
        if step not in STEPS:
            return None
        level += STEPS[step]
        out.append(level)
    return tuple(out)


def walks_into(layer: int) -> list[tuple[Walk, tuple[int, int, int]]]:
    """Return the steps into a layer and the layer before it, with the levels of H^{l-2}, H^{l-1} and H^l."""
    found: list[tuple[Walk, tuple[int, int, int]]] = []
    for b, step in ((level, s) for level in sources(layer) for s in existing(level)):
        last, c = (arrow(layer, b), step), b + STEPS[step]
        if layer == 0:
            found.append(((last,), (0, b, c)))
        for a in sources(layer - 1):
            found += [(((arrow(layer - 1, a), s), last), (a, b, c)) for s in existing(a) if a + STEPS[s] == b]
    return found


def leading_to(layer: int, level: int) -> list[Literal]:
    """Return the literals of the steps into a level at a layer."""
    return [(arrow(layer, level - by), s) for s, by in STEPS.items() if level - by in sources(layer)]


def any_walk(walks: Iterable[Walk]) -> Gate:
    """Return the gate of walks of which at most one is taken at a layer: it counts how many are."""
    return Gate(walks=Walks(frozenset((walk, 1) for walk in walks)))


@dataclass(frozen=True)
class OnePath(Rule):
    """The steps make one path from the stem to the last layer; where it does not pass, the answer is `none`.

    Attributes:
        layers: How many.
        boundary: How betas are normalised at strides 4 and 32, where two steps exist: over these two
            (``"existing"``, the paper's reading), or to a sum of 2/3, as all three would be if all were equally
            probable (``"two-thirds"``, the public re-implementation).
        none: Where the path does not pass.
        fixed: Steps that are not up for decision, and places that the path may not pass.
    """

    layers: int
    boundary: Boundary = "existing"
    none: str = NONE
    fixed: tuple[Literal, ...] = ()
    _fixed: Mapping[str, str] = field(init=False, repr=False, compare=False, hash=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._fixed.update(self.fixed)  # type: ignore[attr-defined]  # a mapping to those who read it

    def __str__(self) -> str:
        """Return it as messages have it."""
        return f"one path through {self.layers} layers"

    @property
    def decisions(self) -> tuple[str, ...]:
        """All places that are open, layer by layer."""
        places = (arrow(layer, level) for layer in range(self.layers) for level in sources(layer))
        return tuple(place for place in places if place not in self._fixed)

    def _may(self, layer: int, level: int) -> tuple[str, ...]:
        """Return the steps from a place that the fixed answers leave: none where the path may not pass."""
        answer = self._fixed.get(arrow(layer, level))
        others = (self._fixed.get(arrow(layer, v), self.none) for v in sources(layer) if v != level)
        if answer == self.none or any(step != self.none for step in others):
            return ()
        return existing(level) if answer is None else tuple(s for s in existing(level) if s == answer)

    @cached_property
    def _ways(self) -> list[list[int]]:
        """How many ways there are on from each level before each layer; one after the last."""
        ways = [[1] * LEVELS]
        for layer in reversed(range(self.layers)):
            at = [sum(ways[0][v + STEPS[s]] for s in self._may(layer, v)) for v in sources(layer)]
            ways.insert(0, at + [0] * (LEVELS - len(at)))
        return ways

    @property
    def n_paths(self) -> int:
        """How many paths there are: 75,025 of 12 layers."""
        return self._ways[0][0]

    @cached_property
    def _steps(self) -> dict[tuple[int, int], tuple[str, ...]]:
        """By layer and level, the steps from which there is a way on to the last layer."""
        return {
            (k, v): tuple(s for s in self._may(k, v) if self._ways[k + 1][v + STEPS[s]])
            for k in range(self.layers)
            for v in sources(k)
        }

    def _open(self, answers: Mapping[str, str]) -> dict[str, str]:
        return {d: answers[d] for d in self.decisions}

    def draw(self, rng: np.random.Generator) -> dict[str, str]:
        """Draw a path, each equally often."""
        answers, level = self._nowhere(), 0
        for layer in range(self.layers):
            steps = self._steps[layer, level]
            weights = np.array([self._ways[layer + 1][level + STEPS[s]] for s in steps], float)
            step = steps[int(rng.choice(len(steps), p=weights / weights.sum()))]
            answers[arrow(layer, level)] = step
            level += STEPS[step]
        return self._open(answers)

    def _nowhere(self) -> dict[str, str]:
        return {arrow(layer, level): self.none for layer in range(self.layers) for level in sources(layer)}

    def strongest(self, probs: Probabilities) -> dict[str, str]:
        """Return the path of the largest product of probabilities (Viterbi; Auto-DeepLab, 4.3).

        Of equal ones the path whose last step that differs comes first, as listed in `STEPS`, is taken.
        """
        score = self.score(probs)
        best: dict[int, tuple[float, tuple[str, ...]]] = {0: (0.0, ())}
        for layer in range(self.layers):
            reached: dict[int, tuple[float, tuple[str, ...]]] = {}
            for name, by in STEPS.items():
                for level, (so_far, steps) in best.items():
                    if name not in self._steps[layer, level]:
                        continue
                    total = so_far + score.get((arrow(layer, level), name), 0.0)
                    if level + by not in reached or total > reached[level + by][0]:
                        reached[level + by] = total, (*steps, name)
            best = reached
        _, steps = max(best.values(), key=lambda found: found[0])
        answers, level = self._nowhere(), 0
        for layer, step in enumerate(steps):
            answers[arrow(layer, level)] = step
            level += STEPS[step]
        return self._open(answers)

    def score(self, probs: Probabilities) -> dict[Literal, float]:
        """Return ``1 + log_3 beta``: 1 for a certain step, 0 for one in three. Sums order as products of betas do.

        Steps that do not exist score 0, and no path has them.
        """
        out: dict[Literal, float] = {}
        for layer in range(self.layers):
            for level in sources(layer):
                place, steps = arrow(layer, level), existing(level)
                if place in self._fixed:
                    continue
                beta = probs.by_decision[place]
                scale = (2 / 3 if self.boundary == "two-thirds" and len(steps) == 2 else 1.0) / max(
                    LEAST, sum(beta[s] for s in steps)
                )
                out |= {(place, s): 0.0 for s in STEPS}
                out |= {(place, s): 1 + math.log(max(LEAST, scale * beta[s]), 3) for s in steps}
        return out

    def relax(self, q: Tensor, literals: Literals) -> Tensor:
        """Return how probable it is to pass and take each step: at a place its steps share what leads there."""
        index, visit = literals.index, q.new_ones(1)  # visit: how probable it is to pass each level
        for layer in range(self.layers):
            places = [arrow(layer, level) for level in sources(layer)]
            steps = torch.tensor([[index[place, s] for s in STEPS] for place in places], device=q.device)
            allowed = [[s in self._steps[layer, level] for s in STEPS] for level in sources(layer)]
            exist = torch.tensor(allowed, device=q.device)
            # As places in `flow`: of a mask the device would have to be asked how many it keeps.
            there = [i for i, may in enumerate(may for row in allowed for may in row) if may]
            p = q[steps] * exist
            flow = visit[:, None] * p / p.sum(dim=1, keepdim=True).clamp_min(torch.finfo(q.dtype).tiny)
            dropped = torch.tensor([index[place, self.none] for place in places], device=q.device)
            q = q.index_put((steps,), flow).index_put((dropped,), 1 - visit)
            to = [level + by for level in sources(layer) for by in STEPS.values()]
            into = torch.tensor([to[i] for i in there], device=q.device)
            taken = flow.reshape(-1)[torch.tensor(there, device=q.device)]
            visit = q.new_zeros(LEVELS).index_add(0, into, taken)[: len(sources(layer + 1))]
        return q

    def given(self, fixed: Fixed) -> OnePath:
        """Return the same with some steps fixed."""
        own = tuple((d, fixed[d]) for d in self.decisions if d in fixed)
        out = replace(self, fixed=(*self.fixed, *own)) if own else self
        if not out.n_paths:
            raise HwnasError(f"the fixed answers break the rule: {self}")
        return out

    def rows(self) -> list[Row]:
        """Return conservation of flow: as many steps leave a place as lead to it; one leaves the stem."""
        rows: list[Row] = []
        for layer in range(self.layers):
            for level in sources(layer):
                flow = {(arrow(layer, level), step): 1.0 for step in STEPS}
                flow |= {} if layer == 0 else dict.fromkeys(leading_to(layer - 1, level), -1.0)
                rows.append(Row(flow, float(layer == 0), float(layer == 0)))
                outside = {(arrow(layer, level), s): 1.0 for s in STEPS if s not in existing(level)}
                rows += [Row(outside, 0.0, 0.0)] if outside else []
        return rows

    def holds(self, arch: Architecture) -> bool:
        """Tell whether the steps are one path."""
        sums = ((row, sum(c for (d, o), c in row.coefficients.items() if arch.get(d) == o)) for row in self.rows())
        return all(row.low <= total <= row.high for row, total in sums)
