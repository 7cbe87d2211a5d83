"""A directory shown again through FUSE as a node sees it on a parallel file system: slow requests, shared bandwidth.

    passthrough.py SOURCE MOUNTPOINT [--delay SECONDS] [--bandwidth BYTES_PER_SECOND --clock FILE] [--read-ahead BYTES]

One mount is one simulated node: a superblock of its own, so a page cache of its own. As a client of Lustre or GPFS the
node keeps data it has read and, for a second, names and attributes; every other request sleeps `--delay` in a thread of
its own, outside of any lock, and READ then waits for its turn on the line of `--bandwidth` that all mounts with the
same `--clock` share. Locks are the node's own, and nothing can be written.

Prints "ready", then answers lines on standard input: `reset` forgets what was counted, `counts` prints requests and
bytes by file, `trace` every request in order. At the end of the input it unmounts and ends.

Why not pyfuse3: an event loop rounds a sleep of 0.2 ms up to the milliseconds of epoll_wait(2).
"""

import argparse
import ctypes
import errno
import fcntl
import json
import mmap
import os
import struct
import sys
import threading
import time
from contextlib import suppress
from typing import Any, NamedTuple

from squashmount import linux

THREADS = 64
"""Requests of one node that sleep at the same time; a client of Lustre has 8 to 64 in flight for each server."""
LIFETIME = 1
"""Seconds a name or attribute is used without asking again."""
READ_AHEAD = 1 << 20
"""Bytes, also the largest request: what clients of Lustre and GPFS do (Linux' own FUSE clients: 128 KiB)."""

LOOKUP, GETATTR, READLINK, OPEN, READ, STATFS, RELEASE, INIT, OPENDIR, READDIR, RELEASEDIR, DESTROY = (
    *(1, 3, 5, 14, 15, 17),
    *(18, 26, 27, 28, 29, 38),
)
FORGET, BATCH_FORGET = 2, 42
NAMES = {
    LOOKUP: "lookup",
    GETATTR: "getattr",
    READLINK: "readlink",
    OPEN: "open",
    READ: "read",
    STATFS: "statfs",
    OPENDIR: "opendir",
    READDIR: "readdir",
}
"""What is counted and delayed. RELEASE is not: nobody waits for it."""

_ASYNC_READ, _PARALLEL_DIROPS, _MAX_PAGES = 1 << 0, 1 << 18, 1 << 22
_KEEP_CACHE = 1 << 1
_MINOR = 31
_PR_SET_TIMERSLACK = 29
# include/uapi/linux/fuse.h
_IN = struct.Struct("=IIQQIIIHH")
_OUT = struct.Struct("=IiQ")
_ATTR = struct.Struct("=6Q10I")
_ENTRY = struct.Struct("=4Q2I")
_INIT_OUT = struct.Struct("=4I2H2I2HI28x")
_DIRENT = struct.Struct("=QQII")


class Line:
    """Bandwidth that processes share: bytes pass one after another. The time it is free from is in a mapped file."""

    def __init__(self, path: str, rate: float) -> None:
        """`rate` is in bytes a second, 0 for no limit; all who share `path` must say the same."""
        self._rate = rate
        self._lock = threading.Lock()
        if rate:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            os.ftruncate(self._fd, 8)
            self._free = mmap.mmap(self._fd, 8)

    def wait(self, size: int) -> None:
        """Return when `size` bytes have passed."""
        if not self._rate:
            return
        with self._lock:  # record locks are the process's, not the thread's
            fcntl.lockf(self._fd, fcntl.LOCK_EX)
            now = time.monotonic()  # the same clock in every process (clock_gettime(2))
            end = max(now, struct.unpack("=d", self._free[:])[0]) + size / self._rate
            self._free[:] = struct.pack("=d", end)
            fcntl.lockf(self._fd, fcntl.LOCK_UN)
        time.sleep(end - now)


class Book:
    """What was asked for, in order; counted when somebody wants to know."""

    def __init__(self) -> None:
        """Nothing was asked."""
        self.asked: list[tuple[str, str, int, int]] = []

    def note(self, kind: str, path: bytes, offset: int = 0, size: int = 0) -> None:
        """Write down one request; `size` is what READ returned."""
        self.asked.append((kind, os.fsdecode(path), offset, size))  # list.append is atomic

    def counts(self) -> dict[str, dict[str, int]]:
        """Return path -> {kind of request: number, "bytes": number}."""
        found: dict[str, dict[str, int]] = {}
        for kind, path, _offset, size in self.asked[:]:
            row = found.setdefault(path, {"bytes": 0})
            row[kind] = row.get(kind, 0) + 1
            row["bytes"] += size
        return found


