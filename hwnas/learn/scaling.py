"""Loss scaling for float16, whose gradients would underflow (Micikevicius et al. 2018, section 3.2).

`torch.amp.GradScaler` does the same, but asks the device at each step whether gradients overflowed unless the optimizer
is a fused one, and it knows only some devices. Here nothing is read: gradients that overflowed count as 0, so that such
a step moves the weights by what the optimizer remembers alone, and the scale is halved, on the device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

FIRST = 2.0**16  # the defaults of torch.amp.GradScaler
GROWTH, BACKOFF = 2.0, 0.5
INTERVAL = 2000  # steps without overflow after which the scale grows


class LossScaler:
    """The factor that a loss is multiplied by, and that its gradients are divided by again.

    Attributes:
        scale: (), on the device.
        good: (), steps without overflow since the scale changed, on the device.
    """

    def __init__(self, device: torch.device) -> None:
        """Begin with a scale of `FIRST`."""
        self.scale = torch.full((), FIRST, device=device)
        self.good = torch.zeros((), device=device)

    def scaled(self, loss: Tensor) -> Tensor:
        """Return a loss to go backward from."""
        return loss * self.scale

    def unscale(self, parameters: Sequence[nn.Parameter]) -> None:
        """Divide gradients by the scale, or set all to 0 where one is not finite; then adapt the scale."""
        grads = [p.grad for p in parameters if p.grad is not None]
        largest = torch.stack([g.abs().amax() for g in grads]).amax() if grads else self.scale.new_zeros(())
        finite = torch.isfinite(largest)
        factor = torch.where(finite, 1 / self.scale, 0.0)
        for g in grads:
            g.copy_(torch.where(finite, g * factor, 0.0))
        good = torch.where(finite, self.good + 1, 0.0)
        grow = good >= INTERVAL
        change = torch.where(finite, torch.where(grow, GROWTH, 1.0), BACKOFF)
        self.scale, self.good = self.scale * change, torch.where(grow, 0.0, good)

    def state(self) -> dict[str, Any]:
        """Return what to resume from."""
        return {"scale": self.scale, "good": self.good}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state` returned."""
        self.scale, self.good = (state[k].to(self.scale.device) for k in ("scale", "good"))
