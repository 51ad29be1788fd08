"""`hwnas price`: what a table says a network takes, op by op, and whether another one is faster."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from math import expm1
from pathlib import Path
from typing import Any

from hwnas import recipes
from hwnas.errors import HwnasError
from hwnas.files import canonical_json, read_json
from hwnas.latency.diff import least_difference, order
from hwnas.latency.model import LatencyModel
from hwnas.latency.table import LatencyTable
from hwnas.ops.trace import Call, Term
from hwnas.problem import ALWAYS, Architecture
from hwnas.recipes import Recipe
from hwnas.run import Run
from hwnas.spaces import Scale, check, published, published_names, trace_space
from hwnas.ui import console, summary, table
from hwnas.verbs.tables import find_table, recipe_beside, require_here


@dataclass(frozen=True)
class Network:
    """A network that was named on the command line.

    Attributes:
        name: What it was named by.
        recipe: Whose space it is of.
        scale: What it is built at.
        arch: Complete.
        folder: That of its run, which may have a table; None outside of a run.
    """

    name: str
    recipe: Recipe
    scale: Scale
    arch: Architecture
    folder: Path | None = None


@dataclass(frozen=True)
class Item:
    """All calls of one op in a network.

    Attributes:
        key: `OpSpec.key`.
        kind: Kind of the op.
        ms: What one call takes, corrected.
        ci_ms: (low, high) of that; how well ops add up to a network is not in it.
        modules: How often each part of the network calls it.
        searched: Whether the search decided for it; False for what every network of the space has.
    """

    key: str
    kind: str
    ms: float
    ci_ms: tuple[float, float]
    modules: Mapping[str, int]
    searched: bool

    @property
    def count(self) -> int:
        """Number of calls."""
        return sum(self.modules.values())

    @property
    def total_ms(self) -> float:
        """What all calls take."""
        return self.count * self.ms


@dataclass(frozen=True)
class Price:
    """What a network takes by a table.

    Attributes:
        network: The network.
        ms: Predicted latency, upsampling and argmax included.
        interval_ms: (low, high) that holds the measured latency with 95 % confidence; None for an untested table.
        base_ms: What a run takes whatever the network.
        items: Its ops, the dearest first.
    """

    network: Network
    ms: float
    interval_ms: tuple[float, float] | None
    base_ms: float
    items: tuple[Item, ...]

    @property
    def searched_ms(self) -> float:
        """What those ops take that the search decided for."""
        return sum(i.total_ms for i in self.items if i.searched)

    def by_kind(self) -> dict[str, tuple[int, float]]:
        """Return (calls, milliseconds) of each kind of op, the dearest first."""
        out: dict[str, tuple[int, float]] = {}
        for item in self.items:
            count, ms = out.get(item.kind, (0, 0.0))
            out[item.kind] = (count + item.count, ms + item.total_ms)
        return dict(sorted(out.items(), key=lambda kind: -kind[1][1]))

    def by_part(self) -> dict[str, float]:
        """Return the milliseconds of each part of the network, in the order of computation as far as names tell it."""
        out: dict[str, float] = {}
        for item in self.items:
            for part, n in item.modules.items():
                out[part] = out.get(part, 0.0) + n * item.ms
        return dict(sorted(out.items(), key=lambda part: _rank(part[0])))

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object."""
        return {
            "network": self.network.name,
            "recipe": self.network.recipe.name,
            "architecture": self.network.arch.to_json(),
            "scale": self.network.scale.to_json(),
            "predicted_ms": self.ms,
            "interval_ms": self.interval_ms,
            "fps": 1000 / self.ms,
            "base_ms": self.base_ms,
            "searched_ms": self.searched_ms,
            "by_kind": {kind: {"count": count, "ms": ms} for kind, (count, ms) in self.by_kind().items()},
            "by_part": self.by_part(),
            "ops": [
                {k: getattr(i, k) for k in ("key", "count", "ms", "ci_ms", "searched", "modules")} for i in self.items
            ],
        }


def _rank(part: str) -> tuple[int, int, str]:
    """Return where a part belongs: stem, cells by number, the rest."""
    name, _, number = part.partition(".")
    return (0 if name.startswith("stem") else 1 if number else 2), int(number or 0), part