class Request(NamedTuple):
    """One request."""

    opcode: int
    node: int
    body: bytes


class Passthrough:
    """The file system: nodes are numbered paths, never forgotten (a store has few)."""

    def __init__(self, source: bytes, delay: float, line: Line, read_ahead: int) -> None:
        """Show `source`; `delay` is in seconds, `read_ahead` in bytes."""
        self._source = source
        self._delay = delay
        self._line = line
        self._read_ahead = read_ahead
        self._lock = threading.Lock()
        self._paths = [b"", b""]
        self._nodes = {b"": 1}
        self._listings: dict[int, list[tuple[bytes, int]]] = {}
        self.book = Book()
        self._handlers = {
            LOOKUP: self._lookup,
            GETATTR: self._getattr,
            READLINK: self._readlink,
            OPEN: self._open,
            READ: self._read,
            STATFS: self._statfs,
            OPENDIR: self._opendir,
            READDIR: self._readdir,
            INIT: self._init,
            RELEASE: self._release,
            RELEASEDIR: self._nothing,
            DESTROY: self._nothing,
        }

    def serve(self, fd: int) -> None:
        """Answer requests in the calling thread until the file system is unmounted."""
        while True:
            try:
                raw = os.read(fd, 1 << 17)
            except OSError as err:
                if err.errno in {errno.ENOENT, errno.EINTR}:  # withdrawn while it was fetched
                    continue
                return
            _, opcode, unique, node, *_ = _IN.unpack_from(raw)
            if opcode in {FORGET, BATCH_FORGET}:
                continue
            error, reply = 0, b""
            try:
                if opcode in NAMES:
                    time.sleep(self._delay)
                reply = self._answer(Request(opcode, node, raw[_IN.size :]))
            except OSError as err:
                error = -(err.errno or errno.EIO)
            except Exception as err:  # noqa: BLE001 - an unanswered request is a process nobody can kill
                print(f"passthrough: request {opcode}: {err!r}", file=sys.stderr, flush=True)
                error = -errno.EIO
            with suppress(OSError):  # interrupted or unmounted meanwhile
                os.writev(fd, (_OUT.pack(_OUT.size + len(reply), error, unique), reply))

    def _answer(self, request: Request) -> bytes:
        # ENOSYS: the kernel does not ask again (FLUSH, ACCESS, GETXATTR, INTERRUPT ...)
        handler = self._handlers.get(request.opcode)
        if handler is None:
            raise OSError(errno.ENOSYS, "")
        if request.opcode in NAMES and request.opcode not in {LOOKUP, READ}:
            self.book.note(NAMES[request.opcode], self._paths[request.node])
        return handler(request)

    def _real(self, path: bytes) -> bytes:
        return os.path.join(self._source, path)

    def _init(self, request: Request) -> bytes:
        flags = struct.unpack_from("=4I", request.body)[3]
        flags &= _ASYNC_READ | _PARALLEL_DIROPS | _MAX_PAGES
        pages = max(1, self._read_ahead >> 12)
        return _INIT_OUT.pack(7, _MINOR, self._read_ahead, flags, THREADS, THREADS, 64 << 10, 1, pages, 0, 0)

    def _lookup(self, request: Request) -> bytes:
        path = os.path.join(self._paths[request.node], request.body.split(b"\0", 1)[0])
        self.book.note("lookup", path)
        try:
            info = os.lstat(self._real(path))
        except FileNotFoundError:
            return _ENTRY.pack(0, 0, LIFETIME, 0, 0, 0) + bytes(_ATTR.size)  # absent, and known to be for a while
        with self._lock:
            node = self._nodes.setdefault(path, len(self._paths))
            if node == len(self._paths):
                self._paths.append(path)
        return _ENTRY.pack(node, 0, LIFETIME, LIFETIME, 0, 0) + _attributes(info)

    def _getattr(self, request: Request) -> bytes:
        info = os.lstat(self._real(self._paths[request.node]))
        return struct.pack("=Q2I", LIFETIME, 0, 0) + _attributes(info)

    def _readlink(self, request: Request) -> bytes:
        return os.readlink(self._real(self._paths[request.node]))

    def _open(self, request: Request) -> bytes:
        (flags,) = struct.unpack_from("=I", request.body)
        if flags & os.O_ACCMODE != os.O_RDONLY:
            raise OSError(errno.EROFS, "")
        fd = os.open(self._real(self._paths[request.node]), os.O_RDONLY | os.O_CLOEXEC)
        return struct.pack("=Q2I", fd, _KEEP_CACHE, 0)

    def _release(self, request: Request) -> bytes:
        os.close(struct.unpack_from("=Q", request.body)[0])
        return b""

    def _read(self, request: Request) -> bytes:
        fd, offset, size = struct.unpack_from("=QQI", request.body)
        data = os.pread(fd, size, offset)
        self.book.note("read", self._paths[request.node], offset, len(data))
        self._line.wait(len(data))
        return data

    def _nothing(self, _request: Request) -> bytes:
        return b""

    def _statfs(self, _request: Request) -> bytes:
        usage = os.statvfs(self._source)
        numbers = (usage.f_blocks, 0, 0, usage.f_files, 0)
        return struct.pack("=5Q4I24x", *numbers, usage.f_bsize, usage.f_namemax, usage.f_frsize, 0)

    def _opendir(self, request: Request) -> bytes:
        with os.scandir(self._real(self._paths[request.node])) as entries:
            found = [(entry.name, entry.inode()) for entry in entries]
        with self._lock:
            handle = len(self._listings)
            self._listings[handle] = [(b".", 1), (b"..", 1), *found]
        return struct.pack("=Q2I", handle, 0, 0)

    def _readdir(self, request: Request) -> bytes:
        handle, offset, size = struct.unpack_from("=QQI", request.body)
        reply = b""
        for number, (name, inode) in enumerate(self._listings[handle][offset:], offset + 1):
            entry = _DIRENT.pack(inode, number, len(name), 0) + name + bytes(-len(name) % 8)  # 0: DT_UNKNOWN
            if len(reply) + len(entry) > size:
                break
            reply += entry
        return reply


