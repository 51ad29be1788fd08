"""From the search's probabilities to how often each of many gates is open in the derived network."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from hwnas.problem.gates import Gate, GateProbabilities
from hwnas.problem.probabilities import Matrices
from hwnas.problem.problem import Problem


class Marginals(nn.Module):
    """The marginals of the derived network, and of many gates at once."""

    def __init__(self, problem: Problem, gates: Iterable[Gate]) -> None:
        """Index `gates`, in the order of the result of `gate_probs`, for vectorised evaluation."""
        super().__init__()
        self.problem = problem
        self.literals = problem.literals
        self.gates = list(gates)
        self._probabilities = GateProbabilities(self.literals, self.gates, problem.dropped)

    def literal_probs(self, probs: Matrices) -> Tensor:
        """Return the marginals of literals in the derived network, (n_literals,)."""
        return self.problem.relax(self.problem.probabilities(probs))

    def gate_probs(self, q: Tensor) -> Tensor:
        """Return how often each gate is open in expectation, (n_gates,), from literal marginals (n_literals,)."""
        out: Tensor = self._probabilities(q)
        return out
