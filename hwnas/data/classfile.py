"""What a folder says of its classes: ``classes.txt`` or ``classes.json`` (docs/data.md)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from hwnas.data.base import IGNORE_LABEL, ClassList
from hwnas.data.labels import VALUES, Colour, LabelTable, colour_map, numbered
from hwnas.data.lists import read_lines
from hwnas.errors import DataError, HwnasError, unknown
from hwnas.files import read_json

TEXT, JSON = "classes.txt", "classes.json"
_KEYS = ("names", "colours", "void", "values", "rest")


class ClassFile(NamedTuple):
    """The classes of a folder, and what its label files store."""

    classes: ClassList
    labels: LabelTable


def has_classes(folder: Path) -> bool:
    """Tell whether a folder says what its classes are."""
    return (folder / TEXT).is_file() or (folder / JSON).is_file()


def read_classes(folder: Path) -> ClassFile | None:
    """Return what a folder says of its classes; None if it says nothing.

    Raises:
        DataError: If it says it in two files, or one that cannot be used.
    """
    text, described = folder / TEXT, folder / JSON
    if text.is_file() and described.is_file():
        raise DataError(f"{folder} has {TEXT} and {JSON}; keep one of them")
    if described.is_file():
        return _of_json(described)
    if not text.is_file():
        return None
    names = read_names(text)
    return ClassFile(ClassList(names, colour_map(len(names), 1)), LabelTable(numbered(len(names))))


def read_names(path: Path) -> tuple[str, ...]:
    """Return the class names of a text file, one a line.

    Raises:
        DataError: If it cannot be read, is empty, or names a class twice.
    """
    return _checked_names(path, read_lines(path, "one class name a line"))


def _checked_names(path: Path, names: list[Any]) -> tuple[str, ...]:
    good = [n for n in names if isinstance(n, str) and n.strip() and n.isprintable()]
    if len(good) < len(names) or len(set(good)) < len(good) or not 1 <= len(good) <= IGNORE_LABEL:
        raise DataError(
            f"{path} needs 1 to {IGNORE_LABEL} class names, each another printable text, got {len(names)}; correct it"
        )
    return tuple(good)


def _of_json(path: Path) -> ClassFile:
    held = _read_object(path)
    names = _checked_names(path, held["names"])
    palette = _palette(path, held.get("colours"), len(names))
    values: dict[int, int] = {} if "values" in held else numbered(len(names), void=())
    colours: dict[Colour, int] = {}
    if "colours" in held and "values" not in held:
        colours = {c: i for i, c in enumerate(palette)}
        if len(colours) < len(palette):
            raise DataError(f"{path} gives two classes one colour; give each its own")
    void = [(v, IGNORE_LABEL) for v in _void(path, held.get("void"))]
    for key, index in (*void, *_mapped(path, held.get("values", {}), names)):
        if isinstance(key, tuple):
            colours[key] = index
        else:
            values[key] = index
    if {*values.values(), *colours.values()} == {IGNORE_LABEL}:
        raise DataError(f"{path} maps no value to a class; correct its values")
    # a table whose only numbers are void ones is one of colours
    if colours and set(values.values()) == {IGNORE_LABEL}:
        values = {}
    return ClassFile(ClassList(names, palette), LabelTable(values, colours, _rest(path, held.get("rest"))))


def _read_object(path: Path) -> dict[str, Any]:
    try:
        held = read_json(path, "the classes of a dataset")
    except HwnasError as e:
        raise DataError(str(e)) from e
    if not isinstance(held, dict) or not isinstance(held.get("names"), list):
        raise DataError(f'{path} needs an object with "names", a list of class names; write it so')
    held = {"colours" if k == "colors" else k: v for k, v in held.items()}
    for key in held:
        if key not in _KEYS:
            raise DataError(f"{path}: {unknown('key', key, _KEYS)}")
    return held


def _rest(path: Path, held: Any) -> int | None:
    if held not in (None, "void"):
        raise DataError(f'{path} needs "void" for "rest", or nothing, got {held!r}; correct it')
    return None if held is None else IGNORE_LABEL


def _palette(path: Path, colours: Any, n: int) -> tuple[Colour, ...]:
    if colours is None:
        return colour_map(n, 1)
    if not isinstance(colours, list) or len(colours) != n:
        raise DataError(f'{path} needs "colours" as a list of one [red, green, blue] for each of its {n} classes')
    return tuple(_colour(path, c) for c in colours)


def _colour(path: Path, held: Any) -> Colour:
    if isinstance(held, list) and len(held) == 3 and all(type(v) is int and 0 <= v <= 255 for v in held):
        return held[0], held[1], held[2]
    raise DataError(f"{path} needs colours of three whole numbers from 0 to 255, got {held!r}; correct it")


def _void(path: Path, held: Any) -> list[int | Colour]:
    """Return the void values: a value or a colour, or a list of these; 255 if nothing is said."""
    if held is None:
        return [IGNORE_LABEL]
    items = held if isinstance(held, list) else [held]
    return [_colour(path, v) if isinstance(v, list) else _value(path, v) for v in items]


def _value(path: Path, held: Any) -> int:
    if type(held) is int and 0 <= held < VALUES:
        return held
    raise DataError(f"{path} needs values from 0 to {VALUES - 1} or colours, got {held!r}; correct it")


def _mapped(path: Path, held: Any, names: tuple[str, ...]) -> list[tuple[int | Colour, int]]:
    """Return ``"values"``: from ``"7"`` or ``"128,64,128"`` to a class by its name, or null for void."""
    if not isinstance(held, dict):
        raise DataError(f'{path} needs "values" as an object from values of files to class names; correct it')
    out: list[tuple[int | Colour, int]] = []
    for key, name in held.items():
        parts = [p.strip() for p in key.split(",")]
        if not all(p.isdecimal() for p in parts) or len(parts) not in (1, 3):
            raise DataError(f'{path} needs values like "7" or "128,64,128", got {key!r}; correct it')
        numbers = [int(p) for p in parts]
        if name is not None and name not in names:
            raise DataError(f"{path}: {unknown('class', str(name), names)}")
        index = IGNORE_LABEL if name is None else names.index(name)
        out.append((_value(path, numbers[0]) if len(parts) == 1 else _colour(path, numbers), index))
    return out
