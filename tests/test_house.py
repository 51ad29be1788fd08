"""What keeps the package a house for many systems, read from its sources: who may name whom, and how long a file is."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from hwnas.spaces import Scale, published_names, registered_encoders, registered_heads
from tests.test_layers import FILES, PACKAGE, imported, own, top

LONGEST = 500  # lines
OUTSIDE = [p for p in FILES if top(p) not in ("spaces", "recipes")]
# As words of identifiers and of text that a program reads. Docstrings and comments cite the papers.
SYSTEMS = re.compile(r"darts|auto_?-?deeplab|(?<![a-z])(cas|gas|dpc|fast_?-?nas)(?![a-z])", re.IGNORECASE)
COMMON = {"path", "cell"}  # groups that are called like keys of JSON and arguments


def names_of_parts() -> set[str]:
    """Return the class names and the names of groups of all encoders and heads, and of published networks."""
    scale, names = Scale(4, 3, (64, 64)), set(published_names())
    for kind in registered_encoders().values():
        names |= {kind.__name__, *(g.name for g in kind(scale).groups)}  # type: ignore[call-arg]
    for kind in registered_heads().values():
        names |= {kind.__name__, *(g.name for g in kind().groups)}
    return names


def docstrings(tree: ast.AST) -> set[int]:
    """Return the ids of the nodes of all docstrings, and of texts that stand alone as comments."""
    out = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            out.add(id(node.value))
    return out


def mentions(path: Path) -> Iterator[tuple[int, str]]:
    """Yield line and text of each identifier and each string that is no docstring."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = docstrings(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.lineno, node.id
        elif isinstance(node, ast.Attribute):
            yield node.lineno, node.attr
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.ClassDef | ast.FunctionDef | ast.alias):
            yield node.lineno, node.name
        elif isinstance(node, ast.keyword) and node.arg:
            yield node.value.lineno, node.arg
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in skipped:
            yield node.lineno, node.value


@pytest.mark.parametrize("path", OUTSIDE, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_system_is_named_outside_of_spaces_and_recipes(path: Path) -> None:
    named = [f"line {line}: {text[:60]!r}" for line, text in mentions(path) if SYSTEMS.search(text)]
    assert not named, f"{path.name} knows a system by name: {'; '.join(named)}"


@pytest.mark.parametrize("path", OUTSIDE, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_group_or_class_of_a_space_is_named_outside_of_spaces_and_recipes(path: Path) -> None:
    """Names of groups count as text: "normal" is one, `normal` may be a direction."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped, parts = docstrings(tree), names_of_parts() - COMMON
    texts = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and id(n) not in skipped]
    names = [n.name for n in ast.walk(tree) if isinstance(n, ast.alias | ast.ClassDef)]
    named = parts & {t for t in (*texts, *names) if isinstance(t, str)}
    assert not named, f"{path.name} knows a part of a space by name: {', '.join(sorted(named))}"


BY_GROUP = ("probs", "logits", "groups", "mixture")


def test_no_group_of_a_common_name_is_asked_for_by_it() -> None:
    """`group.name == "path"`, `probs["path"]` and the like: comparisons and subscripts with such a text."""
    for path in OUTSIDE:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            texts: list[ast.expr] = []
            if isinstance(node, ast.Compare):
                texts = [node.left, *node.comparators]
            elif isinstance(node, ast.Subscript) and ast.unparse(node.value) in (
                "probs",
                "logits",
                "groups",
                "mixture",
            ):
                texts = [node.slice]
            named = [t.value for t in texts if isinstance(t, ast.Constant) and t.value in COMMON]
            assert not named, f"{path.relative_to(PACKAGE)} line {node.lineno} asks for a group by name: {named}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_file_has_one_title(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= LONGEST, f"{path.relative_to(PACKAGE)} has {lines} lines; what is its second title?"


def test_packages_import_each_other_one_way() -> None:
    graph: dict[str, set[str]] = {}
    for path in FILES:
        parts = {own(name) for name in imported(path, typing_too=False) if name.split(".")[0] == "hwnas"}
        graph.setdefault(top(path), set()).update(parts - {top(path)})
    done: set[str] = set()
    while ready := {p for p, needs in graph.items() if p not in done and needs - done <= {"__init__"}}:
        done |= ready
    assert graph.keys() <= done, f"these import each other in a circle: {', '.join(sorted(graph.keys() - done))}"


def test_verbs_and_jobs_keep_apart() -> None:
    """The command line calls jobs and shows; jobs know neither it nor what shows."""
    for path in FILES:
        names = {own(name) for name in imported(path, typing_too=True) if name.split(".")[0] == "hwnas"}
        if top(path) in ("jobs", "search", "spaces", "problem", "learn", "latency", "profile"):
            assert not names & {"cli", "show", "doctor"}, f"{path.relative_to(PACKAGE)} prints"
        if top(path) == "show":
            assert "cli" not in names
