"""Imports point down only, and optional packages stay optional; read from the sources, so new modules are covered."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hwnas.runtime.engines import ENGINES

PACKAGE = Path(__file__).resolve().parents[1] / "hwnas"
FILES = sorted(PACKAGE.rglob("*.py"))
LAYERS = (  # top to bottom; a module imports from its own layer and those below it
    {"__main__", "cli", "verbs", "doctor"},
    {"show"},
    {"jobs"},
    {"recipes", "run", "derived", "validate"},
    {"search", "export", "profile", "complexity"},
    {"learn"},
    {"spaces"},
    {"latency"},
    {"ops", "data", "metrics", "draw", "sheet", "checkpoint", "seeding", "steplog"},
    {"problem"},
    {"runtime"},
    {"resources", "files", "images", "decode", "lock", "records", "optional", "progress", "ranks"}
    | {"ending", "errors", "__init__"},
)
HEIGHT = {module: len(LAYERS) - i for i, layer in enumerate(LAYERS) for module in layer}
# The optional packages that may be imported at the top of a module, and where; all others go through `require`.
TORCH = {"ops", "problem", "checkpoint", "seeding", "latency", "spaces", "learn", "search", "export", "validate"}
AT_TOP = {
    "torch": TORCH | {"profile", "jobs", "complexity"},  # and TORCH_ENGINES
    "onnx": {"ops"},
    "scipy": {"latency", "search"},
    "highspy": {"search"},
    "safetensors": {"learn", "export"},
    "rich": {"show"},
    "tyro": {"cli", "verbs"},  # __main__ looks for the packages of the command line before it imports this
}

# The PyTorch engines lie beside the others and are imported by name, when one is opened: see docs/architecture.md.
TORCH_ENGINES = {"runtime/engines/torch.py", "runtime/engines/torch_cuda.py"}
# Imports that point up, each inside of a function: a file, and what it may import.
UPWARD = {
    # Computes with the ops themselves where other engines read a file of them.
    "runtime/engines/torch.py": {"hwnas.ops.onnx_graph.stand_in", "hwnas.ops.registry.OpSpec"},
}


def top(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def name(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def imported(path: Path, *, typing_too: bool, functions_too: bool = True) -> Iterator[str]:
    """Yield the absolute name of everything a file imports, at any depth."""
    todo: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 10))]
    package = ["hwnas", *path.relative_to(PACKAGE).parts[:-1]]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package[: len(package) + 1 - node.level] if node.level else []
            yield from (".".join([*parents, *filter(None, [node.module]), a.name]) for a in node.names)
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" and not typing_too:
            todo += node.orelse
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and not functions_too:
            pass
        else:
            todo += ast.iter_child_nodes(node)


def own(name: str) -> str:
    """Return the top-level module of hwnas that a name lies in; `hwnas.__version__` is of its __init__."""
    part = name.split(".")[1] if "." in name else "__init__"
    return part if (PACKAGE / part).is_dir() or (PACKAGE / f"{part}.py").is_file() else "__init__"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    here = top(path)
    assert here in HEIGHT, f"hwnas/{here} is in no layer; add it to LAYERS in {Path(__file__).name}"
    for target in set(imported(path, typing_too=True)) - UPWARD.get(name(path), set()):
        if target.split(".")[0] == "hwnas":
            there = own(target)
            assert there in HEIGHT, f"hwnas/{there} is in no layer; add it to LAYERS in {Path(__file__).name}"
            assert HEIGHT[there] <= HEIGHT[here], f"{here} imports {target}, which lies above it"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_optional_packages_are_imported_through_require(path: Path) -> None:
    allowed = {"hwnas", "numpy", *sys.stdlib_module_names} | {p for p, where in AT_TOP.items() if top(path) in where}
    if name(path) in TORCH_ENGINES:
        allowed |= {"torch"}
    outside = {target.split(".")[0] for target in imported(path, typing_too=False)} - allowed
    assert not outside, f"use hwnas.optional.require for: {sorted(outside)}"


@pytest.mark.parametrize("file", UPWARD)
def test_what_points_up_is_imported_when_it_is_called(file: str) -> None:
    path = PACKAGE / file
    assert UPWARD[file] <= set(imported(path, typing_too=False))
    assert not UPWARD[file] & set(imported(path, typing_too=True, functions_too=False))


def test_only_torch_engines_import_torch_engines() -> None:
    modules = {"hwnas." + file.removesuffix(".py").replace("/", ".") for file in TORCH_ENGINES}
    assert modules < {target.partition(":")[0] for target in ENGINES.values()}
    for path in FILES:
        if name(path) not in TORCH_ENGINES:
            there = {
                t for t in imported(path, typing_too=True) if any(t == m or t.startswith(f"{m}.") for m in modules)
            }
            assert not there, f"{name(path)} imports {sorted(there)}; name the engine and open it with `open_engine`"


JOBS = sorted((PACKAGE / "jobs").glob("*.py"))


@pytest.mark.parametrize("path", JOBS, ids=lambda p: p.name)
def test_a_job_prints_nothing_and_keeps_to_what_other_jobs_offer(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    called = {n.func.id for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
    assert "print" not in called
    for name in imported(path, typing_too=True):
        assert not name.startswith(("hwnas.show", "rich")), f"{path.name} imports {name}: results are shown elsewhere"
        assert not name.rpartition(".")[2].startswith("_") or name.startswith("hwnas.__"), f"{name} is private"


# What a space is made of is known to spaces and recipes; its rules know the names of the decisions they are about.
GENERAL = [p for p in FILES if top(p) not in {"spaces", "recipes"} and name(p) != "problem/rules/one_path.py"]
OF_SYSTEMS = {"chain", "trellis", "xception", "normal", "reduce", "cell", "path", "DARTS_V2", "AUTO_DEEPLAB"}
CLASSES = {"Chain", "Trellis", "Xception", "Classifier", "Context", "Decoder", "ASPPHead"}


@pytest.mark.parametrize("path", GENERAL, ids=name)
def test_no_system_is_named_outside_of_spaces_and_recipes(path: Path) -> None:
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    texts = {n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    assert not texts & OF_SYSTEMS, "a group, an encoder or a network of one system"
    inside = tuple(f"hwnas.spaces.{part}" for part in ("encoders", "heads", "factories", "genotype"))
    taken = {target for target in imported(path, typing_too=True) if target.startswith("hwnas.spaces")}
    assert not {target for target in taken if target.startswith(inside) or target.rpartition(".")[2] in CLASSES}


def test_a_verb_calls_no_other_verb() -> None:
    tree = ast.parse((PACKAGE / "cli.py").read_text(encoding="utf-8"))
    verbs = {n.name: n for n in tree.body if isinstance(n, ast.ClassDef)}
    assert {"Profile", "Search", "Derive", "Train"} <= verbs.keys()
    for name, verb in verbs.items():
        for method in (n for n in verb.body if isinstance(n, ast.FunctionDef)):
            used = {n.id for n in ast.walk(method) if isinstance(n, ast.Name)}
            assert not used & verbs.keys(), f"{name} uses {used & verbs.keys()}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_file_is_long(path: Path) -> None:
    longest = {"spaces/trellis.py": 700}.get(path.relative_to(PACKAGE).as_posix(), 500)
    assert len(path.read_text(encoding="utf-8").splitlines()) <= longest