def _attributes(info: os.stat_result) -> bytes:
    # stat's seconds are whole in its tuple; times are used to find changed stores, so the parts count
    times = [info.st_atime_ns, info.st_mtime_ns, info.st_ctime_ns]
    seconds, parts = [one // 10**9 for one in times], [one % 10**9 for one in times]
    owner = (info.st_mode, info.st_nlink, info.st_uid, info.st_gid, info.st_rdev, 4096, 0)
    return _ATTR.pack(info.st_ino, info.st_size, info.st_blocks, *seconds, *parts, *owner)


def _mount(source: str, mountpoint: str) -> int:
    fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    data = f"fd={fd},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions"
    flags = linux.MS_RDONLY | linux.MS_NODEV | linux.MS_NOSUID
    linux.mount(source, mountpoint, "fuse.parallel", flags, data)
    return fd


def _set_read_ahead(mountpoint: str, size: int) -> None:
    """INIT can only lower it: the kernel begins with 128 KiB (fs/fuse/inode.c, process_init_reply)."""
    device = os.stat(mountpoint).st_dev
    with open(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb", "w", encoding="ascii") as file:
        file.write(str(size >> 10))


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("source")
    parser.add_argument("mountpoint")
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--bandwidth", type=float, default=0.0)
    parser.add_argument("--clock", default="")
    parser.add_argument("--read-ahead", type=int, default=READ_AHEAD)
    options = parser.parse_args(argv)
    # threads inherit it (prctl(2)); by default a sleep may take 50 microseconds longer
    ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)
    line = Line(options.clock, options.bandwidth)
    shown = Passthrough(os.fsencode(options.source), options.delay, line, options.read_ahead)
    fd = _mount(options.source, options.mountpoint)
    for _ in range(THREADS):
        threading.Thread(target=shown.serve, args=(fd,), daemon=True).start()
    _set_read_ahead(options.mountpoint, options.read_ahead)
    print("ready", flush=True)
    commands: dict[str, Any] = {
        "counts": shown.book.counts,
        "trace": lambda: shown.book.asked[:],
        "reset": shown.book.asked.clear,
    }
    for command in sys.stdin:
        print(json.dumps(commands[command.strip()]()), flush=True)
    linux.umount(options.mountpoint, linux.MNT_DETACH)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
