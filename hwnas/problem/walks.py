"""Counted gates of paths: how many of some walks the path of a network takes.

A *walk* is one step or several in a row: the literals of decisions at successive places, each of which is taken only
where the path passes its place. A cell whose inputs come from two steps of the path is there as often as it lies on
such a walk, and cells that repeat along the path share one count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hwnas.problem.arch import Architecture
from hwnas.problem.linear import Bounded, Linear, LinearForm, add
from hwnas.problem.probabilities import Literal, Literals

Walk = tuple[Literal, ...]


@dataclass(frozen=True)
class Walks:
    """A sum of walks: how often the network has what they lead to.

    Attributes:
        terms: Walks, with how often each counts. A negative number takes back what two others count together.
    """

    terms: frozenset[tuple[Walk, int]] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.terms)

    @classmethod
    def total(cls, terms: Sequence[tuple[Walk, int]]) -> Walks:
        """Return the sum of walks with their numbers; those that cancel out are left out."""
        sums: dict[Walk, int] = {}
        for walk, n in terms:
            sums[walk] = sums.get(walk, 0) + n
        return cls(frozenset((walk, n) for walk, n in sums.items() if n))

    def __or__(self, other: Walks) -> Walks:
        """Count 1 where either counts 1 or both do: their sum less their product."""
        assert self.terms and other.terms, "an op that is always there is no alternative to one on a walk"
        both = [(walk, -n * m) for v, n in self.terms for w, m in other.terms if (walk := _both(v, w)) is not None]
        return Walks.total([*self.terms, *other.terms, *both])

    def count(self, arch: Architecture) -> int:
        """Return how many an architecture takes."""
        return sum(n for walk, n in self.terms if all(arch.get(d) == o for d, o in walk))

    def linear(self, form: LinearForm) -> Linear:
        """Return how many are taken as a linear expression."""
        return form.once(self, lambda: self._linear(form))

    def _linear(self, form: LinearForm) -> Linear:
        total: Linear = {}
        for walk, n in sorted(self.terms):
            add(total, _taken(form, walk), n)
        return {i: c for i, c in total.items() if c}


def _both(v: Walk, w: Walk) -> Walk | None:
    """Return the walk that takes both; None if no path does. Walks that share no step pass a layer at two places."""
    for first, then in ((v, w), (w, v)):
        for at in range(len(first)):
            overlap = min(len(first) - at, len(then))
            if first[at : at + overlap] == then[:overlap]:
                return first + then[overlap:]
    return None


def _taken(form: LinearForm, walk: Walk) -> Linear:
    """Return "all steps of a walk are taken" as a linear expression."""

    def make() -> Linear:
        steps = [{form.literals.index[step]: 1.0} for step in walk]
        return steps[0] if len(steps) == 1 else form.all_of(steps)

    return form.once(("walk", walk), make)


def conserve(form: LinearForm, rows: Sequence[Bounded]) -> None:
    """Set up walks of two steps: each step into a place goes on by one of the steps from there, and the reverse.

    The steps from a place are answers to one decision, so that at most one is taken. Conservation of these walks is
    tighter for a solver's fractions than "both steps are taken".

    Args:
        form: Gets the walks, before they are first asked for.
        rows: Constraints, among them conservation of flow: as many steps leave a place as lead to it.
    """
    names = form.literals.names
    for row, low, high in rows:
        into, out = ([i for i, c in row.items() if c == sign] for sign in (-1.0, 1.0))
        if low == high == 0 and into and out and len(into) + len(out) == len(row):
            walks = {(i, j): form.variable() for i in into for j in out}
            for (i, j), y in walks.items():
                form.once(("walk", (names[i], names[j])), lambda y=y: {y: 1.0})  # type: ignore[misc]
            for i in (*into, *out):
                through = {y: 1.0 for pair, y in walks.items() if i in pair}
                form.constrain({**through, i: -1.0}, 0.0, 0.0)


class WalkCounts(nn.Module):
    """How many walks each of many gates takes in expectation, at once."""

    _walks: Tensor
    _places: Tensor
    _gate_walks: Tensor
    _numbers: Tensor
    _anywhere: Tensor

    def __init__(self, literals: Literals, counts: Sequence[Walks], dropped: dict[str, int]) -> None:
        """Index `counts` for vectorised evaluation.

        Args:
            literals: Their order.
            counts: Of each gate; one without walks counts 1.
            dropped: By decision, the literal that says that the path does not pass its place.
        """
        super().__init__()
        walks = sorted({walk for c in counts for walk, _ in c.terms})
        steps = padded([[literals.index[step] for step in walk] for walk in walks], len(literals))
        self.register_buffer("_walks", steps, persistent=False)
        # Where a step is not the first of its walk, how probable it is where it is passed: over the place's marginal.
        places = padded([[dropped[d] for d, _ in walk[1:]] for walk in walks], len(literals))
        self.register_buffer("_places", places[:, : steps.shape[1] - 1], persistent=False)
        walk_of = {walk: i for i, walk in enumerate(walks)}
        counted = [(i, walk_of[walk], n) for i, c in enumerate(counts) for walk, n in sorted(c.terms)]
        gate_walks = torch.tensor([c[:2] for c in counted], dtype=torch.long).reshape(-1, 2)
        self.register_buffer("_gate_walks", gate_walks, persistent=False)
        self.register_buffer("_numbers", torch.tensor([c[2] for c in counted]), persistent=False)
        self.register_buffer("_anywhere", torch.tensor([float(not c) for c in counts]), persistent=False)

    def forward(self, q: Tensor) -> Tensor | None:
        """Return the expected counts (n_gates,) from marginals (n_literals,); None where no gate has walks."""
        if not len(self._numbers):
            return None
        one = q.new_ones(1)
        steps = torch.cat([q, one])[self._walks]
        passed = 1 - torch.cat([q, 0 * one])[self._places]
        taken = steps[:, 0] * (steps[:, 1:] / passed.clamp_min(torch.finfo(q.dtype).tiny)).prod(dim=1)
        gate, walk = self._gate_walks.unbind(1)
        return self._anywhere.to(q).index_add(0, gate, self._numbers.to(q) * taken[walk])


def padded(rows: Sequence[Sequence[int]], pad: int) -> Tensor:
    """Return lists of indices as one matrix, shorter ones filled up with `pad`."""
    width = max((len(r) for r in rows), default=0)
    return torch.tensor([[*r, *[pad] * (width - len(r))] for r in rows], dtype=torch.long).reshape(len(rows), width)
