"""A network as a function of its weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from hwnas.ops.fused import frozen_statistics

Owners = dict[str, tuple[dict[str, Tensor | None], str]]


class Functional:
    """Computes a network with other weights than its own; writes to its buffers go to copies that are never read.

    As `torch.func.functional_call`, at a hundredth of its cost for the many small tensors of a supernet. The weights
    may require gradients, have a graph, or neither.
    """

    def __init__(self, net: nn.Module) -> None:
        """Find where the tensors of `net` are kept; modules must not be exchanged afterwards."""
        self.net = net
        self._weights: Owners = _owners(net, "_parameters")
        self._buffers: Owners = _owners(net, "_buffers")
        self._copies = {name: b.clone() for name, b in net.named_buffers()}

    def __call__(self, weights: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> Any:
        """Return ``net(*args, **kwargs)`` with `weights`, all of them by name, in the place of its own."""
        with _swapped_in(self._weights, weights), _swapped_in(self._buffers, self._copies), frozen_statistics():
            return self.net(*args, **kwargs)


def _owners(net: nn.Module, kind: str) -> Owners:
    return {
        f"{prefix}.{name}" if prefix else name: (getattr(module, kind), name)
        for prefix, module in net.named_modules()
        for name, value in getattr(module, kind).items()
        if value is not None
    }


@contextmanager
def _swapped_in(owners: Owners, values: Mapping[str, Tensor]) -> Iterator[None]:
    assert owners.keys() == values.keys(), "all tensors are replaced, or a pass would mix two sets of weights"
    own: Sequence[Tensor | None] = [owner[name] for owner, name in owners.values()]
    try:
        for key, (owner, name) in owners.items():
            owner[name] = values[key]
        yield
    finally:
        for (owner, name), value in zip(owners.values(), own, strict=True):
            owner[name] = value
