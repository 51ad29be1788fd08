"""Whole files or none: every output is written beside its place, synced and renamed."""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from hwnas.errors import HwnasError


def write_atomic(path: Path, content: bytes | str | Callable[[BinaryIO], None]) -> None:
    """Write `path` so that a reader, or a kill at any moment, sees the old file or the whole new one.

    Args:
        path: The file; its folder is made if need be.
        content: Bytes, text (as UTF-8), or a function that writes to an open binary file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    fd, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(fd, "wb") as f:
            if callable(content):
                content(f)
            else:
                f.write(content.encode() if isinstance(content, str) else content)
            f.flush()
            os.fsync(f.fileno())
        os.chmod(name, 0o644)  # mkstemp makes private files; outputs are ordinary ones
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    sync_dir(path.parent)


def sync_dir(path: Path) -> None:
    """Make renames and new names in the folder `path` durable."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def canonical_json(value: Any) -> str:
    """Return the one JSON text of `value`: sorted keys, no blanks, no NaN or infinity."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def sha256(content: bytes | str) -> str:
    """Return the hex digest of bytes or of text as UTF-8."""
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()


def read_json(path: Path, what: str, nan: bool = False) -> Any:
    """Read a JSON file strictly: no NaN, no duplicate keys.

    Args:
        path: The file.
        what: What it should be, for the message: ``"a latency table"``.
        nan: Let NaN and infinity pass, for a caller that can say better where they are.

    Raises:
        HwnasError: If it is missing, unreadable or not JSON.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        reason = e.strerror if isinstance(e, OSError) else "not UTF-8 text"
        raise HwnasError(f"cannot read {what} at {path}: {reason}") from e
    try:
        number, constant = (float, float) if nan else (_finite, _refuse_constant)
        return json.loads(text, parse_float=number, parse_constant=constant, object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError) as e:
        raise HwnasError(f"{path} is not {what}: {e}; make it anew") from e


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):  # 1e999 is read as infinity
        raise ValueError(f"{text} is not a number a file may hold")
    return value


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number a file may hold")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        seen: set[str] = set()
        twice = next(k for k, _ in pairs if k in seen or seen.add(k))  # type: ignore[func-returns-value]
        raise ValueError(f"key {twice!r} occurs twice")
    return out
