"""What a user can get wrong: one line that says what to do, exit code 2, and nothing half-written."""

from __future__ import annotations

import re
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hwnas.latency import LatencyTable
from hwnas.run import Run
from tests.verbs import RECIPE, camvid_folder, done, edit, hwnas, tree


def refused(*args: str | Path, match: str, leaves: str = "") -> str:
    """Call a verb that must be refused in one line and change nothing, `leaves` aside; return the line."""
    before = tree(Path())
    said = hwnas(*args)
    assert said.code == 2, said
    assert re.fullmatch(r"hwnas: [^\n]+\n", said.err), said.err
    assert re.search(match, said.err), said.err
    assert "Traceback" not in said.out
    after = tree(Path())
    assert {k: v for k, v in after.items() if not leaves or not k.startswith(leaves)} == before
    return said.err


@pytest.fixture
def nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def another_device(path: Path) -> None:
    """Say in a table that it is of another device."""
    table = LatencyTable.load(path)
    table.where = {**table.where, "device": {"kind": "model", "name": "another-box"}}
    table.save(path)


def without_an_op(path: Path, kind: str) -> str:
    """Take a row out of a table; return its key."""
    table = LatencyTable.load(path)
    key = next(k for k in table.rows if k.startswith(kind))
    del table.rows[key]
    table.save(path)
    return key


def test_an_unsatisfiable_budget_names_what_can_be_reached(profiled: Path) -> None:
    error = refused("search", RECIPE, "--fps", "1e9", match=r"the fastest\s+reachable is [\d.]+ fps")
    (fps,) = re.findall(r"ask for at most --fps ([\d.]+)", error)
    done("search", RECIPE, "--fps", fps)
    assert Run(RECIPE).derived().budget_ms == 1000 / float(fps)
    refused("derive", RECIPE, "--fps", "1e9", match=r"reachable is [\d.]+ fps")


@pytest.mark.parametrize("fps", ["0", "-5", "nan", "inf", "-inf", "1e-400"])
def test_a_budget_that_is_no_rate(finished: Path, fps: str) -> None:
    for args in (("search", RECIPE, "--fps", fps), ("derive", RECIPE, "--fps", fps)):
        refused(*args, match="--fps must be a positive number of frames per second, got")


def test_a_table_of_another_device(profiled: Path) -> None:
    another_device(profiled / "table.json")
    refused("search", RECIPE, match="measured on another-box, this is fake-roofline-1; .*--foreign-table")
    done("search", RECIPE, "--fps", "3000", "--foreign-table")
    refused("derive", RECIPE, "--fps", "2900", match="--foreign-table")
    done("derive", RECIPE, "--fps", "2900", "--foreign-table")


def test_a_table_of_another_device_does_not_validate_unasked(finished: Path) -> None:
    another_device(finished / "table.json")
    refused("validate", RECIPE, "--again", match="--foreign-table")
    done("validate", RECIPE, "--again", "--foreign-table")


@pytest.mark.parametrize("kind", ["sep_conv", "relu"])
def test_a_table_without_an_op(profiled: Path, kind: str) -> None:
    key = without_an_op(profiled / "table.json", kind)
    refused("search", RECIPE, match=rf"has no row for {re.escape(key)}; .*hwnas profile")


