"""What the documentation says is so: commands parse, links lead somewhere, code runs, messages are quoted right."""

from __future__ import annotations

import argparse
import ast
import re
import runpy
import shlex
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file

from hwnas import cli, recipes, validate
from hwnas.data import CAMVID_CLASSES, Synthetic
from hwnas.export import export
from hwnas.latency import Correction, NetRow, OpRow
from hwnas.recipes import base
from hwnas.recipes.from_file import load
from hwnas.recipes.override import assignments, override
from hwnas.runtime import __main__ as runtime
from hwnas.runtime.deploy.bundle import KINDS, Bundle, Input, Output
from hwnas.runtime.engines import ENGINES
from hwnas.seeding import seeded
from hwnas.spaces import sample, trace_space
from tests.conftest import ROOT
from tests.test_bundle import make

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs" / "systems").glob("*.md"))]
ALL_PAGES = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "scripts" / "bench" / "README.md"]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
RUNTIME = ["python", "-m", "hwnas.runtime"]


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def commands(path: Path) -> Iterator[list[str]]:
    """Yield the words of each hwnas command of a page: lines of sh blocks, and elsewhere those after a prompt."""
    text = path.read_text(encoding="utf-8")
    shell = "\n".join(code for language, code in FENCE.findall(text) if language == "sh")
    prompted = re.findall(r"^ *\$ (.+)$", text, re.MULTILINE)
    for line in (*shell.replace("\\\n", " ").splitlines(), *prompted):
        words = line.strip().removeprefix(".venv/bin/")
        if re.match(r"(hwnas|python -m hwnas\.runtime|python my_recipes\.py) ", words):
            yield shlex.split(words, comments=True)


def python_blocks(path: Path) -> list[str]:
    return [code for language, code in FENCE.findall(path.read_text(encoding="utf-8")) if language == "python"]


def anchors(path: Path) -> set[str]:
    """Return what links can point to in a page, as GitHub makes it from headings."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", path.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


def parse(words: list[str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Put a command through the parser it is for, without running it; return the verbs it named."""
    if words[:3] == RUNTIME:
        runtime._parser().parse_args(words[3:])
        return [words[3]]
    named: list[str] = []
    for verb, kind in cli.VERBS.items():
        monkeypatch.setattr(kind, "__call__", lambda self, verb=verb: named.append(verb) or 0)
    assert cli.main(words[words[0] == "python" :][1:]) == 0
    return named


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_commands_parse(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for words in commands(path):
        try:
            assert len(parse(words, monkeypatch)) == 1
        except SystemExit:
            pytest.fail(f"{name(path)}: the command line does not take: {shlex.join(words)}")


@pytest.mark.parametrize("line", ["hwnas serch darts-quick", "hwnas search darts-quick --frames 3", "hwnas train"])
def test_a_wrong_command_would_be_found(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit):
        parse(line.split(), monkeypatch)


def test_there_are_commands_to_check() -> None:
    found = [words for path in PAGES for words in commands(path)]
    assert {w[1] for w in found if w[0] == "hwnas"} >= cli.VERBS.keys() - {"ls"}
    assert {w[3] for w in found if w[:3] == RUNTIME} == {"measure", "run"}


def test_the_commands_of_the_benchmark_parse(monkeypatch: pytest.MonkeyPatch) -> None:
    job = runpy.run_path(str(ROOT / "scripts" / "bench" / "job.py"))
    args = argparse.Namespace(recipe="darts-quick", data=Path("camvid"), seed=3, measure=True)
    made = job["commands"](args, "bench")
    assert list(made) == list(job["LEAVES"]) == ["profile", "search", "train", "export", "validate"]
    for verb, arguments in made.items():
        assert parse(["hwnas", *arguments], monkeypatch) == [verb]


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_commands_in_the_text_name_verbs_and_flags_that_exist(path: Path) -> None:
    flags = {f"--{f.name.replace('_', '-')}" for kind in cli.VERBS.values() for f in fields(kind)}
    text = FENCE.sub("", path.read_text(encoding="utf-8"))
    for span in re.findall(r"`(hwnas [a-z][^`]*)`", text):
        _, verb, *rest = span.split()
        assert verb in cli.VERBS, f"{name(path)}: `{span}`"
        own = {f"--{f.name.replace('_', '-')}" for f in fields(cli.VERBS[verb])}
        assert {w for w in rest if w.startswith("--")} <= own, f"{name(path)}: `{span}`"
    assert set(re.findall(r"`(--[a-z-]+)`", text)) <= flags | {"--visits", "--max-visits", "--spread"} | {
        "--out",
        "--overlay",
        "--force",
    }


@pytest.mark.parametrize("path", ALL_PAGES, ids=name)
def test_links_and_pictures_exist(path: Path) -> None:
    for target in LINK.findall(FENCE.sub("", path.read_text(encoding="utf-8"))):
        if not target.startswith(("https://", "http://")):
            file, _, anchor = target.partition("#")
            there = path.parent / file if file else path
            assert there.exists(), f"{name(path)} links to {target}"
            assert not anchor or anchor in anchors(there), f"{name(path)} links to {target}"


@pytest.mark.parametrize("path", ALL_PAGES, ids=name)
def test_files_of_the_repository_that_are_named_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for named in re.findall(r"(?<![\w/.-])(?:scripts|hwnas|docs)/[\w./-]*\w", text):
        assert (ROOT / named).exists(), f"{name(path)} names {named}"


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_python_compiles(path: Path) -> None:
    for i, code in enumerate(python_blocks(path)):
        compile(code, f"{name(path)}, python block {i}", "exec", dont_inherit=True)


def test_the_recipe_of_the_documentation_works(tmp_path: Path) -> None:
    (code,) = (c for c in python_blocks(ROOT / "docs" / "search.md") if "my_recipes.py" in c)
    (tmp_path / "my_recipes.py").write_text(code)
    made = load(f"{tmp_path}/my_recipes.py:darts_longer")
    assert made.name == "darts-longer"
    for scale in (*made.scales()[:1], made.search.scale):
        assert trace_space(made.space.at(scale)).input_shape == (1, 3, 256, 384)
    assert made.train.crop < made.space.scale.size


def test_the_settings_of_the_documentation_can_be_set() -> None:
    lines = (ROOT / "docs" / "search.md").read_text().splitlines()
    found = [(line, text) for line in lines for text in re.findall(r"--set (\S+\.\S+=\S+)", line)]
    assert len(found) >= 5
    for line, text in found:
        name = next((word for word in line.split() if word in recipes.names()), "darts-quick")
        override(recipes.get(name), assignments([text.strip("`")]))


def test_the_example_does_the_whole_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(ROOT / "docs" / "example.py"))["main"]("fake")
    out = capsys.readouterr().out
    assert re.search(r"^table: \d+ ops on fake-roofline-1/fake-fp32-b1$", out, re.MULTILINE)
    last = re.fullmatch(r"predicted (\S+) ms, measured (\S+) ms", out.splitlines()[-1])
    assert last is not None
    assert float(last[1]) == pytest.approx(float(last[2]), rel=0.1)
    assert {"deploy", "report.json", "table.json"} <= {p.name for p in (tmp_path / "runs" / "example").iterdir()}


