"""What a search decides: decisions, rules, gates, probabilities, and architectures as answers."""

from hwnas.problem.arch import Architecture, Decision, Group
from hwnas.problem.gates import ALWAYS, Clause, Gate, at_least, choice, exactly
from hwnas.problem.linear import Row
from hwnas.problem.marginals import Marginals
from hwnas.problem.probabilities import Answers, Literal, Literals, Matrices, Probabilities
from hwnas.problem.problem import Problem
from hwnas.problem.rules import AtMost, FreeEdges, NoTwins, OnePath, Rule, TopK

__all__ = [
    "ALWAYS",
    "Answers",
    "Architecture",
    "AtMost",
    "Clause",
    "Decision",
    "FreeEdges",
    "Gate",
    "Group",
    "Literal",
    "Literals",
    "Marginals",
    "Matrices",
    "NoTwins",
    "OnePath",
    "Probabilities",
    "Problem",
    "Row",
    "Rule",
    "TopK",
    "at_least",
    "choice",
    "exactly",
]
