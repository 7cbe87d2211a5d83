"""The server's life: mount, leave Podman's mount namespace, keep a worker serving, end when nothing uses it.

Two processes. The supervisor has one thread and holds no data; the worker speaks FUSE (the wire engine, or
squashfuse_ll on the descriptor it is handed). Why the server leaves the namespace it mounted in: a process keeps its
mount namespace alive. A server inside Podman's would keep every container mount in it (and by them itself) for ever
after Podman's pause process was killed. From outside, the namespace dies with its last process, the kernel drops the
overlays, then the squash mount, and the FUSE connection ends with ENODEV: the server ends by itself, whatever died.
"""

import fcntl
import os
import struct
import sys
import time

from . import linux
from .config import Config
from .host import probe_host
from .images import open_image
from .keeper import Served, ServerDir, is_current, say_ready, sweep
from .layout import learned_profiles, profile_of
from .lean import TYPE_CHECKING, NamedTuple, json_text, signal, suppress
from .mountinfo import find_process, namespace_id, read_mounts
from .runtime import Log, Report
from .server.fusemount import DEVICE, mount_fuse
from .squashfs.image import SquashImage

if TYPE_CHECKING:
    from .server.prefetch import Hot
    from .staging import Local

RESEND = (6, 9)
"""First Linux that sends unanswered requests again (FUSE_NOTIFY_RESEND, Documentation/filesystems/fuse.rst)."""

_CRASHES = 5
"""So many workers may end by themselves in a minute: more, and it is a request that kills whoever answers it."""
_KILLS = 200
"""So many may be killed by somebody else in a minute: whoever kills faster wants the server gone."""
_CLONE = 0x8004E500
"""FUSE_DEV_IOC_CLONE, _IOR(229, 0, uint32_t) (include/uapi/linux/fuse.h, Linux 4.2)."""
_IGNORED = (signal.SIGHUP, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU, signal.SIGPIPE)


def supervise(place: ServerDir, served: Served, config: Config, log: Log, ready: int) -> None:
    """Serve until the file system is gone. Says on `ready` when it is mounted. Raises only before that."""
    _hold_alive(place)
    lock = os.open(place.lock, os.O_RDWR | os.O_CLOEXEC)
    image = open_image(served.squash, config)
    local = _open_local(served, config, log)
    # No default_permissions: on top is always an overlay, which checks, and nobody else gets through our 0700 directory
    fuse = mount_fuse(place.mountpoint, source=served.squash, default_permissions=False)
    namespace = namespace_id()
    # From here on a failure must not leave a mount that nobody serves
    try:
        places = _profiles(served, config)
        hot = _hot(place, config, image, places)
        if places and not hot and config.profile == "auto" and not any(map(os.path.exists, places)):
            served = served._replace(learn=places)
        leave_namespace()
        _settle_signals()
        if hot:
            hot.prefetch(budget=config.prefetch_mib << 20, report=Report.of(place.prefetch), log=log)
        workers = Workers(Serving(image, served, fuse, place, namespace, log, local), ready)
        say_ready(ready)
        log(f"serving {served.squash} for namespace {namespace} with {served.engine}, worker {workers.pid}")
        sweep(os.path.dirname(place.path))
        Watch(place, lock, namespace, config.linger, log).run(workers)
    except BaseException:
        detach(place.mountpoint, namespace)
        raise
    log(f"served {served.squash} for namespace {namespace} to the end")


def _profiles(served: Served, config: Config) -> tuple[str, ...]:
    """Return where a profile of the image may be, the first of them that exists counts."""
    if served.engine != "wire" or served.record:
        return ()
    if config.profile == "auto":
        return learned_profiles(served.squash, dict(os.environ))
    beside = profile_of(served.squash)
    return (beside,) if beside else ()


def _hot(place: ServerDir, config: Config, image: SquashImage, places: tuple[str, ...]) -> "Hot | None":
    """Return what a recorded profile says about the image, if there is one, and a processor to spare."""
    if not config.prefetch_mib or len(os.sched_getaffinity(0)) < 2:
        return None
    for path in places:
        if os.path.exists(path):
            from .server.prefetch import find  # noqa: PLC0415 - only where there is a profile

            return find(path, image, place.mountpoint)
    return None


def _open_local(served: Served, config: Config, log: Log) -> "Local | None":
    if not config.stage_dir or served.engine != "wire":
        return None
    from .staging import open_local  # noqa: PLC0415 - only where the site wants it

    return open_local(served.squash, config, log)