def find_network(name: str, recipe: str | None = None, scale: Scale | None = None) -> Network:
    """Return the network that a user names.

    Args:
        name: A published genotype, a file that holds an architecture, or a run that has a derived network.
        recipe: Of a network that does not say its own.
        scale: Of a network that does not say its own; None for the recipe's.

    Raises:
        HwnasError: If there is no such network, its recipe is not known, or it does not fit the recipe's space.
    """
    if name in published_names():
        of = _recipe(name, None, recipe)
        return Network(name, of, scale or of.space.scale, published(name, of.space))
    path = Path(name)
    if path.is_file() or path.suffix == ".json":
        return _from_file(path, recipe, scale)
    run = Run(name)
    derived = run.derived()
    return Network(name, run.recipe, derived.scale, derived.arch, run.folder)


def _from_file(path: Path, recipe: str | None, scale: Scale | None) -> Network:
    """Read ``arch.json`` of a run, or an object with ``architecture`` and perhaps ``scale`` and ``recipe``."""
    data = read_json(path, "an architecture")
    if not isinstance(data, dict) or "architecture" not in data:
        raise HwnasError(f"{path}: an object with 'architecture', as hwnas search writes it, was expected")
    beside = recipe_beside(path)
    of = _recipe(str(path), data.get("recipe", beside), recipe)
    said = _scale(path, data["scale"]) if "scale" in data else scale or of.space.scale
    arch = Architecture.from_json(data["architecture"])
    check(of.space, arch)
    return Network(str(path), of, said, arch, None if beside is None else path.parent)


def _scale(path: Path, data: Any) -> Scale:
    try:
        scale = Scale(**data)
    except TypeError:
        scale = None
    if scale is None or any(type(v) is not int for v in (scale.channels, scale.cells, *scale.size)):
        raise HwnasError(f"{path}: 'scale' needs whole channels, cells and size (height, width), got {data!r}")
    return scale


def _recipe(name: str, own: str | None, default: str | None) -> Recipe:
    if own is None and default is None:
        raise HwnasError(f"{name} does not say which recipe it is of; name one with --recipe, see hwnas ls")
    return recipes.get(str(default if own is None else own))


def price_network(network: Network, made: LatencyTable) -> Price:
    """Price a network op by op.

    Raises:
        MissingOp: If the table lacks one of its ops.
    """
    space, merge = network.recipe.space.at(network.scale), bool(made.where["merges"])
    # The trace of all alternatives tells what is there whatever was decided; that of the network alone would not.
    mixed = trace_space(space, merge=merge)
    if any(c.gate.walks for c in mixed.calls):
        # What lies on paths is written down once for all layers; the network itself tells where it is.
        always = {c.spec for c in mixed.calls if c.gate == ALWAYS}
        calls = list(trace_space(space, network.arch, merge=merge).calls)
        grouped = _grouped((call, call.spec not in always) for call in calls)
    else:
        calls = [c for c in mixed.calls if c.gate.holds(network.arch)]
        grouped = _grouped((call, call.gate != ALWAYS) for call in calls)
    model = LatencyModel([Term(c.spec, c.gate) for c in calls], made, space.problem)
    items = sorted((_item(own, searched, made) for (_, searched), own in grouped.items()), key=lambda i: -i.total_ms)
    ms = model.predict_ms(network.arch)
    return Price(network, ms, model.interval_ms(network.arch), model.base_ms, tuple(items))


def _grouped(calls: Iterable[tuple[Call, bool]]) -> dict[tuple[str, bool], list[Call]]:
    """Return calls by what they compute and whether the search decides on them."""
    grouped: dict[tuple[str, bool], list[Call]] = {}
    for call, searched in calls:
        grouped.setdefault((call.spec.key, searched), []).append(call)
    return grouped


def _item(calls: list[Call], searched: bool, made: LatencyTable) -> Item:
    spec = calls[0].spec
    row = made.rows[spec.key]
    modules: dict[str, int] = {}
    for call in calls:
        first, second, *_ = [*call.name.split("."), ""]
        part = f"{first}.{second}" if second.isdigit() else first
        modules[part] = modules.get(part, 0) + 1
    ms, low_ms, high_ms = (made.correction.priced(spec.kind, ms) for ms in (row.latency_ms, *row.ci_ms))
    return Item(spec.key, spec.kind, ms, (low_ms, high_ms), modules, searched)


