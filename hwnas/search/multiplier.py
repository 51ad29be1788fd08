"""A learned weight of the cost: it rises while the network that would be derived exceeds the budget (LightNAS)."""

from __future__ import annotations

from dataclasses import dataclass

from hwnas.records import stored


@stored("multiplier")
@dataclass(frozen=True)
class Multiplier:
    """Gradient ascent on the Lagrange multiplier of the constraint ``derived / budget <= 1`` (LightNAS).

    What is constrained is the network that the paper's rule would derive now, not an expectation. So where the ascent
    settles, no budget has to be enforced in the derivation, and its answers are the search's own.

    Attributes:
        lr: Step of the ascent: what a network at twice its budget adds in one step.
        damping: What it adds as long as it is at twice its budget, and no longer: the quadratic term of an augmented
            Lagrangian, without which networks swing about the budget.
        reset: LightNAS' own rule: the multiplier may be negative, which rewards networks for being slow, and is set
            to 0 when its sign contradicts the violation. Otherwise it is never negative, and falls as it rose.
    """

    lr: float = 0.2
    damping: float = 1.0
    reset: bool = False

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
