"""The best network at each of many budgets, from one search."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hwnas import records
from hwnas.derived import Demands
from hwnas.errors import HwnasError
from hwnas.jobs.deriving import open_contest
from hwnas.jobs.inputs import open_table, settle_data
from hwnas.problem import Architecture
from hwnas.progress import SILENT, Reporter
from hwnas.records import File, stored
from hwnas.run import Run
from hwnas.search.front import Point, pareto_front
from hwnas.spaces import Scale


@dataclass(frozen=True)
class FrontSettings:
    """Which front.

    Attributes:
        points: Number of budgets.
        table: Latency table; None for the run's own.
        foreign_table: Whether one of another device will do.
        demands: What else the networks must be; neither candidates nor a rerank, which are for one budget.
    """

    points: int
    table: Path | None = None
    foreign_table: bool = False
    demands: Demands = field(default_factory=Demands)

    def __post_init__(self) -> None:
        if self.demands.candidates is not None or self.demands.rerank is not None:
            raise HwnasError("--candidates and --rerank are for one budget, not for --pareto")
        if self.demands.measure:
            raise HwnasError("--measure is for one budget: derive at one of the front's with it")


@dataclass(frozen=True)
class FrontPoint:
    """A network of a front, and the command that derives it."""

    fps: float
    budget_ms: float
    predicted_ms: float
    interval_ms: tuple[float, float] | None
    score: float
    utility: float
    scale: Scale
    architecture: Architecture
    command: str


@stored("front", version=2)
@dataclass(frozen=True)
class Front:
    """What `pareto.json` holds.

    Attributes:
        asked: Number of budgets; those that gave the same network as another have no point.
        table: Name of the latency table.
        demands: What else was asked for.
        points: Fastest first.
    """

    asked: int
    table: str
    demands: Demands
    points: tuple[FrontPoint, ...]


FILE = File("a front", "remove it to make it anew")


@dataclass(frozen=True)
class FrontResult:
    """A front and its file."""

    front: Front
    path: Path


def front(run: Run, settings: FrontSettings, report: Reporter = SILENT) -> FrontResult:
    """Derive at many budgets from what a run found, and keep it as ``pareto.json``.

    Raises:
        HwnasError: If the run holds another front.
    """
    table = open_table(run, settings.table, settings.foreign_table)
    with run.locked():
        settle_data(run, report, read=False)
        contest = open_contest(run, table, settings.demands)
        with report.bar("front", settings.points) as update:
            points = pareto_front(contest, settings.points, update)
        flags = ("" if settings.table is None else f" --table {shlex.quote(str(settings.table))}") + (
            " --foreign-table" if settings.foreign_table else ""
        )
        commands = _commands(run.name, points, flags + settings.demands.flags())
        kept = tuple(_point(p, c) for p, c in zip(points, commands, strict=True))
        new, path = Front(settings.points, table.name, settings.demands, kept), run.folder / "pareto.json"
        if path.exists() and FILE.load(path, Front) != new:
            raise HwnasError(f"{path} holds another front; remove it to make this one")
        records.save(path, new)
        return FrontResult(new, path)


def _point(point: Point, command: str) -> FrontPoint:
    c = point.candidate
    assert c.arch is not None
    return FrontPoint(
        float(point.fps), point.budget_ms, c.latency_ms, c.interval_ms, c.score, c.utility, c.scale, c.arch, command
    )


def _commands(name: str, points: Sequence[Point], flags: str) -> list[str]:
    """Return the commands that derive the points, each into a run of another name."""
    short = [f"{1000 / p.budget_ms:.0f}" for p in points]
    to = ["" if short.count(s) == 1 else f" --to {name}-{p.fps}fps" for s, p in zip(short, points, strict=True)]
    return [f"hwnas derive {name} --fps {p.fps}{flags}{t}" for p, t in zip(points, to, strict=True)]