def _hold_alive(place: ServerDir) -> None:
    alive = os.open(place.alive, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    for _ in range(100):
        # `squashmount ps` asks who holds it by a short lock of its own
        with suppress(BlockingIOError):
            fcntl.flock(alive, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        time.sleep(0.01)
    fcntl.flock(alive, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _settle_signals() -> None:
    # What a job's end, a logout or `srun --signal` sends to every process of a user must not take the image away from
    # containers that still run. SIGTERM means: end as soon as nobody uses it.
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD, signal.SIGTERM})


def leave_namespace() -> None:
    """Move to a mount namespace of our own that pins none of the containers' file systems."""
    linux.unshare(linux.CLONE_NEWNS)
    linux.mount(None, "/", None, linux.MS_REC | linux.MS_PRIVATE)
    os.chdir("/")
    needed = tuple(os.path.realpath(path) for path in (*filter(None, sys.path), sys.prefix, __file__, "/usr/bin"))
    for mount in reversed(read_mounts()):
        if mount.fstype != "overlay" and not mount.fstype.startswith("fuse"):
            continue
        if any(_below(path, mount.target) for path in needed):
            continue
        # EINVAL: locked to its parent by the machine's own namespace (mount_namespaces(7)), hence not a container's
        with suppress(OSError):
            linux.umount(mount.target, linux.MNT_DETACH)


def _below(path: str, directory: str) -> bool:
    return path == directory or path.startswith(directory.rstrip("/") + "/")


class Serving(NamedTuple):
    """What the workers of one server have in common."""

    image: SquashImage
    served: Served
    fuse: int
    place: ServerDir
    namespace: int
    log: Log
    local: "Local | None" = None


class Workers:
    """The worker, and its successor when it was killed.

    The supervisor keeps the descriptor of the connection open, so a killed worker is an interruption, not an end: the
    next one asks for the unanswered requests again. Where the kernel cannot do that, a worker reads requests from a
    clone of the descriptor that only it holds: when it dies, what it had taken on fails with ECONNABORTED at once
    (fs/fuse/dev.c, fuse_dev_release), and everything else goes to the next one. squashfuse_ll has a state to lose:
    there the descriptor is closed, and the connection ends with ENOTCONN for everybody.
    """

    def __init__(self, serving: Serving, ready: int) -> None:
        """Start the first worker."""
        self._serving = serving
        self._parent = os.getpid()
        self._ends: list[tuple[bool, float]] = []
        self._resends = probe_host().kernel >= RESEND
        self.pid = self._start(ready)
        self._replaceable = serving.served.engine == "wire"
        if not self._replaceable:
            os.close(serving.fuse)

    def ended(self) -> bool:
        """Tell whether the worker has ended for good; replaces one that was killed."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if not pid:
            return False
        if not status:
            return True
        log, squash = self._serving.log, self._serving.served.squash
        log.fail(f"the worker of {squash} ended with {os.waitstatus_to_exitcode(status)}")
        if not self._replaceable or self._too_often(killed=os.waitstatus_to_exitcode(status) == -signal.SIGKILL):
            return True
        self.pid = self._start(None)
        log(f"worker {self.pid} takes over")
        return False

    def _too_often(self, *, killed: bool) -> bool:
        now = time.monotonic()
        self._ends = [(how, when) for how, when in self._ends if now - when < 60] + [(killed, now)]
        return sum(how == killed for how, _when in self._ends) > (_KILLS if killed else _CRASHES)

    def _start(self, ready: int | None) -> int:
        pid = os.fork()
        if pid == 0:
            self._become_worker(ready)
        _write_info(self._serving, pid)
        return pid

    def _become_worker(self, ready: int | None) -> None:
        code = 1
        image, served, fuse, place, _namespace, log, local = self._serving
        try:
            linux.die_with_parent(self._parent)
            if ready is not None:
                # the starter waits for the end of this pipe, that is, until all copies of it are closed
                os.close(ready)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            if served.engine == "squashfuse_ll":
                _exec_squashfuse(image.fileno(), fuse)
            from .worker import work  # noqa: PLC0415 - not needed for squashfuse_ll

            resumed = ready is None and self._resends
            work(image, served, fuse if self._resends else _clone(fuse), place, log, local, resumed=resumed)
            code = 0
        except BaseException:  # noqa: BLE001 - a server has no terminal: a bug must reach the log
            import traceback  # noqa: PLC0415

            log.fail(f"worker for {served.squash}: {traceback.format_exc()}")
        finally:
            os._exit(code)


def _clone(fuse: int) -> int:
    """Return a descriptor of the same connection with unanswered requests of its own."""
    clone = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    fcntl.ioctl(clone, _CLONE, struct.pack("=I", fuse))
    return clone


def _exec_squashfuse(squash: int, fuse: int) -> None:
    # libfuse >= 3.3 serves an already mounted descriptor given as /dev/fd/N (fuse_session_mount). The file by its
    # descriptor, too: its name may lie on a mount that we have left behind.
    program = probe_host().squashfuse_ll or "squashfuse_ll"
    for fd in (fuse, squash):
        os.set_inheritable(fd, True)
    os.execv(program, [program, "-f", f"/proc/self/fd/{squash}", f"/dev/fd/{fuse}"])  # noqa: S606 - that is the job


def _write_info(serving: Serving, worker: int) -> None:
    info = {
        "squash": serving.served.squash,
        "engine": serving.served.engine,
        "mountpoint": serving.place.mountpoint,
        "namespace": serving.namespace,
        "supervisor": os.getpid(),
        "worker": worker,
        "shift": serving.served.shift._asdict(),
        "started": time.time(),
    }
    with suppress(FileNotFoundError), open(serving.place.info, "w", encoding="utf-8") as file:
        file.write(json_text(info))


class Watch:
    """Ends the server when no leased target has been mounted for the linger time."""

    def __init__(self, place: ServerDir, lock: int, namespace: int, linger: float, log: Log) -> None:
        """`linger` is in seconds; `lock` is the place's lock file, opened while it was ours."""
        self._place = place
        self._lock_file = lock
        self._namespace = namespace
        self._linger = linger
        self._log = log
        self._tick = min(1.0, max(linger / 4, 0.05))
        self._reader: str | None = None

    def run(self, workers: Workers) -> None:
        """Return when the worker has ended for good."""
        unused_since: float | None = None
        ended = False
        while not workers.ended():
            self._wait()
            if ended:
                continue
            if self._in_use():
                unused_since = None
                self._forget_ended()
            elif unused_since is None:
                unused_since = time.monotonic()
            if unused_since is not None and time.monotonic() - unused_since >= self._linger:
                ended = self._end()
        if not ended:
            self._end()

    def _wait(self) -> None:
        with suppress(InterruptedError):
            got = signal.sigtimedwait({signal.SIGCHLD, signal.SIGTERM}, self._tick)
            if got is not None and got.si_signo == signal.SIGTERM:
                self._linger = 0

    def _in_use(self) -> bool:
        leases = self._place.leased()
        if not leases:
            return False
        targets = self._mounted_targets()
        return any(target in targets for target in leases.values())

    def _mounted_targets(self) -> set[str]:
        """Return the mount points of the containers' namespace; empty when no process is left in it."""
        for _attempt in range(2):
            try:
                if self._reader is not None and namespace_id(self._reader) == self._namespace:
                    return {mount.target for mount in read_mounts(self._reader)}
            except OSError:
                pass
            self._reader = find_process(self._namespace)
        return set()

    def _end(self) -> bool:
        """Take the mount point away so that the next container gets a new server; False if somebody came meanwhile.

        The file system lives on as long as an overlay still uses it, and so does the worker.
        """
        with _Lock(self._lock_file) as locked:
            if not is_current(self._place, self._lock_file):
                return True  # another server has this place now: nothing in it is ours
            if not locked or self._in_use():
                return False
            detach(self._place.mountpoint, self._namespace)
            # Never an error from here: it would end this process, with it the worker, and somebody may still be reading
            try:
                self._place.remove()
            except OSError as err:
                self._log.fail(f"cannot remove {self._place.path}: {err}")
        return True

    def _forget_ended(self) -> None:
        """Drop the leases of containers that are gone, unless one is being mounted (its lease comes first)."""
        with _Lock(self._lock_file) as locked:
            if locked and is_current(self._place, self._lock_file):
                targets = self._mounted_targets()
                for lease, target in self._place.leased().items():
                    if target not in targets:
                        os.unlink(lease)


class _Lock:
    """Tells whether nobody else holds the lock; it is ours inside the block then."""

    def __init__(self, file: int) -> None:
        self._file = file

    def __enter__(self) -> bool:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def __exit__(self, *_error: object) -> None:
        fcntl.flock(self._file, fcntl.LOCK_UN)


def detach(mountpoint: str, namespace: int) -> None:
    """Unmount `mountpoint` lazily in the namespace it was mounted in, if a process is left there to enter it by."""
    process = find_process(namespace)
    if process is None:
        return
    pid = os.fork()
    if pid == 0:
        # setns(2) for mount namespaces wants a process with one thread; this one is thrown away
        try:
            linux.setns(os.open(f"/proc/{process}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC), linux.CLONE_NEWNS)
            linux.umount(mountpoint, linux.MNT_DETACH)
        except OSError:
            os._exit(1)
        os._exit(0)
    os.waitpid(pid, 0)
