"""Genotypes: the notation of the public DARTS code, read and written."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hwnas.errors import HwnasError
from hwnas.ops.mixed import NONE
from hwnas.problem import Architecture
from hwnas.spaces.cell import CellSpec

if TYPE_CHECKING:
    from hwnas.spaces.space import Space

Edges = tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Genotype:
    """Two cells: for each node its kept edges, as pairs (op, predecessor), and the nodes that are concatenated.

    Prints as it does in the public code: ``Genotype(normal=[('sep_conv_3x3', 0), ...], normal_concat=[2, ...], ...)``.
    """

    normal: Edges
    normal_concat: tuple[int, ...]
    reduce: Edges
    reduce_concat: tuple[int, ...]

    def __str__(self) -> str:
        return (
            f"Genotype(normal={list(self.normal)}, normal_concat={list(self.normal_concat)}, "
            f"reduce={list(self.reduce)}, reduce_concat={list(self.reduce_concat)})"
        )

    @classmethod
    def parse(cls, text: str) -> Genotype:
        """Read the notation, with lists, tuples or ``range(...)``; nothing is executed.

        Raises:
            HwnasError: If it is no genotype.
        """
        try:
            head, equals, tail = text.strip().partition("=")
            assigned = equals and head.strip().isidentifier()  # "DARTS = Genotype(...)", as in a Python file
            call = ast.parse((tail if assigned else text).strip(), mode="eval").body
            assert isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "Genotype"
            fields = {k.arg: _literal(k.value) for k in call.keywords}
            edges = {n: tuple((str(o), int(j)) for o, j in fields[n]) for n in ("normal", "reduce")}
            concat = {n: tuple(int(i) for i in fields[f"{n}_concat"]) for n in ("normal", "reduce")}
        except (SyntaxError, AssertionError, KeyError, TypeError, ValueError) as e:
            raise HwnasError(
                "a genotype looks like Genotype(normal=[('sep_conv_3x3', 0), ...], normal_concat=[2, 3, 4, 5], "
                f"reduce=[...], reduce_concat=[...]); got {text.strip()[:80]!r}"
            ) from e
        return cls(edges["normal"], concat["normal"], edges["reduce"], concat["reduce"])

    def architecture(self, space: Space) -> Architecture:
        """Return the same as answers to the decisions of a space of normal and reduction cells.

        Raises:
            HwnasError: If the space has no such cells, or cells of another number of nodes or edges; or if the genotype
                concatenates other states, or names an op that the space has not.
        """
        specs = {spec.name: spec for spec in space.cells}
        answers: dict[str, str] = {}
        for kind, edges, concat in (
            ("normal", self.normal, self.normal_concat),
            ("reduce", self.reduce, self.reduce_concat),
        ):
            if kind not in specs:
                raise HwnasError(f"a genotype is made of DARTS cells, and the space {space.name!r} has none")
            answers |= _answers(specs[kind], edges, concat)
        arch = Architecture.of(space.name, answers)
        space.problem.check(arch)
        return arch


def _answers(spec: CellSpec, edges: Edges, concat: Sequence[int]) -> dict[str, str]:
    assert spec.keep is not None, "cells of this notation keep as many edges at each node"
    count, states = spec.nodes * spec.keep, tuple(spec.states)
    if len(edges) != count or tuple(sorted(concat)) != states:
        raise HwnasError(
            f"the {spec.name} cell needs {count} edges and the states {states} concatenated; "
            f"got {len(edges)} edges and {concat}"
        )
    answers = {spec.edge_name(e): NONE for e in spec.edges}
    for n, (op, j) in enumerate(edges):
        name = spec.edge_name((j, n // spec.keep + spec.inputs))
        if answers.get(name) != NONE:
            raise HwnasError(f"edge {name} of the genotype does not exist or occurs twice")
        answers[name] = op
    return answers


def genotype(arch: Architecture, cells: Sequence[CellSpec]) -> Genotype:
    """Write a complete architecture of normal and reduction cells as a genotype.

    Edges are in the order of their nodes, those of a node in the order of where they come from.
    """
    normal, reduce = cells
    edges = [tuple((op, j) for j, _, op in spec.kept(arch)) for spec in cells]
    return Genotype(edges[0], tuple(normal.states), edges[1], tuple(reduce.states))


def derived_genotype(cells: Sequence[CellSpec], probs: Mapping[str, np.ndarray]) -> Genotype:
    """Derive by the paper's rule and keep the public code's order: edges of a node by strength, strongest first.

    Args:
        cells: Normal and reduction cells.
        probs: ``{group: (edges, options)}`` after the softmax.
    """
    found: list[Edges] = []
    for spec in cells:
        ops = [i for i, o in enumerate(spec.ops) if o != NONE]
        best = probs[spec.name][:, ops]  # (edges, ops without none)
        out: list[tuple[str, int]] = []
        for node in spec.states:
            rows = [r for r, (_, i) in enumerate(spec.edges) if i == node]
            ranked = sorted(rows, key=lambda r: -best[r].max())[: spec.keep]  # stable: the earlier edge on ties
            out += [(spec.ops[ops[int(best[r].argmax())]], spec.edges[r][0]) for r in ranked]
        found.append(tuple(out))
    normal, reduce = cells
    return Genotype(found[0], tuple(normal.states), found[1], tuple(reduce.states))


def _literal(node: ast.expr) -> list[Any]:
    """Return the value of a literal list or of ``range(a, b)``."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "range":
        return list(range(*(int(ast.literal_eval(a)) for a in node.args)))
    return list(ast.literal_eval(node))
