"""What a table says a network takes, op by op, and whether another one is faster."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hwnas import recipes
from hwnas.complexity import Complexity, complexity
from hwnas.errors import HwnasError
from hwnas.files import may_be_file, read_json
from hwnas.jobs.tables import find_table, recipe_beside, require_here
from hwnas.latency.diff import order
from hwnas.latency.model import LatencyModel
from hwnas.latency.table import LatencyTable
from hwnas.ops.trace import Call, Term
from hwnas.problem import ALWAYS, Architecture
from hwnas.progress import SILENT, Reporter
from hwnas.recipes import Recipe
from hwnas.records import CHECKSUM, signed
from hwnas.run import Run
from hwnas.spaces import Scale, Space, check, own_space, published, published_names, trace_space


@dataclass(frozen=True)
class Network:
    """A network that was named on the command line.

    Attributes:
        name: What it was named by.
        space: What it is of.
        scale: What it is built at.
        arch: Complete.
        recipe: Name of the recipe that it is of, or that says its size and classes; None for neither.
        folder: That of its run, which may have a table; None outside of a run.
    """

    name: str
    space: Space
    scale: Scale
    arch: Architecture
    recipe: str | None = None
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
        complexity: Its multiply-adds and parameters.
    """

    network: Network
    ms: float
    interval_ms: tuple[float, float] | None
    base_ms: float
    items: tuple[Item, ...]
    complexity: Complexity

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
        return _by_part(self.items)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object."""
        return {
            "network": self.network.name,
            "recipe": self.network.recipe,
            "architecture": self.network.arch.to_json(),
            "scale": self.network.scale.to_json(),
            "predicted_ms": self.ms,
            "interval_ms": self.interval_ms,
            "fps": 1000 / self.ms,
            "base_ms": self.base_ms,
            "searched_ms": self.searched_ms,
            "macs": self.complexity.macs,
            "params": self.complexity.params,
            "by_kind": {kind: {"count": count, "ms": ms} for kind, (count, ms) in self.by_kind().items()},
            "by_part": self.by_part(),
            "ops": [
                {k: getattr(i, k) for k in ("key", "count", "ms", "ci_ms", "searched", "modules")} for i in self.items
            ],
        }


def _by_part(items: Iterable[Item]) -> dict[str, float]:
    out: dict[str, float] = {}
    for item in items:
        for part, n in item.modules.items():
            out[part] = out.get(part, 0.0) + n * item.ms
    return dict(sorted(out.items(), key=lambda part: _rank(part[0])))


def _rank(part: str) -> tuple[int, int, str]:
    """Return where a part belongs: stem, cells by number, the rest."""
    name, _, number = part.partition(".")
    return (0 if name.startswith("stem") else 1 if number else 2), int(number or 0), part


def find_network(name: str, recipe: str | None = None, like: Network | None = None) -> Network:
    """Return the network that a user names.

    Args:
        name: A published network, a file that holds an architecture, or a run that has a derived network.
        recipe: Of a network that does not say its own. Of a published network that is a space of its own, its size and
            classes; None for those it was published for.
        like: A network whose recipe and scale another one has that does not say its own.

    Raises:
        HwnasError: If there is no such network, its recipe is not known, or it does not fit the recipe's space.
    """
    recipe = recipe if like is None else like.recipe
    if name in published_names():
        return _published(name, recipe, like)
    path = Path(name)
    if may_be_file(name) or path.suffix == ".json":
        return _from_file(path, recipe, None if like is None else like.scale)
    run = Run(name)
    derived = run.derived()
    return Network(name, run.recipe.space, derived.scale, derived.architecture, run.recipe.name, run.folder)


def _published(name: str, recipe: str | None, like: Network | None) -> Network:
    if (space := own_space(name)) is None:
        of = _recipe(name, None, recipe)
        scale = of.space.scale if like is None else like.scale
        return Network(name, of.space, scale, published(name, of.space), of.name)
    model = like.space.at(like.scale) if like is not None else None if recipe is None else recipes.get(recipe).space
    if model is not None:
        space = own_space(name, model.scale.size, model.classes) or space
    return Network(name, space, space.scale, published(name, space), recipe)


def _from_file(path: Path, recipe: str | None, scale: Scale | None) -> Network:
    """Read ``arch.json`` of a run, or an object with ``architecture`` and perhaps ``scale`` and ``recipe``."""
    data = read_json(path, "an architecture")
    if not isinstance(data, dict) or "architecture" not in data:
        raise HwnasError(f"{path}: an object with 'architecture', as hwnas search writes it, was expected")
    if CHECKSUM in data and data[CHECKSUM] != signed(data)[CHECKSUM]:
        raise HwnasError(
            f"{path} is not an architecture: its checksum does not fit, so it was changed; derive it again"
        )
    beside = None if "recipe" in data else recipe_beside(path)
    of = beside or _recipe(str(path), data.get("recipe"), recipe)
    own_scale = _scale(path, data["scale"]) if "scale" in data else scale or of.space.scale
    arch = Architecture.from_json(data["architecture"])
    check(of.space, arch)
    return Network(str(path), of.space, own_scale, arch, of.name, None if beside is None else path.parent)


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


def parts_ms(space: Space, arch: Architecture, table: LatencyTable) -> dict[str, float]:
    """Return what each part of a network takes, as `Price.by_part` does, without asking what the search decided.

    Args:
        space: At the deployment scale.
        arch: Complete.
        table: Has all its ops.
    """
    calls = trace_space(space, arch, merge=bool(table.where["merges"])).calls
    return _by_part(_item(own, True, table) for own in _grouped((call, True) for call in calls).values())


def price_network(network: Network, table: LatencyTable) -> Price:
    """Price a network op by op.

    Raises:
        MissingOp: If the table lacks one of its ops.
    """
    space, merge = network.space.at(network.scale), bool(table.where["merges"])
    # The trace of all alternatives tells what is there whatever was decided; that of the network alone would not.
    mixed = trace_space(space, merge=merge)
    if any(c.gate.counted for c in mixed.calls):
        # What lies on paths is written down once for all layers; the network itself tells where it is.
        always = {c.spec for c in mixed.calls if c.gate == ALWAYS}
        calls = list(trace_space(space, network.arch, merge=merge).calls)
        grouped = _grouped((call, call.spec not in always) for call in calls)
    else:
        calls = [c for c in mixed.calls if c.gate.holds(network.arch)]
        grouped = _grouped((call, call.gate != ALWAYS) for call in calls)
    model = LatencyModel([Term(c.spec, c.gate) for c in calls], table, space.problem)
    items = sorted((_item(own, searched, table) for (_, searched), own in grouped.items()), key=lambda i: -i.total_ms)
    ms = model.predict_ms(network.arch)
    return Price(
        network, ms, model.interval_ms(network.arch), model.base_ms, tuple(items), complexity(space, network.arch)
    )


def _grouped(calls: Iterable[tuple[Call, bool]]) -> dict[tuple[str, bool], list[Call]]:
    """Return calls by what they compute and whether the search decides on them."""
    grouped: dict[tuple[str, bool], list[Call]] = {}
    for call, searched in calls:
        grouped.setdefault((call.spec.key, searched), []).append(call)
    return grouped


def _item(calls: list[Call], searched: bool, table: LatencyTable) -> Item:
    spec = calls[0].spec
    row = table.rows[spec.key]
    modules: dict[str, int] = {}
    for call in calls:
        first, second, *_ = [*call.name.split("."), ""]
        part = f"{first}.{second}" if second.isdigit() else first
        modules[part] = modules.get(part, 0) + 1
    ms, low_ms, high_ms = (table.correction.priced(spec.kind, ms) for ms in (row.latency_ms, *row.ci_ms))
    return Item(spec.key, spec.kind, ms, (low_ms, high_ms), modules, searched)


@dataclass(frozen=True)
class PriceSettings:
    """What is priced.

    Attributes:
        network: Its name, see `find_network`.
        table: See `find_table`; None for that of the network's run.
        foreign_table: Whether one of another device will do.
        recipe: Of a network that does not say its own; see `find_network`.
        channels: Width to price it at; None for its own, else that of the recipe.
        compare: A network to compare it with by the same table; of the same recipe and scale if it does not say its
            own.
    """

    network: str
    table: str | None = None
    foreign_table: bool = False
    recipe: str | None = None
    channels: int | None = None
    compare: str | None = None


@dataclass(frozen=True)
class PriceResult:
    """What networks take by a table.

    Attributes:
        table: It.
        price: Of the network.
        other: Of the one it was compared with, None without.
        verdict: What the network is beside that: ``"faster"``, ``"slower"`` or ``"cannot tell"``.
    """

    table: LatencyTable
    price: Price
    other: Price | None = None
    verdict: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object."""
        out = {"table": str(self.table.path), "device": self.table.name, **self.price.to_json()}
        compared = {} if self.other is None else {"compare": {**self.other.to_json(), "verdict": self.verdict}}
        return out | compared


def price(settings: PriceSettings, report: Reporter = SILENT) -> PriceResult:
    """Price a network by a table, and compare it with another one."""
    del report  # it takes a second or two
    name, recipe = settings.network, settings.recipe
    network = find_network(name, recipe)
    if recipe not in (None, network.recipe):
        raise HwnasError(f"{name} is of the recipe {network.recipe}, not {recipe}; leave out --recipe")
    if settings.channels is not None:
        network = replace(network, scale=replace(network.scale, channels=settings.channels))
    other = None if settings.compare is None else find_network(settings.compare, like=network)
    if settings.table is None and network.folder is None:
        raise HwnasError(f"{name} is of no run that has a latency table; name one with --table")
    table = find_table(settings.table or f"{network.folder}/table.json")
    if not settings.foreign_table:
        require_here(table)
    first = price_network(network, table)
    if other is None:
        return PriceResult(table, first)
    second = price_network(other, table)
    return PriceResult(table, first, second, order(first.ms, second.ms, table.correction.relative_error))
