"""Metrics of a loop, one JSON line a step, that stay one line a step when the loop is killed and resumed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hwnas.errors import HwnasError
from hwnas.files import canonical_json, is_there, naming, write_atomic


class StepLog:
    """An append-only file of ``{"step": n, ...}`` lines."""

    def __init__(self, path: Path) -> None:
        """Name the file; nothing is opened yet."""
        self.path = path

    def read(self) -> list[dict[str, Any]]:
        """Return all whole lines; a torn last one is what a kill left.

        Raises:
            HwnasError: If one is damaged; names it.
        """
        if not is_there(self.path):
            return []
        lines = self.path.read_bytes().split(b"\n")[:-1]
        return [self._parse(number, line) for number, line in enumerate(lines, start=1)]

    def _parse(self, number: int, line: bytes) -> dict[str, Any]:
        try:
            record: dict[str, Any] = json.loads(line)
            int(record["step"])
        except (KeyError, TypeError, ValueError) as e:
            raise HwnasError(f"{self.path} line {number} is damaged: {e}; remove the file to go on without it") from e
        return record

    def start(self, step: int) -> None:
        """Begin at a step: lines of it and later ones, from before a kill, are dropped."""
        kept = [canonical_json(r) + "\n" for r in self.read() if r["step"] < step]
        write_atomic(self.path, "".join(kept))

    def append(self, metrics: Mapping[str, Any]) -> None:
        """Add the line of a step."""
        with naming(self.path), self.path.open("a", encoding="utf-8") as f:
            f.write(canonical_json(dict(metrics)) + "\n")
