"""Whole files or none: every output is written beside its place, synced and renamed."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO

from hwnas.errors import HwnasError

# What a file system says that cannot sync a file or a folder; others say that the disk failed.
NO_SYNC = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF, errno.EACCES, errno.EPERM, errno.EROFS}


def write_atomic(path: Path, content: bytes | str | Callable[[BinaryIO], None]) -> None:
    """Write `path` so that a reader, or a kill at any moment, sees the old file or the whole new one.

    Args:
        path: The file; its folder is made if need be.
        content: Bytes, text (as UTF-8), or a function that writes to an open binary file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    half: str | None = None
    try:
        fd, half = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        with os.fdopen(fd, "wb") as f:
            if callable(content):
                content(f)
            else:
                f.write(content.encode() if isinstance(content, str) else content)
            f.flush()
            sync(f.fileno())
        share(half)
        os.replace(half, path)
    except BaseException as e:
        if half is not None:
            with suppress(OSError):
                os.unlink(half)
        if isinstance(e, OSError) and (e.filename is None or Path(os.fsdecode(e.filename)).suffix == ".tmp"):
            raise OSError(e.errno, e.strerror or str(e), str(path)) from e  # nobody knows the temporary name
        raise
    sync_dir(path.parent)


def share(path: str | Path) -> None:
    """Give a private file, as `tempfile` makes it, the permissions of an ordinary one, where the file system has any.

    Some refuse: CIFS, FAT, and disks of Windows in WSL.
    """
    with suppress(OSError):
        os.chmod(path, 0o666 & ~_umask())


def _umask() -> int:
    """Return which permissions new files are not given; to ask without a change there is only Linux's ``/proc``."""
    with suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def sync(fd: int) -> None:
    """Make what was written durable, where the file system can."""
    try:
        os.fsync(fd)
    except OSError as e:
        if e.errno not in NO_SYNC:
            raise


def sync_dir(path: Path) -> None:
    """Make renames and new names in the folder `path` durable, where the file system can: what is there is whole."""
    try:
        fd = os.open(path, os.O_RDONLY)
    except OSError:
        return  # a folder may be written and not read
    try:
        sync(fd)
    finally:
        os.close(fd)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an error of the system say which file it is about: that of a write or a sync knows only a descriptor."""
    try:
        yield
    except OSError as e:
        if e.filename is not None or e.errno is None:
            raise
        raise OSError(e.errno, e.strerror, str(path)) from e


def is_there(path: Path) -> bool:
    """Return whether there is a file or a folder.

    What `Path.exists` says of one that may not be looked at differs between releases of Python.

    Raises:
        OSError: If that cannot be told: the folder may not be read, or the name is too long to be one.
    """
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def set_aside(path: Path) -> None:
    """Rename a file to the first name with a number that is free: ``report.json`` to ``report-1.json``."""
    numbered = (path.with_name(f"{path.stem}-{n}{path.suffix}") for n in count(1))
    path.rename(next(p for p in numbered if not p.exists()))


def may_be_file(name: str) -> bool:
    """Return whether what a user named is a file: no name of one is too long, and none has a NUL."""
    try:
        return Path(name).is_file()
    except OSError as e:
        if e.errno == errno.ENAMETOOLONG:
            return False
        raise


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
