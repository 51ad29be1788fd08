"""Genotypes: the notation of the public DARTS code, read and written."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hwnas.errors import HwnasError
from hwnas.ops.mixed import NONE
from hwnas.problem import Architecture, Group
from hwnas.spaces.cell import INPUTS, cell_edges, edge_name

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

    def architecture(self, space: str, nodes: int, keep: int) -> Architecture:
        """Return the same as answers to the decisions of a space of shared cells.

        Raises:
            HwnasError: If it has another number of nodes or edges, or concatenates other states.
        """
        answers: dict[str, str] = {}
        states = tuple(range(INPUTS, INPUTS + nodes))
        for kind, edges, concat in (
            ("normal", self.normal, self.normal_concat),
            ("reduce", self.reduce, self.reduce_concat),
        ):
            if len(edges) != nodes * keep or tuple(sorted(concat)) != states:
                raise HwnasError(
                    f"the {kind} cell needs {nodes * keep} edges and the states {states} concatenated; "
                    f"got {len(edges)} edges and {concat}"
                )
            answers |= {edge_name(kind, e): NONE for e in cell_edges(nodes)}
            for n, (op, j) in enumerate(edges):
                name = edge_name(kind, (j, n // keep + INPUTS))
                if answers.get(name) != NONE:
                    raise HwnasError(f"edge {name} of the genotype does not exist or occurs twice")
                answers[name] = op
        return Architecture.of(space, answers)


def genotype(arch: Architecture, nodes: int) -> Genotype:
    """Write a complete architecture of shared cells as a genotype; edges in the order of their predecessors."""
    cells = {
        kind: tuple(
            (op, j) for j, i in cell_edges(nodes) if (op := arch.get(edge_name(kind, (j, i)))) not in (NONE, None)
        )
        for kind in ("normal", "reduce")
    }
    concat = tuple(range(INPUTS, INPUTS + nodes))
    return Genotype(cells["normal"], concat, cells["reduce"], concat)


def derived_genotype(groups: Sequence[Group], probs: Mapping[str, np.ndarray], nodes: int, keep: int) -> Genotype:
    """Derive by the paper's rule and keep the public code's order: edges of a node by strength, strongest first.

    Args:
        groups: "normal" and "reduce".
        probs: ``{group: (edges, options)}`` after the softmax.
        nodes: Nodes of a cell.
        keep: Edges a node keeps.
    """
    cells: dict[str, Edges] = {}
    for g in groups:
        ops = [i for i, o in enumerate(g.options) if o != NONE]
        best = probs[g.name][:, ops]  # (edges, ops without none)
        out: list[tuple[str, int]] = []
        for node in range(INPUTS, INPUTS + nodes):
            rows = [r for r, (_, i) in enumerate(cell_edges(nodes)) if i == node]
            ranked = sorted(rows, key=lambda r: -best[r].max())[:keep]  # stable: the earlier edge on ties
            out += [(g.options[ops[int(best[r].argmax())]], cell_edges(nodes)[r][0]) for r in ranked]
        cells[g.name] = tuple(out)
    concat = tuple(range(INPUTS, INPUTS + nodes))
    return Genotype(cells["normal"], concat, cells["reduce"], concat)


def _literal(node: ast.expr) -> list[Any]:
    """Return the value of a literal list or of ``range(a, b)``."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "range":
        return list(range(*(int(ast.literal_eval(a)) for a in node.args)))
    return list(ast.literal_eval(node))


# Public DARTS code, cnn/genotypes.py, quark0/darts at f276dd3.
DARTS_V1 = Genotype.parse(
    "Genotype(normal=[('sep_conv_3x3', 1), ('sep_conv_3x3', 0), ('skip_connect', 0), ('sep_conv_3x3', 1), "
    "('skip_connect', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 0), ('skip_connect', 2)], normal_concat=[2, 3, 4, 5], "
    "reduce=[('max_pool_3x3', 0), ('max_pool_3x3', 1), ('skip_connect', 2), ('max_pool_3x3', 0), ('max_pool_3x3', 0), "
    "('skip_connect', 2), ('skip_connect', 2), ('avg_pool_3x3', 0)], reduce_concat=[2, 3, 4, 5])"
)
DARTS_V2 = Genotype.parse(
    "Genotype(normal=[('sep_conv_3x3', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 0), ('sep_conv_3x3', 1), "
    "('sep_conv_3x3', 1), ('skip_connect', 0), ('skip_connect', 0), ('dil_conv_3x3', 2)], normal_concat=[2, 3, 4, 5], "
    "reduce=[('max_pool_3x3', 0), ('max_pool_3x3', 1), ('skip_connect', 2), ('max_pool_3x3', 1), ('max_pool_3x3', 0), "
    "('skip_connect', 2), ('skip_connect', 2), ('max_pool_3x3', 1)], reduce_concat=[2, 3, 4, 5])"
)