def price(
    name: str,
    table_name: str | None = None,
    foreign: bool = False,
    recipe: str | None = None,
    channels: int | None = None,
    other: str | None = None,
    every: bool = False,
    as_json: bool = False,
) -> None:
    """Print what a network takes by a table.

    Args:
        name: Of the network, see `find_network`.
        table_name: See `find_table`; None for that of the network's run.
        foreign: Whether a table of another device will do.
        recipe: Of a network that does not say its own.
        channels: Width to price it at; None for its own, else that of the recipe.
        other: A network to compare it with by the same table; of the same recipe and scale if it does not say
            its own.
        every: Whether to print every op.
        as_json: Whether to end with one JSON object on a line.
    """
    network = find_network(name, recipe)
    if recipe not in (None, network.recipe.name):
        raise HwnasError(f"{name} is of the recipe {network.recipe.name}, not {recipe}; leave out --recipe")
    if channels is not None:
        network = replace(network, scale=replace(network.scale, channels=channels))
    against = None if other is None else find_network(other, network.recipe.name, network.scale)
    if table_name is None and network.folder is None:
        raise HwnasError(f"{name} is of no run that has a latency table; name one with --table")
    made = find_table(table_name or f"{network.folder}/table.json")
    if not foreign:
        require_here(made)
    found = price_network(network, made)
    report = {"table": str(made.path), "device": made.name, **found.to_json()}
    _show(found, made, every)
    if against is not None:
        second = price_network(against, made)
        verdict = order(found.ms, second.ms, made.correction.relative_error)
        report["compare"] = {**second.to_json(), "verdict": verdict}
        console.print(_verdict(found, second, verdict, made), markup=False)
    if as_json:
        print(canonical_json(report))


def _show(found: Price, made: LatencyTable, every: bool) -> None:
    kinds = [[k, str(n), f"{ms:.4g}", f"{ms / found.ms:.1%}"] for k, (n, ms) in found.by_kind().items()]
    kinds.append(["(base)", "", f"{found.base_ms:.4g}", f"{found.base_ms / found.ms:.1%}"])
    table("by kind of op", ("kind", "calls", "ms", "share"), kinds, numbers=True)
    if every:
        ops = [
            [
                i.key,
                str(i.count),
                f"{i.ms:.4g} ({i.ci_ms[0]:.4g} to {i.ci_ms[1]:.4g})",
                f"{i.total_ms:.4g}",
                f"{i.total_ms / found.ms:.1%}",
                ", ".join(f"{n} {module}" for module, n in i.modules.items()),
            ]
            for i in found.items
        ]
        header = ("op", "calls", "ms each (95 % interval)", "ms", "share", "where")
        table("by op", header, ops, numbers=True)
        parts = [[part, f"{ms:.4g}", f"{ms / found.ms:.1%}"] for part, ms in found.by_part().items()]
        table("by part of the network", ("part", "ms", "share"), parts, numbers=True)
    scale, fixed_ms = found.network.scale, found.ms - found.searched_ms - found.base_ms
    facts: dict[str, object] = {
        "network": f"{found.network.name}: {found.network.arch.id}, {scale.channels} channels, {scale.cells} cells, "
        f"{scale.size[0]}x{scale.size[1]}",
        "table": f"{made.path}, {made.name}",
        "search space": f"{found.searched_ms:.4g} ms ({found.searched_ms / found.ms:.1%}) of ops the search decides on",
        "fixed parts": f"{fixed_ms:.4g} ms ({fixed_ms / found.ms:.1%}) of ops every network of the space has",
        "predicted": f"{found.ms:.4g} ms ({1000 / found.ms:.1f} fps){_interval(found)}",
    }
    summary(facts, None)


def _interval(found: Price) -> str:
    if found.interval_ms is None:
        return "; how far that may be off is not known: the table has no networks it was tested on"
    low_ms, high_ms = found.interval_ms
    return f", with 95 % confidence {low_ms:.4g} to {high_ms:.4g} ms ({1000 / high_ms:.1f} to {1000 / low_ms:.1f} fps)"


def _verdict(a: Price, b: Price, verdict: str, made: LatencyTable) -> str:
    error = made.correction.relative_error
    told = f"{a.network.name} {a.ms:.4g} ms, {b.network.name} {b.ms:.4g} ms ({a.ms / b.ms - 1:+.1%})"
    if error is None:
        return f"{told}: cannot tell: the table has no networks it was tested on"
    if verdict == "cannot tell":
        return f"{told}: cannot tell, the table tells differences of {expm1(least_difference(error)):.1%} and more"
    return f"{told}: {verdict}"
