"""Metrics of a loop, one JSON line a step, that stay one line a step when the loop is killed and resumed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hwnas.files import canonical_json, write_atomic


class StepLog:
    """An append-only file of ``{"step": n, ...}`` lines."""

    def __init__(self, path: Path) -> None:
        """Name the file; nothing is opened yet."""
        self.path = path

    def read(self) -> list[dict[str, Any]]:
        """Return all whole lines; a torn last one is what a kill left."""
        if not self.path.exists():
            return []
        lines = self.path.read_text(encoding="utf-8").split("\n")
        return [json.loads(line) for line in lines[:-1] if line]

    def start(self, step: int) -> None:
        """Begin at a step: lines of it and later ones, from before a kill, are dropped."""
        kept = [canonical_json(r) + "\n" for r in self.read() if r["step"] < step]
        write_atomic(self.path, "".join(kept))

    def append(self, metrics: Mapping[str, Any]) -> None:
        """Add the line of a step."""
        with self.path.open("a", encoding="utf-8") as f:
            f.write(canonical_json(dict(metrics)) + "\n")
