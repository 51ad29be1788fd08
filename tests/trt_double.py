"""Doubles of TensorRT releases, made of their real interfaces by `scripts/trt_api.py`: what one lacks, they lack."""

from __future__ import annotations

import enum
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

APIS = Path(__file__).resolve().parent / "data"
RELEASES = tuple(sorted(p.stem for p in APIS.glob("tensorrt*.json")))


class TrtDouble(ModuleType):
    """A module with the classes of a release.

    Attributes:
        calls: ``(class, method, arguments)`` of every call and ``(class, "=name", (value,))`` of every assignment.
        returns: What methods return, by ``"Class.method"``; None where there is nothing.
    """

    def __init__(self, release: str) -> None:
        """Read the interface of a release, one of `RELEASES`."""
        super().__init__("tensorrt")
        self.__version__ = release.partition("-")[2]
        self.calls: list[tuple[str, str, tuple[object, ...]]] = []
        self.returns: dict[str, object | Callable[..., object]] = {}
        api: dict[str, dict[str, list[str]]] = json.loads((APIS / f"{release}.json").read_text())
        for name in sorted(api, key=lambda n: n.count(".")):
            outer, _, last = name.rpartition(".")
            owner = getattr(self, outer) if outer else self
            setattr(owner, last, self._kind(last, api[name]))

    def made(self, kind: str, *names: str) -> list[tuple[str, tuple[object, ...]]]:
        """Return the calls and assignments of a class by name, in order."""
        return [(n, a) for k, n, a in self.calls if k == kind and (not names or n in names)]

    def _kind(self, name: str, api: dict[str, list[str]]) -> Any:
        if "value" in api["properties"]:
            return enum.IntEnum(name, [(member, i) for i, member in enumerate(api["members"])])
        return _class(self, name, api)


def _class(double: TrtDouble, name: str, api: dict[str, list[str]]) -> Any:
    """Return a class with the methods and properties of an interface, and no others."""
    known = {*api["methods"], *api["properties"]}

    class Double:
        def __init__(self, *arguments: object) -> None:
            double.calls.append((name, "()", arguments))

        def __getattr__(self, attribute: str) -> Callable[..., object]:
            if attribute not in api["methods"]:
                raise AttributeError(f"{double.__version__}: {name} has no {attribute}")

            def method(*arguments: object) -> object:
                double.calls.append((name, attribute, arguments))
                own = self.__dict__.get("returns_", {})
                value = own.get(attribute, double.returns.get(f"{name}.{attribute}"))
                return value(*arguments) if callable(value) else value

            return method

        def __setattr__(self, attribute: str, value: object) -> None:
            own = type(self).__init__ is not Double.__init__  # a subclass of ours has attributes of its own
            if attribute not in api["properties"] and not own:
                raise AttributeError(f"{double.__version__}: {name} has no {attribute} to set")
            double.calls.append((name, f"={attribute}", (value,)))
            object.__setattr__(self, attribute, value)

    Double.__name__ = name
    Double.api_ = api  # type: ignore[attr-defined]
    for attribute in api["properties"]:
        setattr(Double, attribute, None)
    assert known.isdisjoint(api["members"])
    return Double


def answers(double: Any, **returns: object) -> Any:
    """Say what methods of one object of a double return, and what its properties are; return it."""
    for attribute, value in returns.items():
        if attribute in double.api_["properties"]:
            object.__setattr__(double, attribute, value)
        else:
            assert attribute in double.api_["methods"], f"{type(double).__name__} has no {attribute}"
            double.__dict__.setdefault("returns_", {})[attribute] = value
    return double
