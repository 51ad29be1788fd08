"""A run: one folder under ``runs/`` that holds everything the verbs write, as plain files."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from hwnas import derived as derived_file
from hwnas import recipes, records
from hwnas.data import SegmentationData, open_dataset, task_of
from hwnas.data.identity import LEAST, Identity, identity_of, is_drawn
from hwnas.derived import Demands, Derived
from hwnas.errors import DataError, HwnasError, RecipeFileError, check_ranges, seeds
from hwnas.files import canonical_json, is_there
from hwnas.lock import Lock
from hwnas.recipes import Recipe
from hwnas.recipes.base import changed_settings
from hwnas.recipes.from_file import Source, call, import_file, load, name_of, split
from hwnas.recipes.override import override
from hwnas.records import Difference, File, stored
from hwnas.spaces import Space, check

RUNS = Path("runs")
CLASSES = "space.classes"  # the setting of a recipe that is the number of classes of its data
MEASURED = {"space", "widths", "depths", "calibration", "stop"}  # what of a recipe its latency table follows from


@stored("run", version=2)
@dataclass(frozen=True)
class Settings:
    """What ``run.json`` holds; None for what no verb has needed yet.

    Attributes:
        recipe: Its name.
        recipe_settings: All of it, as it was when the run was made: the run goes on with this one.
        data: Dataset folder, or the name of drawn data.
        seed: That was asked for.
        search_seed: Of the search.
        engine: That the table is measured on.
        threads: Of that.
        precision: Of that.
        budget_ms: What a network may take.
        how: What else is asked of it.
        overrides: Settings of the recipe that were set by name, as they were given; the recipe here has them.
        source: Of a recipe that is from a file.
        parts: Files that define classes of the recipe that hwnas does not have, by the stable names of these.
        identity: What tells the dataset folder from others, wherever it lies.
    """

    recipe: str
    recipe_settings: Recipe
    data: str | None = None
    seed: int | None = None
    search_seed: int | None = None
    engine: str | None = None
    threads: int | None = None
    precision: str | None = None
    budget_ms: float | None = None
    how: Demands | None = None
    overrides: Mapping[str, str] | None = None
    source: Source | None = None
    parts: Mapping[str, str] | None = None
    identity: Identity | None = None

    def __post_init__(self) -> None:
        """Raise HwnasError for values that cannot be."""
        check_ranges(
            "a run",
            ("a budget_ms of more than 0", self.budget_ms, self.budget_ms is None or self.budget_ms > 0),
            ("threads of 1 or more", self.threads, self.threads is None or self.threads >= 1),
            *seeds(self, ("seed", "search_seed")),
        )


def _first_version(data: dict[str, Any]) -> dict[str, Any]:
    """Bring the settings of a run that has only its recipe's name to those that have all of it."""
    how = data.get("how")
    recipe = records.encode(recipes.get(str(data["recipe"])), Recipe)
    return {**data, "recipe_settings": recipe, "how": how or None}


def _import_parts(path: Path, content: dict[str, Any]) -> None:
    """Import the file that a run's recipe is from, so that the classes it defines can be read."""
    try:
        if content.get("source") is not None:
            import_file(records.decode(content["source"], Source, "source").locate(RUNS.parent))
        for name, file in records.decode(content.get("parts") or {}, Mapping[str, str], "parts").items():
            if records.class_named(name) is None:
                raise RecipeFileError(
                    f"its recipe has a {name!r}, which {file} defines; make runs with a recipe FILE.py:FUNCTION of a "
                    "file that imports that, or import it before hwnas.cli"
                )
    except RecipeFileError as e:
        raise RecipeFileError(f"{path} cannot be read: {e}") from e


def _foreign(recipe: Recipe) -> dict[str, str] | None:
    """Return the files of the classes of a recipe that are not of hwnas, by stable names; None if there are none."""
    out = {}
    for name in records.names_in(records.encode(recipe, Recipe)):
        module = getattr(records.class_named(name), "__module__", "")
        if module.partition(".")[0] != "hwnas":
            out[name] = str(getattr(sys.modules.get(module), "__file__", None) or module)
    return out or None


def classes_of(recipe: Recipe, place: str) -> dict[str, str]:
    """Return the setting of a recipe that gives its networks as many classes as a dataset has.

    Args:
        recipe: The recipe.
        place: Name or folder of the dataset.

    Returns:
        As `hwnas.recipes.override` takes it; empty where the recipe has that number, or is for another task.

    Raises:
        DataError: If the data cannot be used.
    """
    data = open_dataset(place, "train", LEAST)
    classes = len(data.classes)
    fits = task_of(data).name == recipe.space.task
    return {CLASSES: str(classes)} if fits and classes != recipe.space.classes else {}


