"""Plan networks of a table again where its own plan is missing: a recipe draws the same ones every time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hwnas.latency.table import LatencyTable
from hwnas.profile.networks import Calibration, choose_networks
from hwnas.profile.plan import PlanWriter
from hwnas.progress import Update, ignore
from hwnas.spaces import Scale, Space, trace_alternatives


def plan_again(
    table: LatencyTable,
    space: Space,
    scales: Sequence[Scale],
    calibration: Calibration,
    n: int,
    folder: Path,
    update: Update = ignore,
) -> int:
    """Plan the fastest random networks of a table again, as references to measure other networks beside.

    Args:
        table: Measured at these scales with this calibration; else it has none of the networks.
        space: Any scale.
        scales: The deployment scales.
        calibration: Which networks were drawn.
        n: Most to plan.
        folder: Gets the plan; nothing is written if the table has none of the networks.
        update: Told after each network.

    Returns:
        How many were planned.

    Raises:
        HwnasError: If the space has fewer networks than were to be drawn.
    """
    merge = bool(table.where["merges"])
    writer = PlanWriter(folder, precision=str(table.where["engine"]["precision"]), scales=scales)
    drawn = choose_networks(space, [trace_alternatives(space.at(s), merge) for s in scales], calibration)
    networks = [(space.at(scales[index]), arch) for _, index, arch in drawn]
    by_key = {writer.key_of(*network): network for network in networks}
    anchors = sorted((net for net in table.nets if net.key in by_key), key=lambda net: net.latency_ms)[:n]
    for net in anchors:
        writer.plan_network("anchor", *by_key[net.key], merge)
    if anchors:
        writer.write(update)
    return len(anchors)
