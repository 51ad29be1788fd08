"""Recipes in files of the user's own: ``my_recipes.py:darts_longer``."""

from __future__ import annotations

import importlib.util
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FunctionType, ModuleType

from hwnas.errors import HwnasError, RecipeFileError, unknown
from hwnas.files import sha256
from hwnas.recipes.base import Recipe
from hwnas.recipes.base import get as registered

_WRITTEN = re.compile(r"(?P<path>.+\.py)(:(?P<function>.*))?")


@dataclass(frozen=True)
class Source:
    """The function that a run's recipe is from.

    Attributes:
        path: Of its file, absolute.
        function: Its name.
        sha256: Of the file, when the run was made.
        beside: The path from the folder that has the runs, None if the file is not below it.
    """

    path: str
    function: str
    sha256: str
    beside: str | None = None

    @classmethod
    def of(cls, path: Path, function: str, home: Path) -> Source:
        """Return the source in a file that is there; `home` is the folder that has the runs."""
        path, home = path.resolve(), home.resolve()
        beside = str(path.relative_to(home)) if path.is_relative_to(home) else None
        return cls(str(path), function, sha256(_content(path)), beside)

    def locate(self, home: Path) -> Path:
        """Return where the file is now: rather where it is as it was; folders may have been moved or copied.

        Raises:
            RecipeFileError: If it is not there.
        """
        places = [Path(self.path)] if self.beside is None else [home.resolve() / self.beside, Path(self.path)]
        there = [p for p in places if p.is_file()]
        if not there:
            raise RecipeFileError(
                f"its recipe is from {self.path}:{self.function}, and the file is not there; put it back"
                + ("" if self.beside is None else f", or at {home.resolve() / self.beside}")
            )
        return next((p for p in there if not self.has_changed(p)), there[0])

    def has_changed(self, path: Path) -> bool:
        """Tell whether a file is another one than that the run was made with."""
        return sha256(_content(path)) != self.sha256

    def is_like(self, other: Source) -> bool:
        """Tell whether it is the function of another source, in that file or in one like it."""
        return self.function == other.function and (self.path == other.path or self.sha256 == other.sha256)

    def written(self, home: Path) -> str:
        """Return it as the command line takes it, from the present directory."""
        try:
            path = self.locate(home)
        except RecipeFileError:
            path = Path(self.path)
        here = Path.cwd().resolve()
        return f"{path.relative_to(here) if path.is_relative_to(here) else path}:{self.function}"


def split(text: str) -> tuple[Path, str] | None:
    """Return the file and the function that a user names; None for the name of a recipe.

    Raises:
        HwnasError: If the function is missing.
    """
    found = _WRITTEN.fullmatch(text)
    if found is None:
        return None
    if not found["function"]:
        raise HwnasError(f"{text} is a file of recipes; name the function too: {found['path']}:FUNCTION")
    return Path(found["path"]), found["function"]


def name_of(text: str) -> str:
    """Return the name of the recipe that a user names, which runs are called by."""
    found = split(text)
    return text if found is None else _name(found[1])


def load(text: str) -> Recipe:
    """Return the recipe that a user names, be it registered or of a file.

    Raises:
        HwnasError: If there is none of this name; the message has the nearest.
        RecipeFileError: If the file cannot be imported, or its function gives no recipe.
    """
    found = split(text)
    return registered(text) if found is None else call(*found)


def call(path: Path, function: str) -> Recipe:
    """Return the recipe of a function of a file, under the function's name."""
    module = import_file(path)
    own = {n: f for n, f in vars(module).items() if isinstance(f, FunctionType) and f.__module__ == module.__name__}
    if function not in own:
        raise unknown(f"function of {path}", function, (n for n in own if not n.startswith("_")))
    with _said(path):
        made = own[function]()
    if not isinstance(made, Recipe):
        raise RecipeFileError(f"{path}:{function} should return a Recipe, got a {type(made).__name__}")
    return replace(made, name=_name(function))


def import_file(path: Path) -> ModuleType:
    """Import a file, so that what it registers is there; one that was imported is not imported again.

    Files beside it can be imported by it.

    Raises:
        RecipeFileError: If that fails; says where.
    """
    content, own = _content(path), path.resolve()
    for module in list(sys.modules.values()):
        there = getattr(module, "__file__", None)
        if there is not None and Path(there).resolve() == own:
            return module
    name = f"hwnas_recipes_{sha256(str(own))[:16]}"
    spec = importlib.util.spec_from_file_location(name, own)
    assert spec is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    if str(own.parent) not in sys.path:
        sys.path.append(str(own.parent))
    try:
        with _said(path):
            exec(compile(content, str(own), "exec"), vars(module))  # noqa: S102 - what the user asks for
    except RecipeFileError:
        del sys.modules[name]
        raise
    return module


@contextmanager
def _said(path: Path) -> Iterator[None]:
    """Turn whatever a user's file raises into one line that says where."""
    try:
        yield
    except (Exception, SystemExit) as e:
        own = str(path.resolve())
        lines = [f.lineno for f in traceback.extract_tb(e.__traceback__) if f.filename == own]
        if isinstance(e, SyntaxError) and e.filename == own:
            lines.append(e.lineno)
        where = f"{path}:{lines[-1]}" if lines else str(path)
        raise RecipeFileError(f"{where}: {type(e).__name__}: {e}") from e


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as e:
        raise RecipeFileError(f"cannot read recipes at {path}: {e.strerror}") from e


def _name(function: str) -> str:
    return function.replace("_", "-")
