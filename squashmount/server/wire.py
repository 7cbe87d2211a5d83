"""The FUSE protocol spoken directly on a mounted /dev/fuse descriptor: reads requests, writes replies.

Why not libfuse: it cannot serve zero-message open with node ids (the descriptor of an open file is then 0), and that
is what makes opening a cached file cost nothing. What makes it fast besides: READDIRPLUS always, entries and
attributes valid for a year, absent names remembered, READ answered from the cache's own buffers.

One rule above all: every request is answered. A request without a reply leaves its process in uninterruptible sleep.

Source: kernel include/uapi/linux/fuse.h (protocol 7.x, struct layouts), fs/fuse/dev.c, inode.c, readdir.c.
"""

import errno
import gc
import os
import struct

from squashmount.errors import DamagedError
from squashmount.lean import Callable, Final, NamedTuple, Sequence, Thread, local, suppress
from squashmount.squashfs.blocks import Buffer

from .complaints import Complaints, Log
from .listing import Listings
from .tree import EXPECTED, LIFETIME, Attr, Tree

_LOOKUP, _FORGET, _GETATTR, _SETATTR, _READLINK, _SYMLINK = 1, 2, 3, 4, 5, 6
_MKNOD, _MKDIR, _UNLINK, _RMDIR, _RENAME, _LINK, _OPEN, _READ, _WRITE, _STATFS = 8, 9, 10, 11, 12, 13, 14, 15, 16, 17
_RELEASE, _SETXATTR, _GETXATTR, _LISTXATTR, _REMOVEXATTR, _INIT, _OPENDIR = 18, 21, 22, 23, 24, 26, 27
_READDIR, _RELEASEDIR, _CREATE, _DESTROY, _IOCTL, _NOTIFY_REPLY = 28, 29, 35, 38, 39, 41
_BATCH_FORGET, _FALLOCATE, _READDIRPLUS, _RENAME2, _TMPFILE = 42, 43, 44, 45, 51
_OPCODES: Final = 64

_OPCODE_NAMES: Final = {
    1: "lookup", 2: "forget", 3: "getattr", 5: "readlink", 14: "open", 15: "read", 17: "statfs", 18: "release",
    22: "getxattr", 23: "listxattr", 25: "flush", 26: "init", 27: "opendir", 28: "readdir", 29: "releasedir",
    34: "access", 36: "interrupt", 38: "destroy", 39: "ioctl", 42: "batch_forget", 44: "readdirplus", 46: "lseek",
    52: "statx",
}  # fmt: skip

_WRITES: Final = frozenset({
    _SETATTR, _SYMLINK, _MKNOD, _MKDIR, _UNLINK, _RMDIR, _RENAME, _LINK, _WRITE, _SETXATTR, _REMOVEXATTR, _CREATE,
    _FALLOCATE, _RENAME2, _TMPFILE,
})  # fmt: skip

_NO_REPLY: Final = frozenset({_FORGET, _BATCH_FORGET, _NOTIFY_REPLY})

_ASYNC_READ = 1 << 0
_EXPORT_SUPPORT = 1 << 4
_DO_READDIRPLUS = 1 << 13
_NO_OPEN_SUPPORT = 1 << 17
_PARALLEL_DIROPS = 1 << 18
_MAX_PAGES = 1 << 22
_CACHE_SYMLINKS = 1 << 23
_NO_OPENDIR_SUPPORT = 1 << 24
_INIT_EXT = 1 << 30
_HAS_RESEND = 1 << 39
_WANTED = (
    _ASYNC_READ
    | _EXPORT_SUPPORT
    | _DO_READDIRPLUS
    | _NO_OPEN_SUPPORT
    | _PARALLEL_DIROPS
    | _MAX_PAGES
    | _CACHE_SYMLINKS
    | _NO_OPENDIR_SUPPORT
    | _INIT_EXT
    | _HAS_RESEND
)

_KEEP_CACHE = 1 << 1
_CACHE_DIR = 1 << 3

_NOTIFY_RESEND = 7

_COLLECT_AFTER = 50_000
"""Objects, instead of 700 (gc.set_threshold)."""