@pytest.mark.parametrize(
    ("args", "match"),
    [
        (("profile", "darts-tny"), "unknown recipe 'darts-tny'; did you mean 'darts-tiny'.*darts-gpu, darts-quick"),
        (("search", "zzz"), "unknown recipe 'zzz'; known: autodeeplab, autodeeplab-camvid"),
        (("train", RECIPE), r"there is no run 'darts-tiny' here \(runs: none\); make one with: hwnas profile"),
        (("export", RECIPE), "there is no run"),
        (("validate", RECIPE), "there is no run"),
        (("derive", RECIPE), "there is no run"),
        (("search", RECIPE), "table.json is not there yet; run first: hwnas profile darts-tiny$"),
        (("search", RECIPE, "--run", "box"), "run first: hwnas profile darts-tiny --run box$"),
        (("search", RECIPE, "--table", "no.json"), "cannot read a latency table at no.json: No such file"),
        (
            ("search", "darts-camvid"),
            "darts-camvid needs a folder of images and labels, see hwnas data; name it with --data DIR",
        ),
        (("search", RECIPE, "--data", "no"), "it is no folder either: expected one of .*SPLIT.txt, SPLIT/images"),
        (("profile", RECIPE, "--data", "no"), "it is no folder either: expected one of .*SPLIT.txt, SPLIT/images"),
        (("profile", RECIPE, "--engine", "fke"), "unknown engine 'fke'; did you mean 'fake'"),
        (("profile", RECIPE, "--engine", "nowhere:Engine"), "needs the module nowhere"),
        (("profile", RECIPE, "--threads", "0"), "a run needs threads of 1 or more, got 0"),
        (("profile", RECIPE, "--results", "no.jsonl"), "cannot read results at no.jsonl: No such file"),
        (("profile", RECIPE, "--run", "../up"), r"a run's name is made of letters, digits.*got '\.\./up'"),
        (("profile", RECIPE, "--run", ".hidden"), "a run's name is made of"),
        (("search", RECIPE, "--run", "a b"), "a run's name is made of"),
        (("train", "a/b"), "a run's name is made of"),
        (("train", ""), "a run's name is made of"),
    ],
)
def test_where_there_is_nothing(nothing: Path, args: tuple[str, ...], match: str) -> None:
    refused(*args, match=match, leaves="runs")
    assert [p.name for p in nothing.rglob("*")] in ([], ["runs"])


def test_verbs_out_of_order_name_the_one_to_run(profiled: Path) -> None:
    shutil.copytree(profiled, "runs/box")
    refused("derive", "box", match="has not been searched; run: hwnas search darts-tiny --run box$")
    for verb in ("train", "export", "validate"):
        refused(verb, "box", match=r"arch\.json is not there yet; run first: hwnas search darts-tiny --run box$")


def test_later_verbs_out_of_order_name_the_one_to_run(finished: Path) -> None:
    shutil.rmtree(finished / "deploy")
    refused("validate", RECIPE, match=r"engine\.json is not there yet; run first: hwnas export darts-tiny$")
    shutil.rmtree(finished / "train")
    refused("export", RECIPE, match=r"model\.safetensors is not there yet; run first: hwnas train darts-tiny$")


@pytest.mark.parametrize(
    ("args", "match"),
    [
        (("search", RECIPE, "--fps", "3001"), "was made with budget_ms"),
        (("search", RECIPE, "--seed", "7"), "was made with search_seed 2, not 7; give the new one another name"),
        (("search", RECIPE, "--data", "pictures"), "was made with data 'synthetic', not '/.*pictures'"),
        (("profile", RECIPE, "--engine", "torch"), "was made with engine 'fake', not 'torch'"),
        (("profile", RECIPE, "--threads", "2"), "was made with threads 1, not 2"),
        (("profile", "darts-quick", "--run", RECIPE), "was made with recipe 'darts-tiny', not 'darts-quick'"),
        (("search", "darts-quick", "--run", RECIPE), "was made with recipe 'darts-tiny', not 'darts-quick'"),
        (("export", RECIPE, "--logits"), "runs/darts-tiny/deploy is another export of this run; remove the folder"),
        (("export", RECIPE, "--scores"), "runs/darts-tiny/deploy is another export of this run; remove the folder"),
        (("export", RECIPE, "--precision", "fp16"), "is another export of this run; remove the folder"),
        (("export", RECIPE, "--engine", "onnxruntime"), "is another export of this run; remove the folder"),
        (("derive", RECIPE, "--fps", "3000", "--to", RECIPE), "was made with budget_ms"),
        (("profile", RECIPE, "--plan-only", "pictures"), "pictures is not empty; name a new folder"),
    ],
)
def test_a_run_made_with_other_settings(finished: Path, args: tuple[str, ...], match: str) -> None:
    camvid_folder(Path("pictures"))
    refused(*args, match=match)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (("--logits", "--scores"), "--logits and --scores are two endings of one file; give one of them"),
        (("--engine", "fke"), "unknown engine 'fke'; did you mean 'fake'"),
        (("--precision", "int8"), "engine 'fake' computes in fp32, tf32, fp16, got 'int8'"),
        (("--engine", "openvino", "--precision", "fp16"), "engine 'openvino' computes in fp32, got 'fp16'"),
    ],
)
def test_an_export_that_cannot_be(finished: Path, options: tuple[str, ...], match: str) -> None:
    shutil.rmtree(finished / "deploy")
    refused("export", RECIPE, *options, match=match)


