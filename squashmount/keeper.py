"""One server per mount namespace, squash file and id shift: find it, start it, hold it while a container is mounted.

Used by the mount program. The server itself is `supervisor`. Invariants (docs/invariants.md):

- `lock` is held shared from the check that a server lives until its lease is written, so the server, which takes it
  exclusively before it ends, can never end between the two.
- `alive` is flocked by the server: whether it lives is asked of the kernel, not of a pid that may have been reused.
"""

import fcntl
import os

from . import linux
from .config import Config
from .errors import HostError, SquashmountError
from .lean import Callable, NamedTuple, fnv1a, suppress
from .mountinfo import namespace_id, read_mounts
from .plan import MountPlan, Shift
from .runtime import Log


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
        self.prefetch = os.path.join(path, "prefetch.json")

    def make(self) -> None:
        """Make the directories that are missing."""
        for path in (self.path, self.mountpoint, self.empty, self.leases):
            with suppress(FileExistsError):
                os.mkdir(path, 0o700)

    def remove(self) -> None:
        """Remove everything; the caller holds the lock exclusively, and nothing is mounted on `m` any more.

        Renamed first: whoever waits for the lock, or writes counters, sees at once that this server is history.
        """
        gone = f"{self.path}.gone-{os.urandom(4).hex()}"
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
        path = self._lease(target)
        temp = f"{path}.{os.getpid()}"
        with open(temp, "wb") as file:
            file.write(os.fsencode(target))
        os.rename(temp, path)

    def drop_lease(self, target: str) -> None:
        """Forget a target that was not mounted after all."""
        with suppress(FileNotFoundError):
            os.unlink(self._lease(target))

    def _lease(self, target: str) -> str:
        return os.path.join(self.leases, fnv1a(os.fsencode(target)))

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
    """What a server is asked to serve.

    `record` is the file it writes a profile to, "" for an ordinary server. `learn` are places for a profile that it
    records by the way, the first that can be written.
    """

    squash: str
    engine: str
    shift: Shift
    record: str = ""
    learn: tuple[str, ...] = ()


def server_key(served: Served) -> str:
    """Name a server: another namespace, cgroup, file (also a new file of the same name) or shift is another server.

    The cgroup, because a job's end kills everything in it: a server that another job started would die with that one.
    All tasks of one Slurm step share a server.
    """
    info = os.stat(served.squash)
    file = (info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns)
    parts = (namespace_id(), _cgroups(), file, served.engine, served.shift, served.record)
    return fnv1a(repr(parts).encode())


def _cgroups() -> list[str]:
    """Return this process's cgroups (cgroups(7), /proc/PID/cgroup) without parts made for one call or one task.

    Podman makes a cgroup for a call, Slurm one for each task of a step (`task_N`; cgroup_v2.html, "hierarchy").
    """
    with open("/proc/self/cgroup", encoding="utf-8", errors="surrogateescape") as file:
        paths = {line.rstrip("\n").split(":", 2)[2] for line in file}
    return sorted({"/".join(part for part in path.split("/") if not part.startswith(_OF_ONE_CALL)) for path in paths})


_OF_ONE_CALL = ("podman-", "libpod", "task_")


class using_server:  # noqa: N801 - a context manager, used as a function; contextlib costs 1.6 ms
    """A living server for the plan's squash file; it cannot end before the block does.

    Starts one if there is none. Whoever mounts something on top writes a lease inside the block.
    """

    def __init__(self, state: str, plan: MountPlan, config: Config, log: Log) -> None:
        """Only name it; the block finds or starts it."""
        self._served = Served(plan.squash, plan.engine, plan.shift, config.record)
        self._place = ServerDir(os.path.join(state, server_key(self._served)))
        self._config = config
        self._log = log
        self._lock = -1

    def __enter__(self) -> ServerDir:
        """Return the server's place, with its lock held shared."""
        while True:
            self._lock = _locked(self._place, fcntl.LOCK_SH)
            if _serving(self._place):
                return self._place
            os.close(self._lock)
            self._start_if_none()

    def __exit__(self, *_error: object) -> None:
        """Let the server end again."""
        os.close(self._lock)

    def _start_if_none(self) -> None:
        place = self._place
        lock = _locked(place, fcntl.LOCK_EX)
        try:
            if place.is_alive() and not is_mounted(place.mountpoint):
                # unmounted by hand under a running container: that one keeps its server, the next get a new one
                place.remove()
            elif not _serving(place):
                _start(place, self._served, self._config, self._log)
        finally:
            os.close(lock)


