"""A lock for shared file systems where flock and fcntl locks may be missing (Lustre without `flock`, old NFS).

A lock is a file that one process created: link(2) of a prepared file, or O_EXCL where hard links are missing. It names
its holder, and a thread touches it every few seconds. A waiter takes over a lock that did not change for
`STALE_SECONDS` of the waiter's own monotonic clock: no two clocks are ever compared. On the same host a dead holder is
recognised at once by its PID and start time. Whoever takes over first creates a file named after the lock's token, so
two waiters never remove the same lock, and never a new one.

A holder that was suspended for long may have lost the lock: `check()` asks before each step that others can see.
"""

import errno
import json
import os
import pwd
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass

from squashmount import jsonio
from squashmount.atomic import TEMP_PREFIX
from squashmount.errors import BusyError, StoreError

HEARTBEAT_SECONDS = 3.0
STALE_SECONDS = 30.0
ABANDONED_SECONDS = 3600.0
"""What a holder that was silent for so long left behind may be deleted, although nobody waits for its lock."""
_POLL_SECONDS = 0.2
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK}


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a lock. `boot` and `pid_space` tell whether `pid` can be looked up from here."""

    user: str
    host: str
    pid: int
    started: int
    boot: str
    pid_space: int
    token: str
    doing: str

    def __str__(self) -> str:
        return f"{self.user} on {self.host} (process {self.pid}: {self.doing})"

    def is_dead(self) -> bool:
        """Tell whether the holder is certainly gone; False when it cannot be seen from here.

        With hidepid (proc(5)) /proc/PID of another user is not there although the process is: kill(2) tells ESRCH from
        EPERM in any case, and the start time counts only where it can be read.
        """
        here = (socket.gethostname(), _boot_id(), _pid_space())
        if self.pid <= 0 or not all(here) or (self.host, self.boot, self.pid_space) != here:
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass
        started = _start_time(self.pid)
        return 0 not in {started, self.started} and started != self.started


def user_name() -> str:
    """Return who runs this: the name, or the number of a user without one."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def me(doing: str) -> Holder:
    """Describe this process, with a fresh token."""
    pid = os.getpid()
    return Holder(
        user=user_name(),
        host=socket.gethostname(),
        pid=pid,
        started=_start_time(pid),
        boot=_boot_id(),
        pid_space=_pid_space(),
        token=secrets.token_hex(12),
        doing=doing,
    )


