"""Settings of a recipe by their names, as text: ``search.steps=600``."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Mapping, Sequence
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from hwnas.errors import HwnasError, unknown
from hwnas.recipes.base import Recipe
from hwnas.records import choices, class_of, decode, encode, field_types, item_types, needed, plain_types, typed
from hwnas.search.strategy import Strategy
from hwnas.spaces import trace_space

_TRUTHS = {"true": True, "false": False}
_EXPECTED = {int: "a whole number", float: "a number", bool: "true or false", str: "text", NoneType: "none"}


def assignments(texts: Sequence[str]) -> dict[str, str]:
    """Return names and values of settings that are written as ``NAME=VALUE``.

    Raises:
        HwnasError: If one is written otherwise, or one name has two values.
    """
    out: dict[str, str] = {}
    for text in texts:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not (name and equals):
            raise HwnasError(f"a setting is written as NAME=VALUE, such as search.steps=600; got {text!r}")
        if out.setdefault(name, value) != value:
            raise HwnasError(f"{name} is set twice, to {out[name]!r} and to {value!r}")
    return out


def override(recipe: Recipe, settings: Mapping[str, str]) -> Recipe:
    """Return a recipe with other settings.

    Args:
        recipe: The recipe.
        settings: By dotted names; those of a stage's strategy begin with the name of the stage. Where a setting is an
            object of one of several classes, its value is the stable name of a class, or the beginning of one; that
            object has the defaults of its class, and settings of its own.

    Raises:
        HwnasError: If there is no such setting, or its value is of another type or out of range.
    """
    data, stages = encode(recipe, Recipe), [s.name for s in recipe.stages]
    for name in sorted(settings, key=lambda n: n.count(".")):  # which class it is comes before the settings of that
        first, *rest = name.split(".")
        if first in stages:
            stage = data["stages"][stages.index(first)]
            stage["strategy"] = _changed(stage["strategy"], Strategy, rest, settings[name], first)
        elif first == "name":
            raise HwnasError("name is what the recipe is called by, and no setting; name the run with --run")
        elif first not in data:
            raise unknown("setting", first, [*stages, *data])
        else:
            data = _changed(data, Recipe, name.split("."), settings[name])
    changed: Recipe = decode(data, Recipe)
    if changed.space != recipe.space:
        trace_space(changed.space.at(changed.scales()[0]))  # options that no network has are refused here
    return changed


def _changed(data: Any, declared: Any, path: Sequence[str], text: str, at: str = "") -> Any:
    """Return JSON values with another value at a path."""
    if not path:
        return _read(text, declared, data, at)
    here, types = path[0], _types(data, declared, at)
    below = {part: f"{at}.{part}" if at else part for part in (*types, here)}
    if here not in types:
        raise unknown("setting", below.pop(here), below.values())
    key: Any = int(here) if isinstance(data, list) else here
    old = data[key] if isinstance(data, list) else data.get(key)
    new = _changed(old, types[here], path[1:], text, below[here])
    return [*data[:key], new, *data[key + 1 :]] if isinstance(data, list) else data | {key: new}


def _types(data: Any, declared: Any, at: str) -> dict[str, Any]:
    """Return the types of what JSON values are made of, by the names of fields or the positions of items."""
    if isinstance(data, list):
        return {str(i): one for i, one in enumerate(item_types(declared, len(data), at))}
    cls = class_of(data, declared)
    if cls is None:
        raise HwnasError(f"{at} has no settings of its own: it is {data!r}")
    return field_types(cls)


def _read(text: str, declared: Any, data: Any, at: str) -> Any:
    """Return the JSON value that a text stands for.

    Args:
        text: The text.
        declared: The type of the value.
        data: The present value: an object of the class that is named keeps its settings.
        at: Name of the setting.
    """
    plain, known = plain_types(declared), choices(declared)
    if len(plain) == 1 and not known:
        return _plain(text, plain[0], at)
    for one in sorted(plain, key=lambda p: p is str):  # any text is text
        with contextlib.suppress(HwnasError):
            return _plain(text, one, at)
    if known:
        cls = _class(text, known, [_EXPECTED[p] for p in plain if p in _EXPECTED], at)
        if class_of(data, declared) is cls:
            return data
        there = data if isinstance(data, dict) else {}
        new = typed(cls, declared, {name: there[name] for name in needed(cls) if name in there})
        return encode(decode(new, declared, at), declared)  # with its defaults, which can be set in turn
    if isinstance(data, dict):
        raise HwnasError(
            f"{at} has settings of its own: set {', '.join(f'{at}.{n}' for n in _types(data, declared, at))}"
        )
    raise HwnasError(f"{at} should be {' or '.join(_EXPECTED.get(p, str(p)) for p in plain)}, got {text!r}")


def _class(text: str, known: Mapping[str, type], else_: Sequence[str], at: str) -> type:
    """Return the class that a text names: by all of its name, or by what only one of the names begins with."""
    begun = [n for n in known if n.startswith(text) or n.partition("/")[2].startswith(text)]
    names = [n for n in known if n == text] or begun
    if len(names) == 1:
        return known[names[0]]
    if names:
        raise HwnasError(f"{at} {text!r} may be {' or '.join(sorted(names))}; write more of it")
    raise unknown(at, text, [*known, *else_])


def _plain(text: str, declared: Any, at: str) -> Any:
    """Return the number, text, choice or list that a text stands for."""
    if get_origin(declared) is Literal:
        options = {str(option): option for option in get_args(declared)}
        if text not in options:
            raise unknown(at, text, options)
        return options[text]
    if get_origin(declared) in (tuple, list, Sequence):
        parts = [part.strip() for part in re.split(_between(declared), text)] if text else []
        return [
            _read(part, one, None, at) for part, one in zip(parts, item_types(declared, len(parts), at), strict=True)
        ]
    try:
        if declared in (int, float):
            value = declared(text)
            if math.isfinite(value):
                return value
    except ValueError:
        pass
    if declared is bool and text.lower() in _TRUTHS:
        return _TRUTHS[text.lower()]
    if declared is NoneType and text.lower() == "none":
        return None
    if declared is str:
        return text
    raise HwnasError(f"{at} should be {_EXPECTED.get(declared, 'set in the code of a recipe')}, got {text!r}")


def _between(declared: Any) -> str:
    """Return what is between the items of a list: numbers may be written as a size is, 96x128."""
    return "[x,]" if set(get_args(declared)) <= {int, float, Ellipsis} else ","