_MINOR = 40  # the newest protocol read for this file; the kernel and we use the smaller number
_LEAST_MINOR = 27  # Linux 4.18, the first that lets a user namespace mount FUSE
_PAGES_PER_REQUEST = 256  # 1 MiB, the default of fs.fuse.max_pages_limit
_BACKGROUND, _CONGESTION = 512, 384

# Nobody writes, so requests are small; the kernel demands room for max_write and its headers (fs/fuse/dev.c).
_MAX_WRITE = 64 << 10
_REQUEST_BYTES = _MAX_WRITE + 4096

_IN = struct.Struct("=IIQQIIIHH")
_OUT = struct.Struct("=IiQ")
_ATTR = "6Q10I"
_ENTRY_OUT = struct.Struct("=IiQ4Q2I" + _ATTR)
_ATTR_OUT = struct.Struct("=IiQQ2I" + _ATTR)
_DIRENT = struct.Struct("=QQII")
_READ_IN = struct.Struct("=QQI")
_INIT_IN = struct.Struct("=4I")
_INIT_OUT = struct.Struct("=IiQ4I2H2I2HI28x")
_OPEN_OUT = struct.Struct("=IiQQII")
_GETXATTR_OUT = struct.Struct("=IiQII")
_STATFS_OUT = struct.Struct("=IiQ5Q4I24x")


class Stats:
    """Counters of a server; every thread has its own row, so that counting needs no lock."""

    def __init__(self) -> None:
        """Start at zero."""
        self._rows: list[Row] = []
        self.cache_counts: Callable[[], dict[str, int]] = dict

    def row(self) -> "Row":
        """Return a row for the calling thread."""
        row = Row()
        self._rows.append(row)
        return row

    def snapshot(self) -> dict[str, int]:
        """Return the sums: one key per kind of request seen, and those named here.

        `errors` are requests answered with EIO; those of the cache (Tree.cache_counts) count blocks, not requests.
        """
        found = {"bytes_read": 0, "errors": 0, **self.cache_counts()}
        for row in self._rows:
            found["bytes_read"] += row.bytes_read
            found["errors"] += row.errors
            for opcode, count in enumerate(row.requests):
                if count:
                    name = _OPCODE_NAMES.get(opcode, f"opcode_{opcode}")
                    found[name] = found.get(name, 0) + count
        return found


class Row:
    """One thread's counters."""

    __slots__ = ("bytes_read", "errors", "requests")

    def __init__(self) -> None:
        """Start at zero."""
        self.requests = [0] * _OPCODES
        self.bytes_read = 0
        self.errors = 0


class Request(NamedTuple):
    """One request; `body` is valid until the thread reads the next one."""

    opcode: int
    unique: int
    node: int
    body: memoryview


Observer = Callable[[Request], None]


def serve(
    fuse_fd: int,
    tree: Tree,
    *,
    threads: int = 2,
    stats: Stats | None = None,
    log: Log,
    resumed: bool = False,
    observe: Observer | None = None,
) -> None:
    """Answer requests until the file system is unmounted or the connection aborted; then return.

    `fuse_fd` stays open and the caller's. `resumed`: another process served it before and may have died with requests
    unanswered; the kernel is asked to send those again (Linux 6.9; before, they stay lost). `observe` is called with
    every request before it is answered. Never raises for anything a request or the image can contain.
    """
    # Nothing here makes cycles but errors; looking for them among a million cached entries is 7 % of a walk
    gc.set_threshold(_COLLECT_AFTER)
    server = _Server(fuse_fd, tree, stats or Stats(), log)
    if observe:
        server.observe_with(observe)
    if resumed:
        server.ask_again()
    others: list[Thread] = []
    with suppress(RuntimeError):  # the limit of processes: fewer threads, one at least
        while len(others) < threads - 1:
            thread = Thread(target=server.loop, daemon=True)
            thread.start()
            others.append(thread)
    server.loop()
    for thread in others:
        thread.join()


