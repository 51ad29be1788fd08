"""Drawings, where matplotlib is installed."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hwnas.errors import MissingExtra
from hwnas.files import write_atomic
from hwnas.jobs.fronts import FrontPoint
from hwnas.optional import require


def picture(path: Path, draw: Callable[[Any], None]) -> str:
    """Write what `draw` draws into a figure of matplotlib, as SVG; return what there is to say about the file."""
    try:
        figure_of = require("matplotlib.figure", "report").Figure
        matplotlib = require("matplotlib", "report")
    except MissingExtra as e:
        return f"none: {e}"
    content = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "hwnas"}):  # else the same picture is another file each time
        figure = figure_of(layout="constrained")
        draw(figure)
        figure.savefig(content, format="svg", metadata={"Date": None})
    write_atomic(path, content.getvalue())
    return str(path)


def draw_front(path: Path, points: Sequence[FrontPoint], title: str) -> str:
    """Draw latency against utility; return what there is to say about the file."""

    def draw(figure: Any) -> None:
        figure.set_size_inches(7, 4.5)
        axes = figure.add_subplot(xlabel="predicted latency, ms (95 % interval)", ylabel="utility", title=title)
        for scale in dict.fromkeys(p.scale for p in points):
            own = [p for p in points if p.scale == scale]
            ends = [p.interval_ms or (p.predicted_ms, p.predicted_ms) for p in own]
            errors = [[p.predicted_ms - low for p, (low, _) in zip(own, ends, strict=True)]]
            errors.append([high - p.predicted_ms for p, (_, high) in zip(own, ends, strict=True)])
            label = f"{scale.channels} channels, {scale.cells} cells"
            x, y = [p.predicted_ms for p in own], [p.utility for p in own]
            axes.errorbar(x, y, xerr=errors, marker="o", capsize=2, label=label)
        axes.legend()
        axes.grid(alpha=0.3)

    return picture(path, draw)