def test_weights_of_another_training_than_the_export(finished: Path) -> None:
    path = finished / "train" / "model.safetensors"
    path.write_bytes(path.read_bytes() + b" ")
    refused("validate", RECIPE, "--again", match="was exported from other weights than .*; remove it and export again")
    refused("export", RECIPE, match="is another export of this run")


def test_a_search_goes_on_with_its_own_settings_only(finished: Path) -> None:
    for name in ("arch.json", "alphas.json"):
        (finished / name).unlink()
    (finished / "search.pt").write_bytes((finished / "train" / "checkpoint.pt").read_bytes())
    refused("search", RECIPE, match=r"search\.pt was made with other settings; use another run name, or remove it")


def test_derive_leaves_the_table_of_another_run_alone(finished: Path) -> None:
    shutil.copytree(finished, "runs/other")
    (finished.parent / "other" / "arch.json").unlink()
    another_device(finished.parent / "other" / "table.json")
    refused("derive", RECIPE, "--to", "other", match="'other' has another latency table; give another name with --to$")


def test_a_search_by_another_table_than_the_runs_own_needs_another_run(profiled: Path) -> None:
    shutil.copy(profiled / "table.json", "other.json")
    another_device(Path("other.json"))
    args = ("--table", "other.json", "--foreign-table")
    refused("search", RECIPE, *args, match=f"'{RECIPE}' has another latency table; give another name with --run")


def test_a_run_that_another_process_works_on(finished: Path) -> None:
    held, release = threading.Event(), threading.Event()

    def work() -> None:
        with Run(RECIPE).locked():
            held.set()
            release.wait(60)

    other = threading.Thread(target=work)
    other.start()
    try:
        assert held.wait(60)
        for args in (
            ("profile", RECIPE),
            ("search", RECIPE),
            ("train", RECIPE),
            ("export", RECIPE),
            ("validate", RECIPE),
        ):
            refused(*args, match=f"another process works on the run '{RECIPE}'; wait for it, or use another name")
    finally:
        release.set()
        other.join()
    done("train", RECIPE)


def with_label(folder: Path) -> None:
    path = folder / "labels" / f"{folder.name}-2.png"
    label = np.array(Image.open(path))
    label[5, 5] = 12
    Image.fromarray(label).save(path)


def with_half_an_image(folder: Path) -> None:
    path = folder / "images" / f"{folder.name}-1.jpg"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def with_a_missing_image(folder: Path) -> None:
    (folder / "images" / f"{folder.name}-3.jpg").unlink()


BAD_DATA = [
    (with_label, r"-2\.png holds label 12, expected 0\.\.10 for classes or 11 for void"),
    (with_half_an_image, r"cannot decode .*-1\.jpg .*truncated.*; replace the file"),
    (with_a_missing_image, r"-3\.jpg is missing; restore it or take its name out of"),
]


@pytest.mark.parametrize(("spoil", "match"), BAD_DATA)
def test_a_dataset_that_cannot_be_used(profiled: Path, spoil: Callable[[Path], None], match: str) -> None:
    data = camvid_folder(Path("pictures"))
    spoil(data / "train")
    refused("search", RECIPE, "--data", data, match=match)
    refused("search", RECIPE, "--run", "own", "--data", data, "--table", profiled / "table.json", match=match)


@pytest.mark.parametrize(("spoil", "match"), BAD_DATA)
@pytest.mark.parametrize(("split", "verb"), [("val", "train"), ("test", "validate")])
def test_a_split_that_cannot_be_used(
    finished: Path, split: str, verb: str, spoil: Callable[[Path], None], match: str
) -> None:
    data = camvid_folder(Path("pictures"))
    edit(finished / "run.json", data=str(data))
    shutil.rmtree(finished / "train")
    (finished / "report.json").unlink()
    spoil(data / split)
    refused(verb, RECIPE, match=match)


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flipped(content: bytes) -> bytes:
    at = len(content) // 3
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


def empty(content: bytes) -> bytes:
    return b""


def another(content: bytes) -> bytes:
    return b'{"schema": 1}'


