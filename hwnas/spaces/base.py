"""The names of `hwnas.spaces` under an earlier path."""

from __future__ import annotations

from hwnas.spaces.parts import Form, Scale
from hwnas.spaces.space import Space, check, decisions, sample, trace_space

SearchSpace = Space

__all__ = ["Form", "Scale", "SearchSpace", "check", "decisions", "sample", "trace_space"]