class _Server:
    """State shared by the threads: written by INIT before any other request exists, then only read."""

    def __init__(self, fd: int, tree: Tree, stats: Stats, log: Log) -> None:
        self._fd = fd
        self._tree = tree
        self._stats = stats
        stats.cache_counts = tree.cache_counts
        self._complain = Complaints(log)
        self._listings = Listings(tree, self._complain)
        # What was negotiated with a predecessor is unknown: real replies to OPEN are always right.
        self._zero_open = False
        self._zero_opendir = False
        self._local = local()
        self._handlers: dict[int, Callable[[Request], Sequence[Buffer]]] = {
            _LOOKUP: self._lookup,
            _GETATTR: self._getattr,
            _READLINK: self._readlink,
            _READ: self._read,
            _READDIR: self._readdir,
            _READDIRPLUS: self._readdirplus,
            _STATFS: self._statfs,
            _INIT: self._init,
            _OPEN: self._open,
            _OPENDIR: self._opendir,
            _RELEASE: self._done,
            _RELEASEDIR: self._done,
            _DESTROY: self._done,
            _GETXATTR: self._getxattr,
            _LISTXATTR: self._listxattr,
        }

    def observe_with(self, observe: Observer) -> None:
        """Show every request that has a handler to somebody first; costs nothing unless it is called."""

        def observed(handler: Callable[[Request], Sequence[Buffer]]) -> Callable[[Request], Sequence[Buffer]]:
            def handle(request: Request) -> Sequence[Buffer]:
                observe(request)
                return handler(request)

            return handle

        self._handlers = {opcode: observed(handler) for opcode, handler in self._handlers.items()}

    def loop(self) -> None:
        """Serve one request after another in the calling thread."""
        row = self._local.row = self._stats.row()
        buffer = bytearray(_REQUEST_BYTES)
        view = memoryview(buffer)
        while True:
            try:
                size = os.readv(self._fd, (buffer,))
            except OSError as err:
                # ENOENT: the request was interrupted while it was being read. EAGAIN: a non-blocking descriptor.
                if err.errno in {errno.ENOENT, errno.EAGAIN, errno.EINTR}:
                    if err.errno == errno.EAGAIN:
                        self._wait()
                    continue
                if err.errno not in {errno.ENODEV, errno.ECONNABORTED}:
                    self._complain(f"reading requests failed: {err}")
                return
            if size < _IN.size:
                self._complain(f"a request of {size} bytes")
                return
            length, opcode, unique, node, *_ = _IN.unpack_from(buffer)
            row.requests[min(opcode, _OPCODES - 1)] += 1
            if opcode not in _NO_REPLY:
                self._answer(Request(opcode, unique, node, view[_IN.size : min(length, size)]), row)

    def ask_again(self) -> None:
        """Make the kernel send the unanswered requests again (FUSE_NOTIFY_RESEND, Linux 6.9)."""
        try:
            os.write(self._fd, _OUT.pack(_OUT.size, _NOTIFY_RESEND, 0))
        except OSError as err:
            self._complain(f"this kernel does not send unanswered requests again: {err}")

    def _answer(self, request: Request, row: Row) -> None:
        """Handle one request and write its reply, or an error; whatever happens, something is written."""
        reply: Sequence[Buffer]
        try:
            handler = self._handlers.get(request.opcode)
            reply = handler(request) if handler else self._refusal(request)
        except OSError as err:
            reply = self._failure(request, err, row)
        except DamagedError as err:
            reply = self._mishap(request, str(err), row)
        except Exception as err:  # noqa: BLE001 - an unanswered request is a process nobody can kill
            reply = self._mishap(request, f"{type(err).__name__}: {err}", row)
        try:
            self._write(reply)
        except OSError as err:
            # ENOENT: interrupted meanwhile. ENODEV: unmounted; the next read says so, too.
            if err.errno not in {errno.ENOENT, errno.ENODEV, errno.ECONNABORTED}:
                self._complain(f"the reply to {_describe(request)} was refused: {err}")
                self._write_anyway(_error(request.unique, errno.EIO))

    def _write(self, reply: Sequence[Buffer]) -> None:
        if len(reply) == 1:
            os.write(self._fd, reply[0])
        elif len(reply) <= 1024:  # IOV_MAX
            os.writev(self._fd, reply)
        else:
            os.write(self._fd, b"".join(reply))

    def _write_anyway(self, reply: Sequence[Buffer]) -> None:
        try:
            self._write(reply)
        except OSError as err:
            self._complain(f"an error reply was refused, too: {err}")

    def _failure(self, request: Request, err: OSError, row: Row) -> Sequence[Buffer]:
        """Answer an errno: the tree's own (ENOENT …) as it is; one from reading the squash file is logged."""
        if err.filename is None and err.errno in EXPECTED:
            return _error(request.unique, err.errno)
        return self._mishap(request, str(err), row)

    def _mishap(self, request: Request, what: str, row: Row) -> Sequence[Buffer]:
        row.errors += 1
        self._complain(f"{_describe(request)}: {what}")
        return _error(request.unique, errno.EIO)

    def _wait(self) -> None:
        import select  # noqa: PLC0415 - only for a non-blocking descriptor, which we never make ourselves

        select.select([self._fd], [], [])

    def _init(self, request: Request) -> Sequence[Buffer]:
        major, minor, readahead, flags = _INIT_IN.unpack_from(request.body)
        if major != 7:
            # A newer kernel sends INIT again with the major number we answer (fuse.h, "protocol version").
            return (_reply(request.unique, struct.pack("=2I", 7, _MINOR).ljust(64, b"\0")),)
        if minor < _LEAST_MINOR:
            self._complain(f"FUSE protocol 7.{minor} is older than Linux 4.18")
            return _error(request.unique, errno.EPROTO)
        if flags & _INIT_EXT and len(request.body) >= 20:
            flags |= struct.unpack_from("=I", request.body, 16)[0] << 32
        agreed = flags & _WANTED
        self._zero_open = bool(agreed & _NO_OPEN_SUPPORT)
        self._zero_opendir = bool(agreed & _NO_OPENDIR_SUPPORT)
        pages = _PAGES_PER_REQUEST if agreed & _MAX_PAGES else 0
        return (
            _INIT_OUT.pack(
                _INIT_OUT.size, 0, request.unique, 7, min(minor, _MINOR), readahead, agreed & 0xFFFFFFFF,
                _BACKGROUND, _CONGESTION, _MAX_WRITE, 1, pages, 0, agreed >> 32,
            ),
        )  # fmt: skip

    def _lookup(self, request: Request) -> Sequence[Buffer]:
        try:
            node, attr = self._tree.lookup(request.node, _name(request.body))
        except FileNotFoundError:
            # Node 0 with a lifetime: the kernel remembers that the name does not exist.
            return (_reply(request.unique, struct.pack("=4Q2I", 0, 0, LIFETIME, 0, 0, 0) + bytes(88)),)
        return (_ENTRY_OUT.pack(_ENTRY_OUT.size, 0, request.unique, node, 0, LIFETIME, LIFETIME, 0, 0, *_packed(attr)),)

    def _getattr(self, request: Request) -> Sequence[Buffer]:
        attr = self._tree.attr(request.node)
        return (_ATTR_OUT.pack(_ATTR_OUT.size, 0, request.unique, LIFETIME, 0, 0, *_packed(attr)),)

    def _readlink(self, request: Request) -> Sequence[Buffer]:
        return (_reply(request.unique, self._tree.readlink(request.node)),)

    def _open(self, request: Request) -> Sequence[Buffer]:
        (flags,) = struct.unpack_from("=I", request.body)
        if flags & os.O_ACCMODE != os.O_RDONLY:
            return _error(request.unique, errno.EROFS)
        if self._zero_open:
            # ENOSYS here means: never ask again, keep the page cache, send no RELEASE (FUSE_NO_OPEN_SUPPORT).
            return _error(request.unique, errno.ENOSYS)
        return (_OPEN_OUT.pack(_OPEN_OUT.size, 0, request.unique, 0, _KEEP_CACHE, 0),)

    def _opendir(self, request: Request) -> Sequence[Buffer]:
        if self._zero_opendir:
            return _error(request.unique, errno.ENOSYS)
        return (_OPEN_OUT.pack(_OPEN_OUT.size, 0, request.unique, 0, _KEEP_CACHE | _CACHE_DIR, 0),)

    def _read(self, request: Request) -> Sequence[Buffer]:
        _, offset, size = _READ_IN.unpack_from(request.body)
        parts = self._tree.read(request.node, offset, size)
        total = sum(map(len, parts))
        self._local.row.bytes_read += total
        return (_OUT.pack(_OUT.size + total, 0, request.unique), *parts)

    def _readdir(self, request: Request) -> Sequence[Buffer]:
        _, offset, size = _READ_IN.unpack_from(request.body)
        reply = bytearray(_OUT.size)
        for name in self._tree.readdir(request.node, offset):
            length = len(name.name)
            padding = -length % 8
            if len(reply) - _OUT.size + _DIRENT.size + length + padding > size:
                break
            reply += _DIRENT.pack(name.ino, name.cookie, length, name.kind >> 12) + name.name + bytes(padding)
        _OUT.pack_into(reply, 0, len(reply), 0, request.unique)
        return (memoryview(reply),)

    def _readdirplus(self, request: Request) -> Sequence[Buffer]:
        _, cookie, size = _READ_IN.unpack_from(request.body)
        parts = self._listings.plus(request.node, cookie, size)
        return (_OUT.pack(_OUT.size + sum(map(len, parts)), 0, request.unique), *parts)

    def _statfs(self, request: Request) -> Sequence[Buffer]:
        usage = self._tree.usage()
        return (
            _STATFS_OUT.pack(
                _STATFS_OUT.size, 0, request.unique, usage.blocks, 0, 0, usage.files, 0, usage.block_size,
                usage.max_name, usage.block_size, 0,
            ),
        )  # fmt: skip

    def _getxattr(self, request: Request) -> Sequence[Buffer]:
        if not self._tree.has_xattrs:
            return _error(request.unique, errno.ENOSYS)
        value = self._tree.xattr(request.node, _name(request.body[8:]))
        return _sized(request, value)

    def _listxattr(self, request: Request) -> Sequence[Buffer]:
        if not self._tree.has_xattrs:
            return _error(request.unique, errno.ENOSYS)
        names = self._tree.xattr_names(request.node)
        return _sized(request, b"".join(name + b"\0" for name in names))

    @staticmethod
    def _done(request: Request) -> Sequence[Buffer]:
        return (_OUT.pack(_OUT.size, 0, request.unique),)

    @staticmethod
    def _refusal(request: Request) -> Sequence[Buffer]:
        """Answer what we do not do. ENOSYS makes the kernel remember for most requests and use its own default.

        That includes INTERRUPT (no more of them are sent), ACCESS, FLUSH, FSYNC, LSEEK, STATX.
        """
        if request.opcode in _WRITES:
            return _error(request.unique, errno.EROFS)
        return _error(request.unique, errno.ENOTTY if request.opcode == _IOCTL else errno.ENOSYS)


