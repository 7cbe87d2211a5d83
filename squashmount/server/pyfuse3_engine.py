"""The same tree through pyfuse3, that is libfuse, instead of our own words on /dev/fuse: an independent second opinion.

For mounts outside a user namespace (`squashmount mount --engine pyfuse3`), never below containers: its handlers get no
node id with READ, so zero-message open (see `wire`) is out of reach and every open costs a request. Needs the extra
`pyfuse3`; nobody imports this module before it is asked for.

One thread, and no handler ever waits. Reads in worker threads were tried (trio.to_thread; zstd, 2 cores, 256 MiB in
sequence 0.44 s instead of 0.24 s, 4000 small files 0.73 s instead of 0.40 s; a stat beside them waits longer, not
shorter). They would not be safe either: libfuse's descriptor blocks. When a request that woke the loop is withdrawn
before it is fetched (its process was killed), the loop stands in read(2), and replies that a thread has ready with it.

Source: pyfuse3 3.5 (handlers.pxi, internal.pxi), libfuse 3.14 (lib/fuse_lowlevel.c).
"""

import errno
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from squashmount.errors import DamagedError, HostError, ToolError

from .complaints import Complaints, Log
from .tree import EXPECTED, LIFETIME, Attr, Name, Tree

try:
    import pyfuse3
    import trio
except ImportError as err:
    raise ToolError(
        "The engine pyfuse3 needs the Python package pyfuse3.",
        details=str(err),
        hint="pip install 'squashmount[pyfuse3]' (compiles: libfuse3-dev, pkg-config, gcc and Python's headers)",
    ) from err

_NANO = 10**9


def serve(fuse_fd: int, tree: Tree, *, ready: Callable[[], None], log: Log) -> None:
    """Answer requests until the file system is unmounted; once a process.

    `fuse_fd` is libfuse's from now on. `ready` is called when libfuse has agreed with the kernel, before the first
    request. Raises HostError when that fails, and nothing for what a request or the image can contain.
    """
    operations = _Operations(tree, ready, Complaints(log))
    try:
        # libfuse >= 3.3 serves a mounted descriptor given as /dev/fd/N (fuse_session_mount). Had it mounted by itself,
        # the reason of a failure would be on the standard error of a daemon, that is, nowhere.
        pyfuse3.init(operations, f"/dev/fd/{fuse_fd}", set())
    except RuntimeError as err:
        raise HostError("libfuse does not take the mounted file system.", details=str(err), hint=_OLD) from err
    try:
        trio.run(pyfuse3.main, 1, 1)
    finally:
        pyfuse3.close(unmount=False)
    if not operations.started:
        raise HostError("libfuse and the kernel found no protocol in common.", hint=_OLD)


_OLD = "libfuse 3.3 or newer is needed; the engine wire needs none"


