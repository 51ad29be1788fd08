"""A learned weight of the cost: it rises while the network that would be derived exceeds the budget (LightNAS)."""

from __future__ import annotations

from dataclasses import dataclass

from hwnas.errors import check_ranges, not_below, positive
from hwnas.records import stored


@stored("multiplier")
@dataclass(frozen=True)
class Multiplier:
    """Gradient ascent on the Lagrange multiplier of the constraint ``derived / budget <= 1`` (LightNAS).

    The constraint is on the network that would be derived now without a budget, not on an expectation. So where the
    ascent converges, that network meets the budget, and the constraint of the derivation changes nothing.

    Attributes:
        lr: Step size of the ascent: a network at twice its budget adds this in one step.
        damping: The quadratic term of an augmented Lagrangian: a network at twice its budget adds this to the weight
            while it is there. Without it latency oscillates about the budget.
        reset: LightNAS' own rule: the multiplier may be negative, which rewards networks for being slow, and is set
            to 0 when its sign contradicts the violation. Otherwise it is never negative, and falls as it rose.
    """

    lr: float = 0.2
    damping: float = 1.0
    reset: bool = False

    def __post_init__(self) -> None:
        check_ranges("a multiplier", *positive(self, ("lr",)), *not_below(self, ("damping",), 0))

    def ascend(self, value: float, violation: float) -> float:
        """Return the next multiplier.

        Args:
            value: The present one, at first 0.
            violation: By which share of the budget it is exceeded; negative below the budget.
        """
        moved = value + self.lr * violation
        if self.reset:
            return 0.0 if moved * violation < 0 else moved
        return max(0.0, moved)

    def weight(self, value: float, violation: float) -> float:
        """Return the weight of the cost for a multiplier and the violation it was last moved by."""
        damped = value + self.damping * violation
        return damped if self.reset else max(0.0, damped)
