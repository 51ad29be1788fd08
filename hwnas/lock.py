"""A lock that one process at a time holds on a file, on file systems with and without flock.

Where the file system has flock, that is the lock: it goes with the process that held it, whatever became of that; a
process forked from it lets go of its copy, so that it does not hold what its parent held. Some network and FUSE file
systems have none. There a second file beside the first is made exclusively and says who made it; one whose maker is
dead is removed. That can only be told of a process of this machine, so a lock of another one that died has to be
removed by hand, and the message says so.

A file system should be mounted alike wherever it is: one that has flock here and none there has two kinds of locks.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
from contextlib import suppress
from pathlib import Path

from hwnas.errors import NO_PERMISSION, HwnasError, SystemRefusal, refusal

NO_FLOCK = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL}
POLL_S = 0.02


class Lock:
    """A context manager that holds a file for this process."""

    def __init__(self, path: Path, held: str, wait_s: float = 0.0, reading: bool = False) -> None:
        """Name the file; nothing is opened before entering.

        Args:
            path: What is locked; made if it is not there, and left there.
            held: What to say where another process holds it.
            wait_s: How long to wait for that.
            reading: Whether to hold nothing in a folder where this process may not write: what is complete there can
                still be read, and nothing can be spoilt.
        """
        self._path, self._refusal, self._wait_s, self._reading = path, held, wait_s, reading
        self._holding = path.with_name(f"{path.name}.held")  # where there is no flock
        self._descriptor: int | None = None
        self._mark: str | None = None  # what we wrote into it

    @property
    def files(self) -> set[Path]:
        """What there may be of the lock itself."""
        return {self._path, self._holding}

    def __enter__(self) -> Lock:
        """Take the lock.

        Raises:
            HwnasError: If another process holds it, or the file cannot be opened.
        """
        end_s = time.monotonic() + self._wait_s
        while not self._take():
            if time.monotonic() >= end_s:
                raise HwnasError(self._refusal + self._holder())
            time.sleep(POLL_S)
        return self

    def __exit__(self, *exc: object) -> None:
        """Let it go; a file that somebody else has made since is left alone."""
        if self._mark is not None and _read(self._holding) == self._mark:
            self._holding.unlink(missing_ok=True)
        self._leave()
        self._mark = None

    def _leave(self) -> None:
        _HELD.discard(self)
        if self._descriptor is not None:
            os.close(self._descriptor)
        self._descriptor = None

    def remove(self) -> None:
        """Remove the files of a lock that is held, so that its folder can go."""
        for path in self.files:
            path.unlink(missing_ok=True)

    def _take(self) -> bool:
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
            held = self._flock(descriptor)
        except OSError as e:
            if self._reading and e.errno in NO_PERMISSION and not os.access(self._path.parent, os.W_OK):
                return True
            raise SystemRefusal(f"cannot lock {refusal(e, self._path)}") from e
        return held

    def _flock(self, descriptor: int) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = os.fstat(descriptor).st_nlink > 0  # else whoever held it has just removed it
        except BlockingIOError:
            held = False
        except OSError as e:
            os.close(descriptor)
            if e.errno not in NO_FLOCK:
                raise
            return self._make()
        if held:
            self._descriptor = descriptor
            _HELD.add(self)
        else:
            os.close(descriptor)
        return held

    def _make(self) -> bool:
        """Make the second file, or find who has made it."""
        mark = mark_of_process()
        made = _create(self._holding, mark) or (self._clear() and _create(self._holding, mark))
        self._mark = mark if made else None
        return made

    def _clear(self) -> bool:
        """Remove the second file if its maker is dead; return whether that was so.

        Two that find this at once must not each remove one: the slower would remove the lock of the faster. So they
        take turns by a third file, and look again in their turn.
        """
        turn = self._holding.with_name(f"{self._holding.name}.clearing")
        if not has_ended(_read(self._holding)) or not _create(turn, ""):
            return False
        try:
            dead = has_ended(_read(self._holding))
            if dead:
                self._holding.unlink(missing_ok=True)
        finally:
            turn.unlink()
        return dead

    def _holder(self) -> str:
        """Return who holds it, as the end of a message; empty under flock, which does not tell."""
        mark = _read(self._holding)
        if mark is None:
            return ""
        try:
            found = json.loads(mark)
            who = f"process {found['pid']} on {found['host'].split()[0]}"
        except (ValueError, LookupError, TypeError, AttributeError):
            who = "one that does not say who it is"
        names = f"{self._holding.name}*"
        return f"; held by {who}: if that has ended, remove {self._holding.parent / names}"


_HELD: set[Lock] = set()  # by this process


def _leave_all() -> None:
    """Close what was inherited: a lock is held as long as anybody has it open."""
    for lock in list(_HELD):
        lock._leave()


os.register_at_fork(after_in_child=_leave_all)


def _create(path: Path, content: str) -> bool:
    """Make a file that is not there; return whether it was not."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        return False
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(content)
    return True


def _read(path: Path) -> str | None:
    """Return the content of a file; None if there is none. One that was just made may be empty."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None


def mark_of_process() -> str:
    """Return a text that tells this process from all others, of other machines too: for `has_ended`."""
    return json.dumps({"host": _host(), "pid": os.getpid(), "started": _started(os.getpid())})


def has_ended(mark: str | None) -> bool:
    """Return whether the process of a `mark_of_process` has surely ended: that can be told on its machine alone."""
    try:
        found = json.loads(mark or "")
        return bool(found["host"] == _host() and _started(int(found["pid"])) != found["started"])
    except (ValueError, LookupError, TypeError):
        return False


def _host() -> str:
    """Return where process ids mean what they mean here: this machine since it was started, and this container."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _started(pid: int) -> str | None:
    """Return what tells a process from a later one of the same number; None if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        if Path("/proc/self/stat").exists():
            return None
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        except PermissionError:
            pass  # somebody else's, and alive
        return "alive"
    return None if fields[0] in "ZX" else fields[19]  # its state, and when it was started in ticks of the kernel
