"""Rules: what every valid architecture obeys. Each is one file."""

from hwnas.problem.rules.at_most import AtMost
from hwnas.problem.rules.base import Rule
from hwnas.problem.rules.free_edges import FreeEdges
from hwnas.problem.rules.no_twins import NoTwins
from hwnas.problem.rules.one_path import OnePath
from hwnas.problem.rules.top_k import TopK, relaxed_top_k

__all__ = ["AtMost", "FreeEdges", "NoTwins", "OnePath", "Rule", "TopK", "relaxed_top_k"]