class _Operations(pyfuse3.Operations):
    """Handlers of pyfuse3. One that raises anything but FUSEError would end the server."""

    def __init__(self, tree: Tree, ready: Callable[[], None], complain: Callable[[str], None]) -> None:
        self._tree = tree
        self._ready = ready
        self._complain = complain
        self.started = False

    @contextmanager
    def _answering(self, what: str, node: int) -> Iterator[None]:
        """Turn every failure into an errno: the tree's own as it is, all others EIO with a line in the log."""
        try:
            yield
        except OSError as err:
            if err.filename is None and err.errno in EXPECTED:
                raise pyfuse3.FUSEError(err.errno) from None
            mishap = str(err)
        except DamagedError as err:
            mishap = str(err)
        except Exception as err:  # noqa: BLE001 - an unanswered request is a process nobody can kill
            mishap = f"{type(err).__name__}: {err}"
        else:
            return
        self._complain(f"{what} of node {node}: {mishap}")
        raise pyfuse3.FUSEError(errno.EIO)

    def init(self) -> None:
        self.started = True
        self._ready()

    async def lookup(self, parent: int, name: bytes, _ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        with self._answering("lookup", parent):
            try:
                return _entry(*self._tree.lookup(parent, name))
            except FileNotFoundError:
                # inode 0 with a lifetime: the kernel remembers that the name does not exist
                absent = pyfuse3.EntryAttributes()
                absent.entry_timeout = LIFETIME
                return absent

    async def getattr(self, node: int, _ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        with self._answering("getattr", node):
            return _entry(node, self._tree.attr(node))

    async def readlink(self, node: int, _ctx: pyfuse3.RequestContext) -> bytes:
        with self._answering("readlink", node):
            return self._tree.readlink(node)

    async def open(self, node: int, _flags: int, _ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        return pyfuse3.FileInfo(fh=node, keep_cache=True)

    async def read(self, node: int, offset: int, size: int) -> bytes:
        with self._answering("read", node):
            return b"".join(self._tree.read(node, offset, size))

    async def release(self, _node: int) -> None:
        pass

    async def opendir(self, node: int, _ctx: pyfuse3.RequestContext) -> int:
        return node

    async def readdir(self, node: int, cookie: int, token: pyfuse3.ReaddirToken) -> None:
        with self._answering("readdir", node):
            for name in self._tree.readdir(node, cookie):
                if not pyfuse3.readdir_reply(token, name.name, self._listed(node, name), name.cookie):
                    break

    def _listed(self, directory: int, name: Name) -> pyfuse3.EntryAttributes:
        try:
            if name.name == b".":
                return _entry(directory, self._tree.attr(directory))
            if name.name == b"..":
                return _entry(*self._tree.lookup(directory, b".."))
            return _entry(name.node, self._tree.attr(name.node))
        except (DamagedError, OSError) as err:
            # Without a mode the kernel shows the name and forgets the inode (fs/fuse/readdir.c, fuse_direntplus_link);
            # it asks with LOOKUP, and that name alone fails.
            if name.node:
                self._complain(f"reading {name.name!r} in node {directory}: {err}")
            unknown = pyfuse3.EntryAttributes()
            unknown.st_ino = name.node or name.ino
            unknown.st_mode = 0
            return unknown

    async def releasedir(self, _node: int) -> None:
        pass

    async def statfs(self, _ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        with self._answering("statfs", 1):
            usage = self._tree.usage()
            found = pyfuse3.StatvfsData()
            found.f_bsize = found.f_frsize = usage.block_size
            found.f_blocks = usage.blocks
            found.f_files = usage.files
            found.f_namemax = usage.max_name
            return found

    async def getxattr(self, node: int, name: bytes, _ctx: pyfuse3.RequestContext) -> bytes:
        self._need_xattrs()
        with self._answering("getxattr", node):
            return self._tree.xattr(node, name)

    async def listxattr(self, node: int, _ctx: pyfuse3.RequestContext) -> Sequence[bytes]:
        self._need_xattrs()
        with self._answering("listxattr", node):
            return self._tree.xattr_names(node)

    def _need_xattrs(self) -> None:
        if not self._tree.has_xattrs:
            # the kernel does not ask again
            raise pyfuse3.FUSEError(errno.ENOSYS)


def _entry(node: int, attr: Attr) -> pyfuse3.EntryAttributes:
    """Return what pyfuse3 answers with; its inode number is the node id, the two cannot differ there."""
    found = pyfuse3.EntryAttributes()
    found.st_ino = node
    found.entry_timeout = found.attr_timeout = LIFETIME
    found.st_size = attr.size
    found.st_blocks = attr.blocks
    found.st_atime_ns = found.st_mtime_ns = found.st_ctime_ns = attr.mtime * _NANO
    found.st_mode = attr.mode
    found.st_nlink = attr.nlink
    found.st_uid = attr.uid
    found.st_gid = attr.gid
    found.st_rdev = attr.rdev
    return found