class Lease:
    """A lock that is held."""

    def __init__(self, path: str, holder: Holder) -> None:
        """Use `hold()`."""
        self.path = path
        self.holder = holder
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lease heartbeat", daemon=True)

    def check(self) -> None:
        """Raise BusyError when somebody else took the lock because we looked dead."""
        if _token(self.path) != self.holder.token:
            raise BusyError(
                "Another process took over the lock of the store.",
                details=f"{self.path}: this process did not answer for {STALE_SECONDS:g} s",
                hint="run the command again",
            )

    def start(self) -> None:
        """Begin to touch the lock."""
        self._thread.start()

    def release(self) -> None:
        """Give the lock back if it is still ours."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        if _token(self.path) == self.holder.token:
            with suppress(FileNotFoundError):
                os.unlink(self.path)

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            with suppress(OSError):  # a full or briefly absent file system must not end the work
                os.utime(self.path)


@contextmanager
def hold(
    directory: str,
    name: str,
    *,
    doing: str,
    timeout: float = 600.0,
    on_wait: Callable[[str], None] = lambda _text: None,
) -> Iterator[Lease]:
    """Hold the lock `name` during the block. Waits up to `timeout` seconds, then BusyError says who holds it."""
    lease = _acquire(directory, name, me(doing), timeout, on_wait)
    lease.start()
    try:
        yield lease
    finally:
        lease.release()


def holders(directory: str) -> dict[str, Holder]:
    """Return the locks in a directory by name, those of processes known to be dead or long silent left out."""
    beats = _beats(directory)
    found = {}
    for name, beat in beats.items():
        holder = None if name.startswith(".") else read_holder(os.path.join(directory, name))
        if holder and not holder.is_dead() and max(beats.values()) - beat < ABANDONED_SECONDS:
            found[name] = holder
    return found


def _beats(directory: str) -> dict[str, float]:
    """Return when each file was last touched; the latest of them is now, by the clock of the file system itself."""
    beats = {}
    for name in os.listdir(directory):
        with suppress(FileNotFoundError):
            beats[name] = os.stat(os.path.join(directory, name)).st_mtime
    return beats


def read_holder(path: str) -> Holder | None:
    """Return who holds a lock; None when nobody does."""
    try:
        with open(path, "rb") as file:
            text = file.read()
    except FileNotFoundError:
        return None
    try:
        return Holder(**jsonio.load_object(text, where=path))
    except (TypeError, StoreError):
        return Holder("somebody", "unknown host", 0, 0, "", 0, f"torn-{len(text)}", "unknown")


def _acquire(directory: str, name: str, holder: Holder, timeout: float, on_wait: Callable[[str], None]) -> Lease:
    path = os.path.join(directory, name)
    began = time.monotonic()
    seen: tuple[str, int] | None = None
    seen_at = told_at = began
    attempts = 0
    while not _create(path, holder):
        now = time.monotonic()
        other, mark = _look(path)
        if other is None or mark is None:
            continue
        if mark != seen:
            attempts = 0 if seen is None or seen[0] != mark[0] else attempts
            seen, seen_at = mark, now
        if other.is_dead() or now - seen_at > STALE_SECONDS:
            attempts += 1
            _take_over(path, other, attempts)
            seen_at = now
            continue
        if now - began >= timeout:
            raise BusyError(
                f"The store is in use by {other}.",
                details=f"waited {timeout:g} s for {path}",
                hint="try again later, or wait longer with --wait SECONDS",
            )
        if now - told_at >= (1.0 if told_at == began else 30.0):
            on_wait(f"waiting for {other}")
            told_at = now
        time.sleep(_POLL_SECONDS)
    return Lease(path, holder)


def _create(path: str, holder: Holder) -> bool:
    """Create the lock with its content; False when it exists. link(2) is atomic on NFS too, O_EXCL is the fallback."""
    text = json.dumps(asdict(holder)).encode()
    temp = os.path.join(os.path.dirname(path), f"{TEMP_PREFIX}{holder.token}")
    try:
        with open(temp, "xb") as file:
            os.fchmod(file.fileno(), 0o644)
            file.write(text)
        os.link(temp, path)
    except FileExistsError:
        # An NFS server may repeat a request whose answer was lost: open(2), O_EXCL, says to look at the link count.
        return os.stat(temp).st_nlink == 2
    except OSError as err:
        if err.errno not in _NO_LINKS:
            raise
        return _create_exclusively(path, text)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temp)
    return True


def _create_exclusively(path: str, text: bytes) -> bool:
    try:
        fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644)
    except FileExistsError:
        return False
    with open(fd, "wb") as file:
        file.write(text)
    return True


def _look(path: str) -> tuple[Holder | None, tuple[str, int] | None]:
    """Return the holder and a mark that changes with every heartbeat; open(2) makes NFS ask the server."""
    holder = read_holder(path)
    if holder is None:
        return None, None
    try:
        with open(path, "rb") as file:
            return holder, (holder.token, os.fstat(file.fileno()).st_mtime_ns)
    except FileNotFoundError:
        return None, None


def _take_over(path: str, dead: Holder, attempt: int) -> None:
    """Remove the lock of a dead holder. Only the one who created the breaker file of this token may do it."""
    directory, name = os.path.split(path)
    breaker = os.path.join(directory, f".break-{name}-{dead.token}-{attempt}")
    try:
        os.close(os.open(breaker, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644))
    except FileExistsError:
        time.sleep(_POLL_SECONDS)
        return
    if _token(path) == dead.token:
        with suppress(FileNotFoundError):
            os.unlink(path)
    # The breaker stays until the lock has changed hands; sweep() removes it.


def sweep(directory: str) -> None:
    """Remove breaker files of locks that are gone, and forgotten temporary files. Call it holding the store's lock."""
    beats = _beats(directory)
    for entry, beat in beats.items():
        if entry.startswith(TEMP_PREFIX) and max(beats.values()) - beat > ABANDONED_SECONDS:
            with suppress(FileNotFoundError):
                os.unlink(os.path.join(directory, entry))
    present = {name: _token(os.path.join(directory, name)) for name in os.listdir(directory) if name[0] != "."}
    for entry in os.listdir(directory):
        if entry.startswith(".break-"):
            name, token = entry.removeprefix(".break-").rsplit("-", 2)[:2]
            if present.get(name) != token:
                with suppress(FileNotFoundError):
                    os.unlink(os.path.join(directory, entry))


def _token(path: str) -> str:
    holder = read_holder(path)
    return holder.token if holder else ""


def _boot_id() -> str:
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


def _pid_space() -> int:
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0


def _start_time(pid: int) -> int:
    """Return the start time of a process in clock ticks since boot (proc(5), field 22), 0 when it cannot be seen."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[19])
    except (OSError, IndexError):
        return 0