def test_the_onnx_code_of_the_documentation_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    space = recipes.get("darts-tiny").space
    arch = sample(space, np.random.default_rng(0))
    with seeded(0):
        network = space.build(arch, form="deploy")
    save_file(network.state_dict(), "untrained.safetensors")
    data = Synthetic("val", space.scale.size, length=1)
    export(space, arch, Path("untrained.safetensors"), data, Path("model.onnx"))
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)).save("street.jpg")
    (code,) = (c for c in python_blocks(ROOT / "docs" / "search.md") if "onnxruntime" in c)
    exec(compile(code, "onnx code", "exec", dont_inherit=True), {})
    with Image.open("labels.png") as drawn:
        assert (drawn.height, drawn.width) == space.scale.size
        assert {tuple(c) for c in np.asarray(drawn).reshape(-1, 3).tolist()} <= set(CAMVID_CLASSES.palette)
    assert "'bicyclist': " in capsys.readouterr().out


def test_the_code_for_a_bundle_of_the_documentation_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    bundle = make(Path("deploy"))
    (code,) = (c for c in python_blocks(ROOT / "docs" / "search.md") if "open_application" in c)
    found: dict[str, np.ndarray] = {}
    exec(compile(code, "bundle code", "exec", dont_inherit=True), found)
    assert found["labels"].shape == bundle.input.size


def test_every_field_of_a_bundle_and_every_latency_is_explained() -> None:
    page = (ROOT / "docs" / "search.md").read_text(encoding="utf-8")
    names = [f.name for kind in (Bundle, Input, Output) for f in fields(kind) if f.name != "folder"]
    for explained in (*names, *KINDS, *validate.SCOPES):
        assert f"`{explained}`" in page, f"{explained} is not explained"


def templates(source: str) -> Iterator[str]:
    """Yield every text of a Python source, with … for what is filled in."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(v.value) if isinstance(v, ast.Constant) else "…" for v in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def test_quoted_messages_are_those_of_the_code() -> None:
    known = [t for path in (ROOT / "hwnas").rglob("*.py") for t in templates(path.read_text(encoding="utf-8"))]
    page = (ROOT / "docs" / "latency-table.md").read_text(encoding="utf-8")
    quoted = re.findall(r"^\| `([^`]*…[^`]*)` \|", page, re.MULTILINE)
    assert len(quoted) > 10
    for message in quoted:
        assert any(message.rstrip("…").rstrip() in t for t in known), f"no message says: {message}"


def test_every_field_of_a_table_is_explained() -> None:
    page = (ROOT / "docs" / "latency-table.md").read_text(encoding="utf-8")
    for kind in (OpRow, NetRow, Correction):
        for f in fields(kind):
            assert f"`{f.name}`" in page, f"{kind.__name__}.{f.name} is not explained"


def test_the_readme_names_every_verb_and_engine_and_no_others() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `hwnas ([a-z]+)", text, re.MULTILINE) == list(cli.VERBS)
    section = text.partition("## Where each engine has really run")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `([\w-]+)`", section, re.MULTILINE)) == ENGINES.keys()


def test_the_readme_names_every_recipe() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    made_in = {n: make.__module__ for n, make in base._RECIPES.items()}
    # What other tests add is made in the registry's own module, or in theirs.
    shipped = [n for n, module in made_in.items() if module.startswith("hwnas.recipes.") and module != base.__name__]
    assert [n for n in shipped if f"`{n}`" not in text] == []
