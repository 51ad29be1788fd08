"""Which of several processes this one is, as torchrun tells its processes; known without torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from hwnas.errors import HwnasError, check_ranges


@dataclass(frozen=True)
class Ranks:
    """The place of this process among those that were started together.

    Attributes:
        rank: Its number, from 0; that of rank 0 owns the run folder.
        size: How many there are.
        local_rank: Its number on this machine.
        local_size: How many there are on this machine.

    Raises:
        HwnasError: If a number is out of range.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    def __post_init__(self) -> None:
        check_ranges(
            "a process of torchrun",
            ("a WORLD_SIZE of 1 or more", self.size, self.size >= 1),
            ("a RANK from 0 to less than WORLD_SIZE", self.rank, 0 <= self.rank < self.size),
            ("a LOCAL_RANK of 0 or more", self.local_rank, self.local_rank >= 0),
            ("a LOCAL_WORLD_SIZE of 1 or more", self.local_size, self.local_size >= 1),
        )


def ranks_here(environment: Mapping[str, str] = os.environ) -> Ranks:
    """Read the place of this process from RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE.

    Returns:
        That of an only process where RANK or WORLD_SIZE is not set.

    Raises:
        HwnasError: If one is no number, or out of range.
    """
    if "RANK" not in environment or "WORLD_SIZE" not in environment:
        return Ranks()
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    fallback = dict(zip(names, ("", "", environment["RANK"], environment["WORLD_SIZE"]), strict=True))
    given = {name: environment.get(name, fallback[name]) for name in names}
    try:
        numbers = [int(text) for text in given.values()]
    except ValueError as e:
        said = ", ".join(f"{name}={text!r}" for name, text in given.items())
        raise HwnasError(f"expected whole numbers that torchrun sets, got {said}; start with torchrun") from e
    return Ranks(*numbers)
