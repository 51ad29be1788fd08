"""Landing on a budget: derive, measure, correct the target, until a measured network lies just below the budget.

Deriving and measuring are passed in as functions. A prediction is off by about 1 %, by much the same for similar
networks, so the ratio of measured to predicted latency near the budget corrects the next target. The same network takes
a little more or less in another process, so the loop keeps a margin of that variation below the budget.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from hwnas.errors import BudgetError

SURE = 2.0  # standard errors that a network must stay below the budget by
REPEATS = 3  # processes that a network too near to the budget is measured in
NEAR = 0.03  # at this distance from the budget, in log latency, a network has half the weight in the correction
LIKE = 0.5  # share of the table's error that remains for a network similar to a measured one
SLOW = 0.03  # a machine whose fastest process is slower than the table by more than this is slow throughout
BELOW = 1 - 1e-6
FAR = 10.0  # budgets; a step up that is further away is none

LANDED, FAST, CLOSE, OVER = "landed", "fast", "close", "over"  # verdicts, see `Goal.verdict`


@dataclass(frozen=True)
class Network:
    """A derived network: what the loop needs of it.

    Attributes:
        key: Names it.
        predicted_ms: By the table.
        utility: What networks compete by.
    """

    key: str
    predicted_ms: float
    utility: float


NOTHING = Network("", 0.0, -math.inf)  # the step up from it is the fastest network


@dataclass(frozen=True)
class Latency:
    """The latency of a network in one process.

    Attributes:
        ms: Measured.
        slowdown: Latency of reference networks of the table in the same process over that in the table; None without
            references.
    """

    ms: float
    slowdown: float | None = None


@dataclass(frozen=True)
class Measured:
    """A network and its latency in one or more processes."""

    network: Network
    times: tuple[Latency, ...]


@dataclass(frozen=True)
class Goal:
    """Where to land.

    Attributes:
        budget_ms: What the network may take.
        tolerance: How much more frames per second than the budget's it may have.
        repeatability: Standard deviation of a latency between processes, relative.
        error: Of predictions, root mean square, relative.
        measurements: Most that are made.
    """

    budget_ms: float
    tolerance: float = 0.05
    repeatability: float = 0.004
    error: float = 0.015
    measurements: int = 12

    @property
    def aim_ms(self) -> float:
        """The middle of where to land: there the next process is least likely to find a network on either side."""
        return self.budget_ms / (1 + self.tolerance / 2)

    def guard(self, processes: int) -> float:
        """Return how far inside the range a network must be for the next process to find it there, relative.

        The variances of the mean of these processes and of the next one add up.
        """
        return min(self.tolerance / 3, SURE * self.repeatability * math.sqrt(1 + 1 / processes))

    def verdict(self, latency_ms: float, processes: int) -> str:
        """Return what a measured network is.

        ``"landed"`` is surely below the budget and within the tolerance, ``"fast"`` is surely below it, but perhaps by
        more than that, ``"close"`` is below it by less than processes differ, and ``"over"`` is none of these.
        """
        guard = self.guard(processes)
        if latency_ms > self.budget_ms:
            return OVER
        if latency_ms * (1 + guard) > self.budget_ms:
            return CLOSE
        return LANDED if latency_ms * (1 + self.tolerance - guard) >= self.budget_ms else FAST


class Measurements:
    """The networks measured so far, and what follows from all measurements together."""

    def __init__(self, goal: Goal) -> None:
        """Start empty."""
        self.goal = goal
        self.networks: dict[str, Measured] = {}

    def add(self, network: Network, latency: Latency) -> str:
        """Take one more measurement into account; return the verdict on its network."""
        before = self.networks[network.key].times if network.key in self.networks else ()
        self.networks[network.key] = Measured(network, (*before, latency))
        return self.verdict(self.networks[network.key])

    def latency_ms(self, m: Measured) -> float:
        """Return the latency of a network, corrected to the quietest process so far.

        Other load only ever adds time, and adds it to the reference networks too. Where these are slower than in the
        quietest process, by more than processes usually differ, the excess is not charged to the network. What all
        processes share is the present speed of the machine.
        """
        slow = [t.slowdown for m in self.networks.values() for t in m.times if t.slowdown is not None]
        usual = min([1 + SLOW, *slow]) * (1 + SURE * self.goal.repeatability)
        return median(t.ms if t.slowdown is None else t.ms * min(1.0, usual / t.slowdown) for t in m.times)

    def verdict(self, m: Measured) -> str:
        """Return the verdict on a network, from all its processes."""
        return self.goal.verdict(self.latency_ms(m), len(m.times))

    def met(self) -> list[Measured]:
        """Return the networks that are surely below the budget."""
        return [m for m in self.networks.values() if self.verdict(m) in (LANDED, FAST)]

    def ratio(self) -> float:
        """Return the ratio of measured to predicted latency near the budget; 1.0 without measurements.

        A geometric mean, weighted down with the distance from the budget.
        """
        total = weights = 0.0
        for m in self.networks.values():
            ms = self.latency_ms(m)
            weight = 1 / (1 + (math.log(ms / self.goal.budget_ms) / NEAR) ** 2)
            total += weight * math.log(ms / m.network.predicted_ms)
            weights += weight
        return math.exp(total / weights) if weights else 1.0

    def reach_ms(self) -> float:
        """Return the largest prediction that may measure below the budget: twice the prediction error above it."""
        error = self.goal.error * (LIKE if self.networks else 1.0)
        return self.goal.budget_ms / self.ratio() * (1 + 2 * error)

    def best(self) -> Measured:
        """Return the network to take: the one of the highest utility surely below the budget, else the fastest."""

        def rank(m: Measured) -> tuple[int, float]:
            sure = self.verdict(m) in (LANDED, FAST)
            return int(sure), m.network.utility if sure else -self.latency_ms(m)

        return max(self.networks.values(), key=rank)


@dataclass(frozen=True)
class Round:
    """One measurement.

    Attributes:
        target_ms: What the prediction had to stay below.
        network: What was derived.
        latency: In this process.
        verdict: On the network, after all measurements so far.
    """

    target_ms: float
    network: Network
    latency: Latency
    verdict: str


@dataclass(frozen=True)
class Landing:
    """How the loop ended.

    Attributes:
        best: The network to take.
        latency_ms: Its latency, over all processes.
        verdict: On it.
        rounds: All measurements, in their order.
        why: ``"landed"``, ``"no step"`` if no network of a higher utility is left that may lie below the budget, or
            ``"measurements"`` if there were as many as allowed.
        next_up: Where it is ``"no step"``, the proof of it: among networks of a higher utility the one that is
            predicted fastest, which is out of reach or was measured too near to the budget or over it. None if there
            is none.
    """

    best: Measured
    latency_ms: float
    verdict: str
    rounds: tuple[Round, ...]
    why: str
    next_up: Network | None = None


Derive = Callable[[float], Network]
Measure = Callable[[Network], Latency]


def land(goal: Goal, derive: Derive, measure: Measure, tell: Callable[[Round], None] = lambda _: None) -> Landing:
    """Derive and measure until a network lands, or none can.

    It never ends on a network that was measured over the budget if one was measured under it; of those that surely are,
    it takes the one of the highest utility.

    Args:
        goal: Where to land.
        derive: Gives the network of the highest utility among those predicted at most so many milliseconds; raises
            BudgetError if there is none.
        measure: Measures a network in a process of its own; called again for the same network where that is close.
        tell: Told after each measurement.

    Raises:
        BudgetError: If no network was measured under the budget; names the fastest that was measured.
    """
    measurements = Measurements(goal)
    rounds: list[Round] = []
    step: tuple[float, Network] | None = None
    while not rounds or rounds[-1].verdict != LANDED:
        step = _next(measurements, derive)
        if step is None or len(rounds) == goal.measurements:
            break
        target_ms, network = step
        latency = measure(network)
        rounds.append(Round(target_ms, network, latency, measurements.add(network, latency)))
        tell(rounds[-1])
    best = measurements.best()
    latency_ms, verdict = measurements.latency_ms(best), measurements.verdict(best)
    if verdict == OVER:
        raise BudgetError(
            f"no network that was derived for {1000 / goal.budget_ms:.1f} fps was measured at that; the fastest of "
            f"{len(measurements.networks)} has {1000 / latency_ms:.1f} fps; ask for fewer, or allow narrower networks"
        )
    if verdict == LANDED:
        return Landing(best, latency_ms, verdict, tuple(rounds), LANDED)
    if step is not None:
        return Landing(best, latency_ms, verdict, tuple(rounds), "measurements")
    above = step_up(derive, best.network, FAR * goal.budget_ms)
    return Landing(best, latency_ms, verdict, tuple(rounds), "no step", above)


def _next(measurements: Measurements, derive: Derive) -> tuple[float, Network] | None:
    """Return target and network to measure next; None if none is left that may land.

    Raises:
        BudgetError: If nothing was measured yet and nothing is within reach.
    """
    for m in measurements.networks.values():
        if measurements.verdict(m) == CLOSE and len(m.times) < REPEATS:
            return m.network.predicted_ms, m.network
    down = _descend(measurements, derive, measurements.goal.aim_ms / measurements.ratio())
    if down is not None:
        return down
    # Nothing new below the target. What is predicted a little above it may still take less.
    met, reach_ms = measurements.met(), measurements.reach_ms()
    if not measurements.networks:
        return reach_ms, derive(reach_ms)
    network: Network | None = max([m.network for m in met], key=lambda n: n.utility, default=NOTHING)
    while network is not None and (network is NOTHING or network.key in measurements.networks):
        network = step_up(derive, network, reach_ms)
    return None if network is None else (network.predicted_ms, network)


def _descend(measurements: Measurements, derive: Derive, target_ms: float) -> tuple[float, Network] | None:
    """Return the first network at or below a target that was not measured; None if one that was is below the budget.

    Further down, utility could only be lower than that of one that meets the budget already.
    """
    while True:
        try:
            network = derive(target_ms)
        except BudgetError:
            return None
        if network.key not in measurements.networks:
            return target_ms, network
        if measurements.verdict(measurements.networks[network.key]) in (LANDED, FAST):
            return None
        target_ms = network.predicted_ms * BELOW


def step_up(derive: Derive, network: Network, up_to_ms: float) -> Network | None:
    """Return the network of the lowest predicted latency among those of a higher utility; None if there is none.

    By bisection: the highest utility that can be had does not fall as the target rises.

    Args:
        derive: As for `land`.
        network: Whose utility is to be exceeded.
        up_to_ms: Predictions above do not count.
    """
    low_ms, above = network.predicted_ms, _better(derive, network, up_to_ms)
    while above is not None and above.predicted_ms * BELOW > low_ms / BELOW:
        middle_ms = (low_ms + above.predicted_ms * BELOW) / 2
        lower = _better(derive, network, middle_ms)
        low_ms, above = (middle_ms, above) if lower is None else (low_ms, lower)
    return above


def _better(derive: Derive, network: Network, target_ms: float) -> Network | None:
    """Return the best network at or below a target if its utility is above another's."""
    try:
        best = derive(target_ms)
    except BudgetError:
        return None
    return best if best.utility > network.utility else None
