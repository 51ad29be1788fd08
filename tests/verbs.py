"""What the tests of the command line share: calling a verb, the whole job, and what a folder holds."""

from __future__ import annotations

import contextlib
import io
import re
import shutil
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from hwnas.cli import main
from hwnas.files import read_json
from hwnas.records import signed, text_of
from hwnas.steplog import StepLog

RECIPE = "darts-tiny"
CLI = (sys.executable, "-m", "hwnas")
STAGES = ("profile", "search", "train", "export", "validate")


class Said(NamedTuple):
    """How a verb ended and what it printed."""

    code: int
    out: str
    err: str

    @property
    def following(self) -> str:
        """The command it names as the next one."""
        (line,) = re.findall(r"^next: (.*)$", self.out, re.MULTILINE)
        return str(line)


def hwnas(*args: str | Path) -> Said:
    """Run a verb in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(a) for a in args])
    return Said(code, out.getvalue(), err.getvalue())


def done(*args: str | Path) -> Said:
    """Run a verb in this process that must succeed."""
    said = hwnas(*args)
    assert said.code == 0, said
    assert not said.err
    return said


def job(run: str, *options: str) -> list[tuple[str, ...]]:
    """Return the commands of a whole job; `options` are those of `profile`."""
    named = () if run == RECIPE else ("--run", run)
    return [("profile", RECIPE, *named, *options), ("search", RECIPE, *named), *((v, run) for v in STAGES[2:])]


def do_job(folder: Path, commands: list[tuple[str, ...]], keep: Path | None = None) -> None:
    """Run the verbs of a job in `folder`; what each printed goes to ``<verb>.txt``.

    Args:
        folder: Gets ``runs/``.
        commands: The verbs.
        keep: Gets a copy of ``runs/`` as it was after the first verb.
    """
    folder.mkdir(exist_ok=True)
    with contextlib.chdir(folder):
        for command in commands:
            Path(f"{command[0]}.txt").write_text(done(*command).out)
            if keep is not None and not keep.exists():
                shutil.copytree("runs", keep / "runs")


def tree(folder: Path) -> dict[str, bytes | None]:
    """Return what a folder holds: content of files, None for folders."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


def untrain(run: Path, whole: str) -> Path:
    """Undo the training of a run, and return its folder; what it was goes on as the run `whole` beside it."""
    shutil.copytree(run, run.with_name(whole))
    shutil.rmtree(run / "train")
    (run / "train.jsonl").unlink()
    return run


def losses(run: Path) -> list[float]:
    """Return the losses of the steps of a training."""
    return [line["loss"] for line in StepLog(run / "train.jsonl").read()]


def edit(path: Path, **changes: Any) -> None:
    """Change fields of a stored record, as whoever wrote it could have; its checksum fits."""
    path.write_text(text_of(signed(read_json(path, "a record") | changes), indent=1))


def camvid_folder(folder: Path, length: int = 4, size: tuple[int, int] = (48, 64)) -> Path:
    """Write a dataset in CamVid's layout, all of its 11 classes and void in every label; `size` is (height, width)."""
    rng = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for kind in ("images", "labels"):
            (folder / split / kind).mkdir(parents=True)
        names = [f"{split}-{i}" for i in range(length)]
        (folder / f"{split}.txt").write_text("".join(f"{n}\n" for n in names))
        for name in names:
            label = rng.permutation(np.arange(size[0] * size[1]) % 12).reshape(size).astype(np.uint8)
            image = rng.integers(0, 256, (*size, 3)).astype(np.uint8)
            Image.fromarray(image).save(folder / split / "images" / f"{name}.jpg")
            Image.fromarray(label).save(folder / split / "labels" / f"{name}.png")
    return folder
