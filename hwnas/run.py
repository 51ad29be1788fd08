"""A run: one folder under ``runs/`` that holds everything the verbs write, as plain files."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hwnas import recipes
from hwnas.arch import Architecture
from hwnas.data import SegmentationData, open_dataset, task_of
from hwnas.errors import DataError, HwnasError
from hwnas.files import canonical_json, read_json, write_atomic
from hwnas.lock import Lock
from hwnas.recipes import Recipe
from hwnas.spaces import Scale, SearchSpace, check

SCHEMA = 1
RUNS = Path("runs")


@dataclass(frozen=True)
class Derived:
    """A derived network as ``arch.json`` says it.

    Attributes:
        arch: Complete.
        scale: The deployment scale.
        budget_ms: What it may take.
        predicted_ms: What the table says it takes.
    """

    arch: Architecture
    scale: Scale
    budget_ms: float
    predicted_ms: float


class Run:
    """A run folder; the settings in ``run.json`` are fixed by the first verb that needs them."""

    def __init__(self, name: str) -> None:
        """Name the run; nothing is read or written.

        Raises:
            HwnasError: If the name is not fit for a folder.
        """
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise HwnasError(f"a run's name is made of letters, digits, '.', '_' and '-'; got {name!r}")
        self.name = name
        self.folder = RUNS / name
        self._asked: dict[str, Any] = {}

    @property
    def settings(self) -> dict[str, Any]:
        """What ``run.json`` says, and what was asked for on top.

        Raises:
            HwnasError: If there is no such run.
        """
        path = self.folder / "run.json"
        if path.exists():
            settings = read_json(path, "the settings of a run")
            if not isinstance(settings, dict) or settings.get("schema") != SCHEMA or "recipe" not in settings:
                raise HwnasError(f"{path}: settings of schema {SCHEMA} were expected; use another run name")
            return settings | self._asked
        if not self._asked:
            there = ", ".join(sorted(p.parent.name for p in RUNS.glob("*/run.json"))) or "none"
            raise HwnasError(f"there is no run {self.name!r} here (runs: {there}); make one with: hwnas profile RECIPE")
        return {"schema": SCHEMA, **self._asked}

    def ask(self, **settings: Any) -> None:
        """Ask for settings; they count from now on and are written by `commit`.

        Args:
            settings: None means "not asked for".

        Raises:
            HwnasError: If one differs from what the run was made with.
        """
        known = self.settings if (self.folder / "run.json").exists() else {}
        for key, value in settings.items():
            if value is not None and known.get(key) not in (None, value):
                raise HwnasError(
                    f"the run {self.name!r} was made with {key} {known[key]!r}, not {value!r}; "
                    "give the new one another name with --run"
                )
        self._asked |= {k: v for k, v in settings.items() if v is not None}

    def commit(self) -> None:
        """Fix the settings: write ``run.json``."""
        write_atomic(self.folder / "run.json", canonical_json(self.settings) + "\n")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run for one writing verb.

        Raises:
            HwnasError: If another process holds it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        refusal = f"another process works on the run {self.name!r}; wait for it, or use another name"
        with Lock(self.folder / ".lock", refusal) as lock:
            try:
                yield
            finally:
                if set(self.folder.iterdir()) <= lock.files:  # a verb that was refused leaves no empty run
                    lock.remove()
                    with suppress(OSError):  # another process has just come
                        self.folder.rmdir()

    @property
    def recipe(self) -> Recipe:
        """The recipe the run was made with."""
        return recipes.get(str(self.settings["recipe"]))

    def data(self, split: str, size: tuple[int, int] | None = None) -> SegmentationData:
        """Open a split of the run's dataset at the deployment size, or at `size`.

        Raises:
            DataError: If no folder was named, or it cannot be used or is not what the recipe's networks are for.
        """
        recipe = self.recipe
        source = self.settings.get("data") or recipe.data
        if source is None:
            raise HwnasError(f"the recipe {recipe.name} needs {recipe.needs}; name it with --data DIR")
        space, data = recipe.space, open_dataset(str(source), split, size or recipe.space.scale.size)
        task, classes = task_of(data), len(data.classes)
        if (task.name, classes) != (space.head, space.classes):
            raise DataError(
                f"the recipe {recipe.name} is for {space.head} into {space.classes} classes, {data.name} for "
                f"{task.name} into {classes}; take another recipe or --data {recipe.needs}"
            )
        return data

    def require(self, name: str, verb: str) -> Path:
        """Return the path of a file an earlier verb wrote.

        Raises:
            HwnasError: If it is not there; says which verb writes it.
        """
        path = self.folder / name
        if not path.exists():
            _ = self.settings  # a run that does not exist says that instead
            raise HwnasError(f"{path} is not there yet; run first: {self.command(verb)}")
        return path

    def command(self, verb: str) -> str:
        """Return the command line of a verb for this run."""
        if verb not in ("profile", "search"):
            return f"hwnas {verb} {self.name}"
        recipe = self.settings["recipe"]  # these two name the recipe, which the run need not be called by
        return f"hwnas {verb} {recipe}" + ("" if recipe == self.name else f" --run {self.name}")

    def write_derived(self, derived: Derived, more: Mapping[str, Any]) -> None:
        """Write ``arch.json``."""
        content = {
            "schema": SCHEMA,
            "architecture": derived.arch.to_json(),
            "scale": derived.scale.to_json(),
            "budget_ms": derived.budget_ms,
            "predicted_ms": derived.predicted_ms,
            **more,
        }
        write_atomic(self.folder / "arch.json", canonical_json(content) + "\n")

    def derived(self) -> Derived:
        """Read ``arch.json``.

        Raises:
            HwnasError: If it is missing, or not an architecture of the recipe's space.
        """
        path = self.require("arch.json", "search")
        data = read_json(path, "a derived architecture")
        try:
            arch = Architecture.from_json(data["architecture"])
            out = Derived(arch, Scale(**data["scale"]), float(data["budget_ms"]), float(data["predicted_ms"]))
        except (KeyError, TypeError) as e:
            raise HwnasError(f"{path} is not a derived architecture: {e}") from e
        check(self.recipe.space, arch)
        return out

    def space(self, derived: Derived) -> SearchSpace:
        """Return the recipe's space at the scale of a derived network."""
        return self.recipe.space.at(derived.scale)
