"""One server per mount namespace, squash file and id shift: find it, start it, hold it while a container is mounted.

Used by the mount program. The server itself is `supervisor`. Invariants (docs/invariants.md):

- `lock` is held shared from the check that a server lives until its lease is written, so the server, which takes it
  exclusively before it ends, can never end between the two.
- `alive` is flocked by the server: whether it lives is asked of the kernel, not of a pid that may have been reused.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

from . import linux
from .config import Config
from .errors import HostError, SquashmountError
from .mountinfo import namespace_id, read_mounts
from .plan import MountPlan, Shift
from .runtime import Log, quiet


class ServerDir:
    """The files of one server (layout in `runtime`)."""

    def __init__(self, path: str) -> None:
        """Remember the directory; nothing is made."""
        self.path = path
        self.lock = os.path.join(path, "lock")
        self.alive = os.path.join(path, "alive")
        self.mountpoint = os.path.join(path, "m")
        self.empty = os.path.join(path, "empty")
        self.leases = os.path.join(path, "leases")
        self.info = os.path.join(path, "info.json")
        self.stats = os.path.join(path, "stats.json")

    def make(self) -> None:
        """Make the directories that are missing."""
        for path in (self.path, self.mountpoint, self.empty, self.leases):
            with suppress(FileExistsError):
                os.mkdir(path, 0o700)

    def remove(self) -> None:
        """Remove everything; the caller holds the lock exclusively, and nothing is mounted on `m` any more.

        Renamed first: whoever waits for the lock, or writes counters, sees at once that this server is history.
        """
        gone = f"{self.path}.gone"
        with suppress(FileNotFoundError):
            os.rename(self.path, gone)
        for directory, _names, files in os.walk(gone, topdown=False):
            for name in files:
                with suppress(FileNotFoundError):
                    os.unlink(os.path.join(directory, name))
            with suppress(FileNotFoundError):
                os.rmdir(directory)

    def add_lease(self, target: str) -> None:
        """Record that the overlay on `target` uses this server."""
        path = os.path.join(self.leases, hashlib.sha256(os.fsencode(target)).hexdigest()[:32])
        temp = f"{path}.{os.getpid()}"
        with open(temp, "wb") as file:
            file.write(os.fsencode(target))
        os.rename(temp, path)

    def leased(self) -> dict[str, str]:
        """Return lease file → target; a lease being written is not there yet."""
        found = {}
        for name in _list(self.leases):
            if "." not in name:
                path = os.path.join(self.leases, name)
                with suppress(FileNotFoundError), open(path, "rb") as file:
                    found[path] = os.fsdecode(file.read())
        return found

    def is_alive(self) -> bool:
        """Tell whether a server holds `alive`."""
        try:
            fd = os.open(self.alive, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        else:
            return False
        finally:
            os.close(fd)


def _list(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except FileNotFoundError:
        return []


class Served(NamedTuple):
    """What a server is asked to serve."""

    squash: str
    engine: str
    shift: Shift


def server_key(served: Served) -> str:
    """Name a server: another namespace, file (also a new file of the same name) or shift is another server."""
    info = os.stat(served.squash)
    parts = (namespace_id(), info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, served.engine, served.shift)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


@contextmanager
def using_server(state: str, plan: MountPlan, config: Config, log: Log) -> Iterator[ServerDir]:
    """Yield a living server for the plan's squash file; it cannot end before the block does.

    Starts one if there is none. Whoever mounts something on top writes a lease inside the block.
    """
    served = Served(plan.squash, plan.engine, plan.shift)
    place = ServerDir(os.path.join(state, server_key(served)))
    lock = _locked(place, fcntl.LOCK_SH)
    try:
        if not _serving(place):
            os.close(lock)
            lock = _locked(place, fcntl.LOCK_EX)
            if not _serving(place):
                _start(place, served, config, log)
        yield place
    finally:
        os.close(lock)


def _locked(place: ServerDir, how: int) -> int:
    while True:
        place.make()
        fd = os.open(place.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(fd, how)
        try:
            if os.stat(place.lock).st_ino == os.fstat(fd).st_ino:
                place.make()
                return fd
        except FileNotFoundError:
            pass
        # a server that ended removed this file while we waited for it
        os.close(fd)


def _serving(place: ServerDir) -> bool:
    return place.is_alive() and is_mounted(place.mountpoint)


def is_mounted(path: str) -> bool:
    """Tell whether something is mounted here, without touching it: a dead or hung server would answer or block."""
    return any(mount.target == path for mount in read_mounts())


def _start(place: ServerDir, served: Served, config: Config, log: Log) -> None:
    """Start the server and wait until it is mounted. Raises what went wrong in it."""
    clear_dead(place)

    def serve(ready: int) -> None:
        from .supervisor import supervise  # noqa: PLC0415 - the reader and the engine; only who starts a server pays

        supervise(place, served, config, log, ready)

    daemonise(serve, log.fail)


def clear_dead(place: ServerDir) -> None:
    """Take away what a server that was killed left: its mount (every access fails with ENOTCONN) and its leases."""
    while is_mounted(place.mountpoint):
        linux.umount(place.mountpoint, linux.MNT_DETACH)
    for lease in place.leased():
        os.unlink(lease)


def daemonise(serve: Callable[[int], None], fail: Callable[[str], None] = quiet) -> None:
    """Run `serve` in a process of its own and return when it has written `ok` to the descriptor it is given.

    An error of `serve` before that is raised here; a bug's traceback goes to `fail`.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        _become_daemon(serve, fail, writer)
    os.close(writer)
    with open(reader, "rb") as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    if answer != b"ok":
        raise _reported(answer)


def _become_daemon(serve: Callable[[int], None], fail: Callable[[str], None], writer: int) -> None:
    code = 1
    try:
        # Podman waits until everybody has closed the ends of its pipes: fork twice, own session, no terminal.
        if os.fork() != 0:
            os._exit(0)
        os.setsid()
        writer = _close_all_but(writer)
        serve(writer)
        code = 0
    except SquashmountError as err:
        report = {"brief": err.brief, "details": err.details, "hint": err.hint, "code": err.exit_code}
        with suppress(OSError):
            os.write(writer, json.dumps(report).encode())
    except BaseException:  # noqa: BLE001 - a server has no terminal: a bug must reach the log
        import traceback  # noqa: PLC0415

        fail(traceback.format_exc())
    finally:
        os._exit(code)


def _close_all_but(keep: int) -> int:
    # Whatever Podman (or the job: PMI sockets) left open must not stay open in here, nor the lock of our parent:
    # a flock lives as long as any copy of its descriptor (flock(2))
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.dup2(keep, 3, inheritable=False)
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 3:
            with suppress(OSError):
                os.close(int(name))
    return 3


def _reported(answer: bytes) -> SquashmountError:
    try:
        report = json.loads(answer)
    except ValueError:
        return HostError("The squash file's server ended before it was mounted.", hint="see the log beside the servers")
    error = SquashmountError(report["brief"], details=report["details"], hint=report["hint"])
    error.exit_code = report["code"]
    return error
