"""One squash file as a tree of inodes. Opening reads 96 bytes; everything else is read when it is asked for."""

import errno
import os
import stat

from squashmount.errors import DamagedError
from squashmount.lean import Callable, Iterable, Iterator, Self

from .blocks import BlockCache, Buffer, Contents
from .compress import decoder
from .directories import Directories, DirEntry, Segment
from .inodes import NO_XATTR, Inode, Inodes
from .metadata import Metadata, Table
from .source import Source
from .superblock import NO_TABLE, read_superblock
from .xattrs import Xattrs

CACHE_BYTES = 64 << 20


class SquashImage:
    """A squash file, opened. Safe for threads; memory is bounded by its caches, not by the number of files.

    Wherever a method reads the file: DamagedError when its bytes contradict the format, OSError when reading fails.
    """

    def __init__(self, fd: int, *, name: str, cache_bytes: int = CACHE_BYTES) -> None:
        """Read the superblock. The image owns `fd` from now on, also when this raises; `name` is for messages.

        Raises DamagedError, and ToolError when the package that decodes its compressor is not installed.
        """
        self._fd = fd
        self._stops: list[Callable[[], None]] = []
        try:
            source = Source(fd, name)
            self.name = name
            self.superblock = read_superblock(source)
            source.limit = self.superblock.bytes_used
            decode = decoder(self.superblock.compressor)
        except BaseException:
            self.close()
            raise
        metadata = Metadata(source, decode)
        self._damaged = source.damaged
        self._inodes = Inodes(metadata, self.superblock)
        self._directories = Directories(metadata, self._inodes, self.superblock)
        self._contents = Contents(source, decode, metadata, self._inodes, self.superblock, budget=cache_bytes)
        self._stops.append(self._contents.close)
        self._xattrs = Xattrs(metadata, self.superblock)
        count = 0 if self.superblock.export_table == NO_TABLE else self.superblock.inode_count
        self._exports = Table(metadata, "inode", start=self.superblock.export_table, count=count, record="<Q")

    @classmethod
    def open(cls, path: str, *, cache_bytes: int = CACHE_BYTES) -> "SquashImage":
        """Open a file by name; `cache_bytes` bounds the decoded blocks kept."""
        # O_NONBLOCK: a FIFO in the place of the file must not hold a container's start for ever
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        if not (stat.S_ISREG(mode := os.fstat(fd).st_mode) or stat.S_ISBLK(mode)):
            os.close(fd)
            raise DamagedError(f"{path} is not a file.", hint="name a squash file, or squash the image again")
        return cls(fd, name=path, cache_bytes=cache_bytes)

    def fileno(self) -> int:
        """Return the descriptor; it stays the image's."""
        return self._fd

    def close(self) -> None:
        """Close the file; no other thread may be using it."""
        if self._fd >= 0:
            for stop in self._stops:
                stop()
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def root_ref(self) -> int:
        """Reference of the root directory."""
        return self.superblock.root_ref

    @property
    def has_xattrs(self) -> bool:
        """Whether any file has extended attributes."""
        return self._xattrs.present

    @property
    def cache(self) -> BlockCache:
        """The decoded blocks (its `hits` and `misses` count)."""
        return self._contents.cache

    def inode(self, ref: int) -> Inode:
        """Return the inode at a reference."""
        return self._inodes.get(ref)

    def ref_of(self, number: int) -> int | None:
        """Return the reference of an inode number, or None when the file was made without an export table."""
        return self._exports[number - 1][0] if len(self._exports) else None

    def entries(self, inode: Inode) -> Iterator[DirEntry]:
        """Yield the names in a directory, without `.` and `..`; NotADirectoryError for other kinds."""
        return (entry for _, entry in self.entries_from(inode, 0))

    def entries_from(self, inode: Inode, cookie: int) -> Iterator[tuple[int, DirEntry]]:
        """Yield (cookie, entry) from where `cookie` says; an entry's cookie continues behind it, 0 is the beginning."""
        _require(inode, stat.S_IFDIR, errno.ENOTDIR)
        return self._directories.entries(inode, cookie)

    def segments(self, inode: Inode, cookie: int) -> Iterator[tuple[int, int, Segment]]:
        """Yield the parts of a listing from the one `cookie` lies in, see Directories.segments."""
        _require(inode, stat.S_IFDIR, errno.ENOTDIR)
        return self._directories.segments(inode, cookie)

    def statuses(self, refs: Iterable[int]) -> Iterator[tuple[int, ...] | Exception]:
        """Yield (mode with kind, uid, gid, mtime, number, nlink, size, rdev) of every inode, or that one's error."""
        return self._inodes.statuses(refs)

    def lookup(self, inode: Inode, name: bytes) -> DirEntry | None:
        """Find one name in a directory; NotADirectoryError for other kinds."""
        _require(inode, stat.S_IFDIR, errno.ENOTDIR)
        return self._directories.lookup(inode, name)

    def find(self, path: bytes) -> Inode | None:
        """Return the inode at a path from the root; symbolic links are not followed, `.` and `..` do not exist."""
        inode = self.inode(self.root_ref)
        for name in path.split(b"/"):
            if not name:
                continue
            entry = self.lookup(inode, name) if inode.kind == stat.S_IFDIR else None
            if entry is None:
                return None
            inode = self.inode(entry.ref)
        return inode

    def read(self, inode: Inode, offset: int, size: int) -> Buffer:
        """Return up to `size` bytes of a regular file at `offset`; fewer only at its end."""
        parts = self.parts(inode, offset, size)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def parts(self, inode: Inode, offset: int, size: int) -> list[Buffer]:
        """As read, as a list of buffers that share memory with the cache: nothing is copied."""
        _require(inode, stat.S_IFREG, errno.EISDIR if inode.kind == stat.S_IFDIR else errno.EINVAL)
        if offset < 0 or size < 0:
            raise ValueError(f"offset {offset}, size {size}")
        return self._contents.parts(inode, offset, size)

    def extents(self, inode: Inode, offset: int, size: int) -> list[tuple[int, int]]:
        """Return (start, end) in the squash file of the blocks that hold a part of a regular file."""
        _require(inode, stat.S_IFREG, errno.EINVAL)
        return self._contents.extents(inode, offset, size)

    def readlink(self, inode: Inode) -> bytes:
        """Return the target of a symbolic link."""
        _require(inode, stat.S_IFLNK, errno.EINVAL)
        return self._inodes.target(inode)

    def xattrs(self, inode: Inode) -> dict[bytes, bytes]:
        """Return all extended attributes with their full names; do not change the dictionary."""
        if inode.xattr == NO_XATTR or not self._xattrs.present:
            return {}
        return self._xattrs.get(inode.xattr)


def _require(inode: Inode, kind: int, otherwise: int) -> None:
    if inode.kind != kind:
        raise OSError(otherwise, os.strerror(otherwise))