def _packed(attr: Attr) -> tuple[int, ...]:
    """Return the fields of struct fuse_attr. A st_blksize of 4096: Python allocates that much per open file."""
    ino, size, blocks, mtime, mode, nlink, uid, gid, rdev = attr
    return (ino, size, blocks, mtime, mtime, mtime, 0, 0, 0, mode, nlink, uid, gid, rdev, 4096, 0)


def _name(body: memoryview) -> bytes:
    return bytes(body).split(b"\0", 1)[0]


def _reply(unique: int, payload: bytes) -> bytes:
    return _OUT.pack(_OUT.size + len(payload), 0, unique) + payload


def _error(unique: int, number: int) -> Sequence[Buffer]:
    return (_OUT.pack(_OUT.size, -number, unique),)


def _sized(request: Request, value: bytes) -> Sequence[Buffer]:
    """Answer GETXATTR and LISTXATTR: size 0 asks how much room is needed (getxattr(2))."""
    (room,) = struct.unpack_from("=I", request.body)
    if not room:
        return (_GETXATTR_OUT.pack(_GETXATTR_OUT.size, 0, request.unique, len(value), 0),)
    if len(value) > room:
        return _error(request.unique, errno.ERANGE)
    return (_reply(request.unique, value),)


def _describe(request: Request) -> str:
    return f"{_OPCODE_NAMES.get(request.opcode, f'request {request.opcode}')} of node {request.node}"