def _locked(place: ServerDir, how: int) -> int:
    while True:
        place.make()
        fd = os.open(place.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(fd, how)
        if is_current(place, fd):
            place.make()
            return fd
        # a server that ended removed this file while we waited for it
        os.close(fd)


def is_current(place: ServerDir, lock: int) -> bool:
    """Tell whether an open lock file still is the one in its place."""
    try:
        return os.stat(place.lock).st_ino == os.fstat(lock).st_ino
    except FileNotFoundError:
        return False


def _serving(place: ServerDir) -> bool:
    return place.is_alive() and is_mounted(place.mountpoint)


def is_mounted(path: str) -> bool:
    """Tell whether something is mounted here, without touching it: a dead or hung server would answer or block."""
    return any(mount.target == path for mount in read_mounts())


def _start(place: ServerDir, served: Served, config: Config, log: Log) -> None:
    """Start the server and wait until it answers. Raises what went wrong in it. The caller holds the lock alone."""
    clear_dead(place)

    def serve(ready: int) -> None:
        from .supervisor import supervise  # noqa: PLC0415 - the reader and the engine; only who starts a server pays

        supervise(place, served, config, log, ready)

    daemonise(serve, log)
    try:
        os.stat(place.mountpoint)
    except OSError as err:
        raise HostError(
            f"The engine {served.engine} ended as soon as it was started.", details=str(err), hint=f"see {log.path}"
        ) from err


def sweep(state: str) -> list[str]:
    """Remove what killed servers left, also of namespaces that are gone; returns what was removed.

    Removing a directory takes the mount on it away in every namespace (rename(2) and rmdir(2) since Linux 3.18).
    """
    removed = []
    for name in _list(state):
        place = ServerDir(os.path.join(state, name))
        try:
            lock = os.open(place.lock, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            continue  # not a server's directory
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if is_current(place, lock) and not place.is_alive():
                clear_dead(place)
                place.remove()
                removed.append(place.path)
        except OSError:
            continue  # being started just now, or unmountable from here
        finally:
            os.close(lock)
    return removed


def clear_dead(place: ServerDir) -> None:
    """Take away what a server that was killed left: its mount (every access fails with ENOTCONN) and its leases."""
    while is_mounted(place.mountpoint):
        linux.umount(place.mountpoint, linux.MNT_DETACH)
    for lease in place.leased():
        os.unlink(lease)


START_SECONDS = 60.0
"""How long a server may take until it is mounted: reading a superblock from a busy parallel file system."""


def daemonise(serve: Callable[[int], None], log: Log | None = None) -> None:
    """Run `serve` in a process of its own and return when it has written `ok` to the descriptor it is given.

    An error of `serve` before that is raised here; a bug's traceback goes to the log, too.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        _become_daemon(serve, log, writer)
    import select  # noqa: PLC0415 - only who starts a server pays

    os.close(writer)
    with open(reader, "rb") as pipe:
        os.waitpid(child, 0)
        if not select.select([pipe], [], [], START_SECONDS)[0]:
            raise HostError(f"The server was not ready in {START_SECONDS:g} s.", hint="is the shared file system slow?")
        answer = pipe.read()
    if answer != b"ok":
        raise _reported(answer)


def _become_daemon(serve: Callable[[int], None], log: Log | None, writer: int) -> None:
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
        _report(writer, err)
    except BaseException as err:  # noqa: BLE001 - a server has no terminal: a bug must reach the log
        import traceback  # noqa: PLC0415

        if log is not None:
            log.fail(traceback.format_exc())
        where = f"see {log.path}" if log is not None else ""
        _report(
            writer, HostError("The squash file's server failed.", details=f"{type(err).__name__}: {err}", hint=where)
        )
    finally:
        os._exit(code)


def say_ready(ready: int) -> None:
    """Tell the starter that the mount is there. The descriptor stays, as /dev/null: nothing else gets its number."""
    os.write(ready, b"ok")
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    os.dup2(null, ready, inheritable=False)
    os.close(null)


def _report(writer: int, err: SquashmountError) -> None:
    import json  # noqa: PLC0415 - errors only

    report = {"brief": err.brief, "details": err.details, "hint": err.hint, "code": err.exit_code}
    with suppress(OSError):  # after `ok` nobody listens any more
        os.write(writer, json.dumps(report).encode())


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
    import json  # noqa: PLC0415 - errors only

    try:
        report = json.loads(answer)
    except ValueError:
        return HostError("The squash file's server ended before it was mounted.", hint="see the log beside the servers")
    error = SquashmountError(report["brief"], details=report["details"], hint=report["hint"])
    error.exit_code = report["code"]
    return error
