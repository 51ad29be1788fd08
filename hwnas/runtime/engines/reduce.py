"""The smallest part of a model that a builder refuses, to look at and to send to those who can mend it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from hwnas.optional import require

OURS = re.compile(r"([\w.\-]+)#\d+(?=/)")  # in the name of a node: the call it is from, and the op of ours
MOST_TRIES = 100


def ops_in(text: str) -> list[str]:
    """Return the ops of ours that names of nodes in a text tell of, each once, in their order."""
    return list(dict.fromkeys(OURS.findall(text)))


def smallest_failing(model: bytes, fails: Callable[[bytes], bool], hint: str = "") -> tuple[bytes, list[str]]:
    """Return the shortest run of ops that fails alone, as a model, and the names of its nodes.

    One op is tried after the other, those first that the hint names; if none fails alone, the ends of the model are cut
    off as long as what is left fails.

    Args:
        model: An ONNX model that fails, with fixed sizes.
        fails: Whether a part of it fails too.
        hint: What was said when it failed.

    Raises:
        MissingExtra: If onnx is not installed.
    """
    parts = _Parts(model)
    named = set(OURS.findall(hint))
    singles = sorted(range(parts.n), key=lambda i: named.isdisjoint(OURS.findall(parts.names(i, i + 1)[0])))
    for i in singles[:MOST_TRIES]:
        if fails(parts.cut(i, i + 1)):
            return parts.cut(i, i + 1), parts.names(i, i + 1)
    end = _first(1, parts.n, lambda n: fails(parts.cut(0, n)))
    start = end - _first(1, end, lambda n: fails(parts.cut(end - n, end)))
    return parts.cut(start, end), parts.names(start, end)


def _first(low: int, high: int, holds: Callable[[int], bool]) -> int:
    """Return the least number that holds, where all above one that holds do and the highest does."""
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return high


class _Parts:
    """A model as a sequence of ops of ours."""

    def __init__(self, model: bytes) -> None:
        onnx = require("onnx", extra="search")
        self._model: Any = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(model), data_prop=True)
        self._extractor: Any = require("onnx.utils", extra="search").Extractor(self._model)
        self._parts: list[list[Any]] = []
        last = None
        for node in self._model.graph.node:
            call = OURS.match(node.name)
            if call is None or call[0] != last:
                self._parts.append([])
            last = None if call is None else call[0]
            self._parts[-1].append(node)
        self.n = len(self._parts)

    def names(self, start: int, end: int) -> list[str]:
        """Return the names of the nodes of some ops."""
        return [node.name for node in self._nodes(start, end)]

    def cut(self, start: int, end: int) -> bytes:
        """Return some ops as a model: what they read from others becomes an input, what they make an output."""
        nodes = self._nodes(start, end)
        made = [name for node in nodes for name in node.output if name]
        read = [name for node in nodes for name in node.input if name]
        weights = {tensor.name for tensor in self._model.graph.initializer}
        inside = set(made)
        inputs = list(dict.fromkeys(name for name in read if name not in inside and name not in weights))
        taken = {name for node in [*self._nodes(0, start), *self._nodes(end, self.n)] for name in node.input}
        taken |= {value.name for value in self._model.graph.output}
        outputs = [name for name in made if name in taken or name not in read]
        part: Any = self._extractor.extract_model(inputs, outputs)
        return bytes(part.SerializeToString())

    def _nodes(self, start: int, end: int) -> Sequence[Any]:
        return [node for part in self._parts[start:end] for node in part]
