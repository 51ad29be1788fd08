"""What networks take by a latency table."""

from __future__ import annotations

from math import expm1

from hwnas.jobs.pricing import Price, PriceResult
from hwnas.latency.diff import least_difference
from hwnas.latency.table import LatencyTable
from hwnas.show.console import console, summary, table


def priced(result: PriceResult, every: bool) -> None:
    """Print what a network takes by a table, and how another one compares; `every` prints every op."""
    price, latency = result.price, result.table
    kinds = [[k, str(n), f"{ms:.4g}", f"{ms / price.ms:.1%}"] for k, (n, ms) in price.by_kind().items()]
    kinds.append(["(base)", "", f"{price.base_ms:.4g}", f"{price.base_ms / price.ms:.1%}"])
    table("by kind of op", ("kind", "calls", "ms", "share"), kinds, numbers=True)
    if every:
        ops = [
            [
                i.key,
                str(i.count),
                f"{i.ms:.4g} ({i.ci_ms[0]:.4g} to {i.ci_ms[1]:.4g})",
                f"{i.total_ms:.4g}",
                f"{i.total_ms / price.ms:.1%}",
                ", ".join(f"{n} {module}" for module, n in i.modules.items()),
            ]
            for i in price.items
        ]
        header = ("op", "calls", "ms each (95 % interval)", "ms", "share", "where")
        table("by op", header, ops, numbers=True)
        parts = [[part, f"{ms:.4g}", f"{ms / price.ms:.1%}"] for part, ms in price.by_part().items()]
        table("by part of the network", ("part", "ms", "share"), parts, numbers=True)
    scale, fixed_ms = price.network.scale, price.ms - price.searched_ms - price.base_ms
    facts: dict[str, object] = {
        "network": f"{price.network.name}: {price.network.arch.id}, {scale.channels} channels, {scale.cells} cells, "
        f"{scale.size[0]}x{scale.size[1]}",
        "table": f"{latency.path}, {latency.name}",
        "search space": f"{price.searched_ms:.4g} ms ({price.searched_ms / price.ms:.1%}) of ops the search decides on",
        "fixed parts": f"{fixed_ms:.4g} ms ({fixed_ms / price.ms:.1%}) of ops every network of the space has",
        "arithmetic": price.complexity,
        "predicted": f"{price.ms:.4g} ms ({1000 / price.ms:.1f} fps){_interval(price)}",
    }
    summary(facts, None)
    if result.other is not None:
        console.print(_verdict(price, result.other, result.verdict, latency), markup=False)


def _interval(price: Price) -> str:
    if price.interval_ms is None:
        return "; how far that may be off is not known: the table has no networks it was tested on"
    low_ms, high_ms = price.interval_ms
    return f", with 95 % confidence {low_ms:.4g} to {high_ms:.4g} ms ({1000 / high_ms:.1f} to {1000 / low_ms:.1f} fps)"


def _verdict(a: Price, b: Price, verdict: str, latency: LatencyTable) -> str:
    error = latency.correction.relative_error
    told = f"{a.network.name} {a.ms:.4g} ms, {b.network.name} {b.ms:.4g} ms ({a.ms / b.ms - 1:+.1%})"
    if error is None:
        return f"{told}: cannot tell: the table has no networks it was tested on"
    if verdict == "cannot tell":
        return f"{told}: cannot tell, the table tells differences of {expm1(least_difference(error)):.1%} and more"
    return f"{told}: {verdict}"