FILE = File("the settings of a run", "use another run name", _first_version, _import_parts)


class Run:
    """A run folder; the settings in ``run.json`` are fixed by the first verb that needs them."""

    def __init__(self, name: str, flag: str = "--run") -> None:
        """Name the run; nothing is read or written.

        Args:
            name: Of its folder.
            flag: Which of the command line another name is given with, for messages.

        Raises:
            HwnasError: If the name is not fit for a folder.
        """
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise HwnasError(f"a run's name is made of letters, digits, '.', '_' and '-'; got {name!r}")
        self.name = name
        self.folder, self.flag = RUNS / name, flag
        self._asked: dict[str, Any] = {}
        self._of_data: set[str] = set()  # settings of the recipe that follow from the data
        self.unproven = False  # whether data were named anew, and nothing tells that they are those of the run
        self._released: set[str] = set()

    @property
    def settings(self) -> Settings:
        """What ``run.json`` says, and what was asked for on top.

        Raises:
            HwnasError: If there is no such run.
        """
        stored_settings = self.stored
        if stored_settings is not None:
            return replace(stored_settings, **self._asked)
        if not self._asked:
            there = ", ".join(sorted(p.parent.name for p in RUNS.glob("*/run.json"))) or "none"
            raise HwnasError(f"there is no run {self.name!r} here (runs: {there}); make one with: hwnas profile RECIPE")
        return Settings(**self._asked)

    @property
    def stored(self) -> Settings | None:
        """What ``run.json`` says; None without one."""
        path = self.folder / "run.json"
        return FILE.load(path, Settings) if is_there(path) else None

    def ask(
        self,
        recipe: Recipe | str | None = None,
        overrides: Mapping[str, str] | None = None,
        late: Collection[str] = (),
        **settings: Any,
    ) -> None:
        """Ask for settings; they count from now on and are written by `commit`.

        Args:
            recipe: As a user names it, which a run that is there need only share; or as it is, which must then be the
                run's.
            overrides: Settings of the recipe by name, see `hwnas.recipes.override`. Of a run that is there they must be
                the run's, but until it is searched what neither its table follows from nor was set can be set.
            late: First parts of names of settings that can be set after the search too, and again.
            settings: Of `Settings`; None means "not asked for". `data` may be another place than the run's own, if the
                same dataset lies there.

        Raises:
            DataError: If another dataset lies there.
            HwnasError: If one differs from what the run was made with, or there is no such recipe.
        """
        own = self.stored
        if recipe is not None:
            self._ask_recipe(own, recipe)
        if overrides:
            self._override(own, overrides, late)
        for key, value in settings.items():
            assert key in {f.name for f in fields(Settings)}, f"a run has no setting {key!r}"
            if value is not None:
                if key == "data":
                    self._ask_data(own, value)
                else:
                    self._refuse_other(own, key, value)
                self._asked[key] = value

    def _ask_data(self, own: Settings | None, place: str) -> None:
        """Refuse data that are not those of the run; take down what tells those that have moved from others."""
        there = None if own is None else own.data
        if own is None or there in (None, place) or self._asked.get("data") == place:
            return
        assert there is not None
        if is_drawn(place) or is_drawn(there):
            self._refuse_other(own, "data", place)
        new, known = identity_of(place), own.identity
        assert new is not None
        if known is None and Path(there).exists():
            known = identity_of(there)
        if known is None:
            self.unproven = True
            known = new
        if why := known.unlike(new):
            raise DataError(
                f"the run {self.name!r} was made with the data that were at {there}, and {place} holds others: {why}; "
                "name the place they moved to, or give a new run another name with --run"
            )
        self._asked["identity"] = replace(new, name=known.name)

    def adopt_classes(self) -> None:
        """Give a new run's networks as many classes as its data have, if these are for the same task.

        What was set by name stays as it was set. The data of a run that is there must fit: `data` refuses others.

        Raises:
            DataError: If the data cannot be used.
        """
        place = self.settings.data
        if place is None or self.stored is not None or CLASSES in (self.settings.overrides or {}):
            return
        if setting := classes_of(self.recipe, place):
            self._override(None, setting)
            self._of_data = set(setting)

    def _ask_recipe(self, own: Settings | None, recipe: Recipe | str) -> None:
        found = split(recipe) if isinstance(recipe, str) else None
        source = None if found is None else Source.of(*found, RUNS.parent)
        self._refuse_other(own, "recipe", name_of(recipe) if isinstance(recipe, str) else recipe.name)
        if own is None:
            content = load(recipe) if isinstance(recipe, str) else recipe
            self._asked |= {"recipe": content.name, "recipe_settings": content, "source": source}
        elif source is not None and not (own.source is not None and source.is_like(own.source)):
            made = "a recipe of hwnas" if own.source is None else f"{own.source.path}:{own.source.function}"
            raise HwnasError(
                f"the run {self.name!r} was made with {made}, not {source.path}:{source.function}; give the new one "
                f"another name with {self.flag}"
            )
        elif isinstance(recipe, Recipe) and (changed := changed_settings(own.recipe_settings, recipe)):
            raise HwnasError(
                f"the run {self.name!r} was made with other settings of {recipe.name}: {'; '.join(map(str, changed))}; "
                f"give the new one another name with {self.flag}"
            )

    def _override(self, own: Settings | None, overrides: Mapping[str, str], late: Collection[str] = ()) -> None:
        before = self.recipe
        changed = override(before, overrides)
        there = dict(self.settings.overrides or {})
        if own is not None and (others := changed_settings(before, changed)):
            firm = [d for d in others if d.name.partition(".")[0] not in late]
            names = [name for name in there if name.partition(".")[0] not in late]
            made = {name: there[name] for name in names if overrides.get(name, there[name]) != there[name]}
            fixed = [d for d in firm if own.search_seed is not None or d.name.partition(".")[0] in MEASURED]
            if made or fixed:
                said = [f"{n}={v}, not {overrides[n]}" for n, v in made.items()] or [
                    f"{d.name} {canonical_json(d.old)}, not {canonical_json(d.new)}" for d in fixed
                ]
                raise HwnasError(
                    f"the run {self.name!r} was made with {'; '.join(said)}; give the new one another name with "
                    f"{self.flag}"
                )
        if own is None or changed_settings(before, changed):
            self._asked |= {"recipe_settings": changed, "overrides": there | dict(overrides)}

    def _refuse_other(self, own: Settings | None, key: str, value: object) -> None:
        there = None if own is None else getattr(own, key)
        if there not in (None, value) and key not in self._released:
            a, b = (x.asked() if isinstance(x, Demands) else x for x in (there, value))
            raise HwnasError(
                f"the run {self.name!r} was made with {key} {a!r}, not {b!r}; give the new one another name with "
                f"{self.flag}"
            )

    def identify(self) -> None:
        """Take down what tells the run's data from others, unless that was done or they are drawn.

        Raises:
            DataError: If they cannot be used.
        """
        settings = self.settings
        if settings.data is not None and settings.identity is None:
            self._gone(settings.data)
            self._asked["identity"] = identity_of(settings.data)

    @property
    def has_moved(self) -> bool:
        """Whether the data were named at another place than ``run.json`` says."""
        own = self.stored
        return own is not None and own.data not in (None, self.settings.data)

    @property
    def uncommitted(self) -> bool:
        """Whether something was asked for that ``run.json`` does not say."""
        return self.stored != self.settings

    def name_of(self, data: SegmentationData) -> str:
        """Return what a split goes by in checkpoints: the same wherever the data lie now."""
        identity = self.settings.identity
        return data.name if identity is None else f"{identity.name}/{data.name.rpartition('/')[2]}"

    def release(self, *names: str) -> None:
        """Let settings be asked for anew: nothing has come of those that the run was made with."""
        self._released |= set(names)

    def commit(self) -> None:
        """Fix the settings: write ``run.json``."""
        settings = self.settings
        records.save(self.folder / "run.json", replace(settings, parts=_foreign(settings.recipe_settings)))

    def changes(self) -> tuple[Difference, ...]:
        """Return what the recipe of this run's name has otherwise by now; the run goes on with its own."""
        settings = self.settings
        own, source, now = settings.recipe_settings, settings.source, None
        with suppress(HwnasError):  # a file may have lost its function since
            if source is not None:
                now = call(source.locate(RUNS.parent), source.function)
            elif own.name in recipes.names():
                now = recipes.get(own.name)
        if now is None:
            return ()
        with suppress(HwnasError):  # it may have lost a setting
            now = override(now, settings.overrides or {})
        return changed_settings(own, now)

    def changed_file(self) -> Path | None:
        """Return the file that the recipe is from, if it is not any more as it was."""
        source = self.settings.source
        path = None if source is None else source.locate(RUNS.parent)
        return path if source is not None and path is not None and source.has_changed(path) else None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run for one writing verb.

        Raises:
            HwnasError: If another process holds it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        refusal = f"another process works on the run {self.name!r}; wait for it, or use another name"
        with Lock(self.folder / ".lock", refusal, reading=True) as lock:
            try:
                yield
            finally:
                with suppress(OSError):  # another process has just come, or this one may not
                    if set(self.folder.iterdir()) <= lock.files:  # a verb that was refused leaves no empty run
                        lock.remove()
                        self.folder.rmdir()

    @property
    def recipe(self) -> Recipe:
        """The recipe the run was made with, whatever has become of it since."""
        return self.settings.recipe_settings

    @property
    def seeded_recipe(self) -> Recipe:
        """The recipe with the seed that was asked for."""
        return self.recipe.seeded(self.settings.seed)

    def data(self, split: str, size: tuple[int, int] | None = None, own_labels: bool = False) -> SegmentationData:
        """Open a split of the run's dataset at the deployment size, or at `size`; see `open_dataset` for `own_labels`.

        Raises:
            DataError: If no folder was named, or it cannot be used or is not what the recipe's networks are for.
        """
        recipe = self.recipe
        source = self.settings.data or recipe.data
        if source is None:
            raise HwnasError(f"the recipe {recipe.name} needs {recipe.needs}; name it with --data DIR")
        self._gone(str(source))
        space = recipe.space
        data = open_dataset(str(source), split, size or space.scale.size, own_labels=own_labels)
        task, classes = task_of(data), len(data.classes)
        if (task.name, classes) != (space.task, space.classes):
            instead = f"take another recipe or --data {recipe.needs}"
            if task.name == space.task:
                new = "with --run NAME" if self.stored is not None else f"without --set {CLASSES}"
                instead = f"a table and its networks are for one number of classes: give these data a run {new}"
            raise DataError(
                f"the recipe {recipe.name} is for {space.task} into {space.classes} classes, {data.name} for "
                f"{task.name} into {classes}; {instead}"
            )
        return data

    def _gone(self, place: str) -> None:
        """Refuse data that were there when the run was made, and are not any more."""
        stored_settings = self.stored
        if stored_settings is None or stored_settings.data != place or is_drawn(place):
            return
        if not Path(place).expanduser().exists():
            raise DataError(
                f"the data of the run {self.name!r} are not at {place} any more; moved? name the new place with "
                "--data DIR"
            )

    def require(self, name: str, verb: str) -> Path:
        """Return the path of a file an earlier verb wrote.

        Raises:
            HwnasError: If it is not there; says which verb writes it.
        """
        path = self.folder / name
        if not is_there(path):
            _ = self.settings  # a run that does not exist says that instead
            raise HwnasError(f"{path} is not there yet; run first: {self.command(verb)}")
        return path

    def command(self, verb: str) -> str:
        """Return the command line of a verb for this run."""
        if verb not in ("profile", "search"):
            return f"hwnas {verb} {self.name}"
        settings = self.settings  # these two name the recipe, which the run need not be called by
        recipe = settings.recipe if settings.source is None else settings.source.written(RUNS.parent)
        words = ["hwnas", verb, recipe, *(() if settings.recipe == self.name else ("--run", self.name))]
        if not (self.folder / "run.json").exists():  # else the run has them
            words += [] if settings.data in (None, self.recipe.data) else ["--data", str(settings.data)]
            set_by_name = {k: v for k, v in (settings.overrides or {}).items() if k not in self._of_data}
            words += [word for item in set_by_name.items() for word in ("--set", "=".join(item))]
        return shlex.join(words)

    def write_derived(self, derived: Derived) -> None:
        """Write ``arch.json``."""
        records.save(self.folder / "arch.json", derived)

    def derived(self) -> Derived:
        """Read ``arch.json``.

        Raises:
            HwnasError: If it is missing, or not an architecture of the recipe's space.
        """
        out = derived_file.FILE.load(self.require("arch.json", "search"), Derived)
        check(self.recipe.space, out.architecture)
        return out

    def space(self, derived: Derived) -> Space:
        """Return the recipe's space at the scale of a derived network."""
        return self.recipe.space.at(derived.scale)