DAMAGES = (half, flipped, empty, another)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(
    ("name", "verb", "missing"),
    [
        ("table.json", "search", "arch.json"),
        ("train/checkpoint.pt", "train", "train/model.safetensors"),
        ("deploy/model.onnx", "validate", "report.json"),
        ("plan/plan.json", "profile", "table.json"),
    ],
)
def test_a_damaged_file_with_a_checksum(
    finished: Path, name: str, verb: str, missing: str, damage: Callable[[bytes], bytes]
) -> None:
    (finished / missing).unlink()
    (finished / name).write_bytes(damage((finished / name).read_bytes()))
    error = refused(verb, RECIPE, match=re.escape(f"runs/{RECIPE}/{name}"))
    assert re.search("anew|again", error)  # says what to do


@pytest.mark.parametrize("damage", [half, empty, another])
@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("arch.json", ("train", RECIPE)),
        ("arch.json", ("export", RECIPE)),
        ("arch.json", ("validate", RECIPE)),
        ("alphas.json", ("derive", RECIPE, "--fps", "3000")),
        ("deploy/engine.json", ("export", RECIPE)),
        ("deploy/engine.json", ("validate", RECIPE)),
        ("run.json", ("search", RECIPE)),
        ("run.json", ("train", RECIPE)),
    ],
)
def test_a_damaged_text_file(
    finished: Path, name: str, args: tuple[str, ...], damage: Callable[[bytes], bytes]
) -> None:
    (finished / name).write_bytes(damage((finished / name).read_bytes()))
    if (name, args[0]) == ("arch.json", "train"):
        (finished / "train" / "model.safetensors").unlink()
    refused(*args, match=re.escape(f"runs/{RECIPE}/{name}"))


@pytest.mark.parametrize("damage", [half, flipped])
def test_a_damaged_checkpoint_of_a_search(finished: Path, damage: Callable[[bytes], bytes]) -> None:
    for name in ("arch.json", "alphas.json"):  # a stage that is done is not run again
        (finished / name).unlink()
    (finished / "search.pt").write_bytes(damage((finished / "search.pt").read_bytes()))
    refused("search", RECIPE, match=r"search\.pt is not a whole checkpoint.*; remove it to start anew")


@pytest.mark.parametrize("damage", [half, empty])
def test_a_damaged_report(finished: Path, damage: Callable[[bytes], bytes]) -> None:
    (finished / "report.json").write_bytes(damage((finished / "report.json").read_bytes()))
    refused("validate", RECIPE, match=r"report\.json is not a report: .*; make it anew")
    done("validate", RECIPE, "--again")


@pytest.mark.parametrize("damage", [half, empty, another])
def test_damaged_weights(finished: Path, damage: Callable[[bytes], bytes]) -> None:
    shutil.rmtree(finished / "deploy")
    path = finished / "train" / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    refused(
        "export",
        RECIPE,
        match=r"model\.safetensors (is not a file of weights, or damaged|does not hold weights of this network)",
    )


@pytest.mark.parametrize("name", ["search.jsonl", "train.jsonl"])
def test_a_damaged_step_log(finished: Path, name: str) -> None:
    verb = name.partition(".")[0]
    lines = (finished / name).read_text().splitlines(keepends=True)
    (finished / name).write_text("".join([lines[0], lines[1][:-5] + "\n", *lines[2:]]))
    (finished / {"search": "arch.json", "train": "train/model.safetensors"}[verb]).unlink()
    refused(verb, RECIPE, match=rf"{name}.* line 2")


def test_a_damaged_line_of_results(finished: Path) -> None:
    path = finished / "results.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:4], flipped(lines[4].encode()).decode(), *lines[5:]]))
    (finished / "table.json").unlink()
    refused("profile", RECIPE, match=r"results\.jsonl line 5 is damaged: .*; measure into another results file")


@pytest.mark.parametrize("damage", [half, empty, another])
def test_a_damaged_assembly(finished: Path, damage: Callable[[bytes], bytes]) -> None:
    path = finished / "plan" / "assembly.json"
    path.write_bytes(damage(path.read_bytes()))
    (finished / "table.json").unlink()
    refused("profile", RECIPE, match=r"assembly\.json is not .*(its|a|another) plan")
