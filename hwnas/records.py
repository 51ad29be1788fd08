"""Stored records: frozen dataclasses as JSON files, by one codec, with a version and a checksum.

A field that is declared as one dataclass is an object of its fields. Where a field takes a choice of classes (a union
or a protocol), the object says which by its ``"type"``: the stable name that `stored` gave the class. A class whose
fields have changed may have a static method ``older(fields) -> fields`` that brings those of earlier files to them.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from hwnas.errors import HwnasError
from hwnas.files import canonical_json, read_json, sha256, write_atomic

T = TypeVar("T")
TYPE, SCHEMA, CHECKSUM = "type", "schema", "sha256"
_CLASSES: dict[str, type] = {}
_NAMES: dict[type, str] = {}
_VERSIONS: dict[type, int] = {}


def stored(name: str, version: int = 1) -> Callable[[type[T]], type[T]]:
    """Register a frozen dataclass under the stable name that files know it by.

    Args:
        name: Kept for good, also where the class is renamed.
        version: Of a file that holds one record of it; raised when an older reader would misread the file.
    """

    def register(cls: type[T]) -> type[T]:
        assert is_dataclass(cls), f"{cls.__name__} is no dataclass"
        taken = _CLASSES.get(name)
        assert taken is None or taken.__qualname__ == cls.__qualname__, f"{name!r} is stored already: {taken}"
        _CLASSES[name], _NAMES[cls], _VERSIONS[cls] = cls, name, version
        return cls

    return register


def encode(value: Any, declared: Any = None) -> Any:
    """Return a value as JSON values.

    Args:
        value: A dataclass, a number, text, or containers of them.
        declared: Its type where it is stored: an object of another class than that says which it is.

    Raises:
        HwnasError: If a class has no stable name where one is needed.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    declared = _only(declared) or declared
    if isinstance(value, Mapping):
        item = get_args(declared)[1] if len(get_args(declared)) == 2 else Any
        return {str(k): encode(v, item) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [encode(v, item) for v, item in zip(value, item_types(declared, len(value)), strict=True)]
    cls = type(value)
    if not is_dataclass(cls):
        raise HwnasError(f"a {cls.__name__} cannot be stored: it is no dataclass, number, text or container of them")
    if hasattr(cls, "from_json"):
        out = dict(value.to_json())
    else:
        hints = _hints(cls)
        # What is None by default is left out, so that a file has what there is to say.
        items = {f.name: getattr(value, f.name) for f in fields(cls) if f.init}
        left_out = {f.name for f in fields(cls) if f.default is None and items.get(f.name) is None}
        out = {name: encode(item, hints[name]) for name, item in items.items() if name not in left_out}
    if cls is declared:
        return out
    if cls not in _NAMES:
        raise HwnasError(f"{cls.__name__} has no name that files know it by: put @stored('...') before the class")
    return {TYPE: _NAMES[cls], **out}


def decode(data: Any, declared: Any, at: str = "") -> Any:
    """Return the value that JSON values stand for.

    Args:
        data: As from `encode`.
        declared: The type that is expected.
        at: Where in the file it is, for messages: ``"recipe.search"``.

    Raises:
        HwnasError: If a type, a field or a value is not what is expected.
    """
    if declared in (Any, object):
        return data
    origin, args = get_origin(declared), get_args(declared)
    if origin is Literal:
        return _expect(data in args, data, args, at)
    if origin in (tuple, list, Sequence):
        _expect(isinstance(data, list), data, "a list", at)
        items = item_types(declared, len(data), at)
        values = [decode(d, t, f"{at}[{i}]") for i, (d, t) in enumerate(zip(data, items, strict=True))]
        return values if origin is list else tuple(values)
    if origin in (dict, Mapping):
        _expect(isinstance(data, dict), data, "an object", at)
        return {k: decode(v, args[1], _join(at, k)) for k, v in data.items()}
    if _is_choice(declared):
        return _choose(data, declared, at)
    if declared is float:
        _expect(isinstance(data, int | float) and not isinstance(data, bool), data, "a number", at)
        return float(data)
    if declared in (int, str, bool):
        return _expect(type(data) is declared, data, f"of type {declared.__name__}", at)
    return _object(declared, data, at)


def _choose(data: Any, declared: Any, at: str) -> Any:
    """Decode what is one of several types."""
    members = _members(declared)
    if data is None and types.NoneType in members:
        return None
    if not isinstance(data, dict) or TYPE not in data:
        only = _only(declared)
        if only is not None:
            return decode(data, only, at)
        for member in members:
            if not _is_object(member):
                with contextlib.suppress(HwnasError):
                    return decode(data, member, at)
        return _expect(ok=False, data=data, expected=f"one of {declared}, an object with its 'type'", at=at)
    name = data[TYPE]
    if name not in _CLASSES:
        known = ", ".join(sorted(_CLASSES))
        raise HwnasError(
            f"{at or 'it'} is of the type {name!r}, which is not known here; import the module that defines it, or use "
            f"the version of hwnas that wrote it (known: {known})"
        )
    cls = _CLASSES[name]
    _expect(any(_fits(cls, m) for m in members), name, f"a type that is one of {declared}", f"{at}.type")
    return _object(cls, {k: v for k, v in data.items() if k != TYPE}, at)


def _object(cls: Any, data: Any, at: str) -> Any:
    _expect(isinstance(data, dict), data, f"an object of {cls.__name__}", at)
    derived = _CLASSES.get(str(data.get(TYPE)))
    if TYPE in data and derived is not None and derived is not cls and issubclass(derived, cls):
        cls, data = derived, {k: v for k, v in data.items() if k != TYPE}
    if hasattr(cls, "from_json"):
        return cls.from_json(data)
    if hasattr(cls, "older"):
        data = cls.older(data)
    declared = field_types(cls)
    odd = sorted(data.keys() - declared.keys())
    lacking = [name for name in needed(cls) if name not in data]
    if odd or lacking:
        what = f"has no {odd[0]!r}" if odd else f"needs {lacking[0]!r}"
        raise HwnasError(f"{at or 'it'} {what}: a {cls.__name__} has {', '.join(declared)}")
    return cls(**{name: decode(value, declared[name], _join(at, name)) for name, value in data.items()})


def field_types(cls: type) -> dict[str, Any]:
    """Return the declared types of the fields that an object of a class is made of."""
    return {f.name: _hints(cls)[f.name] for f in fields(cls) if f.init}


def needed(cls: type) -> list[str]:
    """Return the fields of a class that have no default."""
    return [f.name for f in fields(cls) if f.init and f.default is f.default_factory is MISSING]


def item_types(declared: Any, length: int, at: str = "") -> list[Any]:
    """Return the types of the items of a list or tuple.

    Raises:
        HwnasError: If it has another number of items.
    """
    args = get_args(declared)
    if get_origin(declared) is not tuple or (len(args) == 2 and args[1] is Ellipsis):
        return [args[0] if args else Any] * length
    if len(args) != length:
        raise HwnasError(f"{at} should have {len(args)} items, got {length}")
    return list(args)


def plain_types(declared: Any) -> list[Any]:
    """Return what a value can be of besides objects: numbers, text, choices, containers, None."""
    return [m for m in _members(declared) if not _is_object(m)]


def choices(declared: Any) -> dict[str, type]:
    """Return the classes that a value can be of, by their stable names; a protocol is met by what has its members."""
    return {name: cls for name, cls in _CLASSES.items() if any(_fits(cls, m) for m in _members(declared))}


def class_of(data: Any, declared: Any) -> type | None:
    """Return the class of the object that JSON values stand for; None if they are none."""
    if not isinstance(data, dict):
        return None
    only = _only(declared)
    return _CLASSES.get(data[TYPE]) if TYPE in data else only if _is_object(only) else None


def typed(cls: type, declared: Any, content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the object of a class with a stable name, which it says where another one could be."""
    return dict(content) if cls is _only(declared) else {TYPE: _NAMES[cls], **content}


def names_in(data: Any) -> set[str]:
    """Return the stable names of the classes that JSON values say."""
    if isinstance(data, dict):
        own = {data[TYPE]} & _CLASSES.keys() if isinstance(data.get(TYPE), str) else set()
        return own.union(*map(names_in, data.values()))
    return set().union(*map(names_in, data)) if isinstance(data, list) else set()


def class_named(name: str) -> type | None:
    """Return the class of a stable name, None where nothing that was imported has it."""
    return _CLASSES.get(name)


def _fits(cls: type, declared: Any) -> bool:
    if not _is_object(declared):
        return False
    if not _is_protocol(declared) or declared in cls.__mro__:
        return declared in cls.__mro__
    bases = [b for b in declared.__mro__ if _is_protocol(b)]
    members = {n for b in bases for n in (*vars(b), *inspect.get_annotations(b)) if not n.startswith("_")}
    own = {f.name for f in fields(cls)}
    return all(n in own or hasattr(cls, n) for n in members)


def save(path: Path, record: Any, indent: int | None = None) -> None:
    """Write a record to a file; with `indent` for people to read, in the order of its fields.

    Raises:
        HwnasError: If it could not be read again: it holds what a file may not hold, or a value of another type than is
            declared. Nothing is written then.
    """
    body = encode(record, type(record))
    try:
        text = text_of(signed({SCHEMA: _VERSIONS[type(record)], **body}), indent)
        decode(json.loads(json.dumps(body)), type(record))
    except (HwnasError, ValueError) as e:
        raise HwnasError(f"{path} is not written, for it could not be read again: {e}") from e
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, text)


def text_of(content: Mapping[str, Any], indent: int | None = None) -> str:
    """Return the text of a file that has this content."""
    return (canonical_json(content) if indent is None else json.dumps(content, indent=indent, allow_nan=False)) + "\n"


def signed(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of a file with its checksum."""
    body = {k: v for k, v in content.items() if k != CHECKSUM}
    return body | {CHECKSUM: sha256(canonical_json(body))}


@dataclass(frozen=True)
class File:
    """How a kind of file is read.

    Attributes:
        what: It is, for messages: ``"a report"``.
        mend: What to do where it cannot be read: ``"search again"``.
        older: Brings the content of an older version to the present one; None where those are refused.
        prepare: Called with path and content before these are read: imports what registers the classes in them.
    """

    what: str
    mend: str
    older: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    prepare: Callable[[Path, dict[str, Any]], None] | None = None

    def load(self, path: Path, cls: type[T]) -> T:
        """Read a record.

        Raises:
            HwnasError: If the file is missing, damaged, of another version, or holds something else.
        """
        data = read_json(path, self.what)
        version = _VERSIONS[cls]
        if not isinstance(data, dict):
            raise HwnasError(f"{path} is not {self.what}: an object was expected; {self.mend}")
        there = data.get(SCHEMA, 1)
        body, upgrade = {k: v for k, v in data.items() if k not in (SCHEMA, CHECKSUM)}, None
        if there == 1 < version and CHECKSUM not in data and self.older is not None:
            upgrade = self.older  # written before there were checksums
        elif there != version:
            raise HwnasError(f"{path} is of version {there!r}, this hwnas reads {version}; {self.mend}")
        elif data.get(CHECKSUM) != signed(data)[CHECKSUM]:
            raise HwnasError(f"{path} is not {self.what}: its checksum does not fit, so it was damaged; {self.mend}")
        if self.prepare is not None:
            self.prepare(path, body)
        try:
            record: T = decode(body if upgrade is None else upgrade(body), cls)
        except (HwnasError, ValueError, TypeError, KeyError, AttributeError, OverflowError) as e:
            raise HwnasError(f"{path} is not {self.what}: {e}; {self.mend}") from e
        return record


@dataclass(frozen=True)
class Difference:
    """A setting that two records have otherwise.

    Attributes:
        name: Dotted: ``"search.steps"``.
        old: As JSON values, None where it was not there.
        new: The same of the other record.
    """

    name: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.name} {canonical_json(self.old)}, now {canonical_json(self.new)}"


def differences(old: Any, new: Any) -> tuple[Difference, ...]:
    """Return what two records have otherwise, by name."""
    a, b = (_flat(encode(r, type(r))) for r in (old, new))
    return tuple(Difference(k, a.get(k), b.get(k)) for k in sorted(a.keys() | b.keys()) if a.get(k) != b.get(k))


def _flat(data: Any, at: str = "") -> dict[str, Any]:
    if isinstance(data, list) and data and all(isinstance(item, dict) and "name" in item for item in data):
        data = {str(item["name"]): item for item in data}
    if not isinstance(data, dict) or not data:
        return {at: data}
    return {k: v for name, value in data.items() for k, v in _flat(value, _join(at, name)).items()}


def _join(at: str, name: str) -> str:
    return f"{at}.{name}" if at else name


@cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _members(declared: Any) -> tuple[Any, ...]:
    return get_args(declared) if get_origin(declared) in (Union, types.UnionType) else (declared,)


def _is_protocol(declared: Any) -> bool:
    return bool(getattr(declared, "_is_protocol", False))


def _is_object(declared: Any) -> bool:
    return is_dataclass(declared) or _is_protocol(declared)


def _is_choice(declared: Any) -> bool:
    return len(_members(declared)) > 1 or _is_protocol(declared)


def _only(declared: Any) -> Any:
    """Return the one class that a value can be of, if it is not None; None where it is a choice."""
    members = [m for m in _members(declared) if m is not types.NoneType]
    return members[0] if len(members) == 1 and not _is_protocol(members[0]) else None


def _expect(ok: bool, data: Any, expected: Any, at: str) -> Any:
    if not ok:
        raise HwnasError(f"{at or 'it'} should be {expected}, got {str(data)[:80]!r}")
    return data
