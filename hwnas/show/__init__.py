"""Results of jobs for people: tables on a terminal, drawings; each is loaded when it is asked for."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hwnas.show.console import TERMINAL
    from hwnas.show.deriving import derived, front, landing, searched
    from hwnas.show.listing import listed, recipe_changes
    from hwnas.show.pricing import priced
    from hwnas.show.profiling import planned, profiled, within
    from hwnas.show.shipping import exported, trained, validated
    from hwnas.show.surveying import surveyed
    from hwnas.show.tables import checked, content, difference

_HOMES = {
    "console": ("TERMINAL",),
    "deriving": ("derived", "front", "landing", "searched"),
    "listing": ("listed", "recipe_changes"),
    "pricing": ("priced",),
    "profiling": ("planned", "profiled", "within"),
    "shipping": ("exported", "trained", "validated"),
    "surveying": ("surveyed",),
    "tables": ("checked", "content", "difference"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "TERMINAL",
    "checked",
    "content",
    "derived",
    "difference",
    "exported",
    "front",
    "landing",
    "listed",
    "planned",
    "priced",
    "profiled",
    "recipe_changes",
    "searched",
    "surveyed",
    "trained",
    "validated",
    "within",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"hwnas.show.{_HOME[name]}"), name)
