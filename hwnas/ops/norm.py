"""BatchNorm where there are no statistics of a batch."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from hwnas.ops.synced import processes_of


def normed(bn: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """Normalise; one value per channel has no batch statistics, so that training uses the running ones there."""
    if bn.training and x.shape[0] * x.shape[2] * x.shape[3] * processes_of(bn) == 1:
        return F.batch_norm(x, bn.running_mean, bn.running_var, bn.weight, bn.bias)
    y: Tensor = bn(x)
    return y
