"""The server's life: mount, leave Podman's mount namespace, keep a worker serving, end when nothing uses it.

Two processes. The supervisor has one thread and holds no data; the worker speaks FUSE (the wire engine, or
squashfuse_ll on the descriptor it is handed). Why the server leaves the namespace it mounted in: a process keeps its
mount namespace alive. A server inside Podman's would keep every container mount in it (and by them itself) for ever
after Podman's pause process was killed. From outside, the namespace dies with its last process, the kernel drops the
overlays, then the squash mount, and the FUSE connection ends with ENODEV: the server ends by itself, whatever died.
"""

import fcntl
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from . import linux
from .config import Config
from .keeper import Served, ServerDir
from .mountinfo import find_process, namespace_id, read_mounts
from .runtime import Log
from .server.fusemount import mount_fuse
from .squashfs.image import SquashImage


def supervise(place: ServerDir, served: Served, config: Config, log: Log, ready: int) -> None:
    """Serve until the file system is gone. Writes `ok` to `ready` and closes it as soon as it is mounted."""
    alive = os.open(place.alive, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(alive, fcntl.LOCK_EX | fcntl.LOCK_NB)
    image = SquashImage.open(served.squash, cache_bytes=config.cache_mib << 20)
    # No default_permissions: on top is always an overlay, which checks, and nobody else gets through our 0700 directory
    fuse = mount_fuse(place.mountpoint, source="squashmount", default_permissions=False)
    namespace = namespace_id()
    # From here on a failure must not leave a mount that nobody serves
    try:
        leave_namespace()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD, signal.SIGTERM})
        worker = os.fork()
        if worker == 0:
            # the starter waits for the end of this pipe, that is, until all copies of it are closed
            os.close(ready)
            _become_worker(image, served, fuse, place, log)
        _write_info(place, served, namespace, worker)
        os.write(ready, b"ok")
        os.close(ready)
        # The worker alone holds the descriptor now: when it dies the connection aborts, and nobody hangs
        os.close(fuse)
        image.close()
        log(f"serving {served.squash} for namespace {namespace} with {served.engine}, worker {worker}")
        Watch(place, namespace, config.linger, log).run(worker)
    except BaseException:
        detach(place.mountpoint, namespace)
        raise
    log(f"served {served.squash} for namespace {namespace} to the end")


def leave_namespace() -> None:
    """Move to a mount namespace of our own that pins none of the containers' file systems."""
    linux.unshare(linux.CLONE_NEWNS)
    linux.mount(None, "/", None, linux.MS_REC | linux.MS_PRIVATE)
    os.chdir("/")
    needed = tuple(os.path.realpath(path) for path in (sys.prefix, sys.base_prefix, __file__, "/usr/bin"))
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


def _become_worker(image: SquashImage, served: Served, fuse: int, place: ServerDir, log: Log) -> None:
    code = 1
    try:
        linux.die_with_parent()
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        if served.engine == "squashfuse_ll":
            _exec_squashfuse(served.squash, fuse)
        from .worker import work  # noqa: PLC0415 - not needed for squashfuse_ll

        work(image, served, fuse, place, log)
        code = 0
    except BaseException:  # noqa: BLE001 - a server has no terminal: a bug must reach the log
        import traceback  # noqa: PLC0415

        log.fail(f"worker for {served.squash}: {traceback.format_exc()}")
    finally:
        os._exit(code)


def _exec_squashfuse(squash: str, fuse: int) -> None:
    # libfuse >= 3.3 serves an already mounted descriptor given as /dev/fd/N (fuse_session_mount)
    os.set_inheritable(fuse, True)
    program = "squashfuse_ll"
    os.execvp(program, [program, "-f", squash, f"/dev/fd/{fuse}"])  # noqa: S606 - that is the job


def _write_info(place: ServerDir, served: Served, namespace: int, worker: int) -> None:
    info = {
        "squash": served.squash,
        "engine": served.engine,
        "mountpoint": place.mountpoint,
        "namespace": namespace,
        "supervisor": os.getpid(),
        "worker": worker,
        "shift": served.shift._asdict(),
        "started": time.time(),
    }
    with open(place.info, "w", encoding="utf-8") as file:
        json.dump(info, file)


class Watch:
    """Ends the server when no leased target has been mounted for the linger time."""

    def __init__(self, place: ServerDir, namespace: int, linger: float, log: Log) -> None:
        """`linger` is in seconds."""
        self._place = place
        self._namespace = namespace
        self._linger = linger
        self._log = log
        self._tick = min(1.0, max(linger / 4, 0.05))
        self._reader: str | None = None

    def run(self, worker: int) -> None:
        """Return when the worker has ended."""
        unused_since: float | None = None
        ended = False
        while not self._worker_ended(worker):
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

    def _worker_ended(self, worker: int) -> bool:
        try:
            got = signal.sigtimedwait({signal.SIGCHLD, signal.SIGTERM}, self._tick)
        except InterruptedError:
            got = None
        if got is not None and got.si_signo == signal.SIGTERM:
            os.kill(worker, signal.SIGTERM)
        pid, status = os.waitpid(worker, os.WNOHANG)
        if pid and status:
            self._log.fail(f"the worker of {self._place.path} ended with status {os.waitstatus_to_exitcode(status)}")
        return pid != 0

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
        with self._lock() as locked:
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
        with self._lock() as locked:
            if locked:
                targets = self._mounted_targets()
                for lease, target in self._place.leased().items():
                    if target not in targets:
                        os.unlink(lease)

    @contextmanager
    def _lock(self) -> Iterator[bool]:
        """Yield whether nobody else holds the lock; it is ours inside the block then."""
        try:
            lock = os.open(self._place.lock, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            yield True
            return
        try:
            yield _flocked(lock)
        finally:
            os.close(lock)


def _flocked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


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
