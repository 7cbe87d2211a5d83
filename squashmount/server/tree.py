"""What a squash file means as a file system: node ids, attributes, ids shifted, names hidden. No FUSE in here.

A node id says where the inode is (root 1, others the inode reference + 2), so that a server that was restarted knows
every node the kernel still remembers. Errors: OSError with the errno to answer; DamagedError for a damaged file.
"""

import errno
import os
import stat
import struct

from squashmount.idmap import IdMap, to_outside
from squashmount.lean import Callable, Iterator, NamedTuple
from squashmount.squashfs.blocks import Buffer
from squashmount.squashfs.directories import DirEntry, Segment
from squashmount.squashfs.image import SquashImage
from squashmount.squashfs.inodes import Inode

ROOT = 1
OVERFLOW_ID = 65534  # /proc/sys/kernel/overflowuid
MAX_NAME = 255  # NAME_MAX; squashfs allows 256
LIFETIME = 365 * 24 * 3600
"""Seconds for which the kernel may remember an entry or its attributes: the image never changes under a mount."""

EXPECTED = frozenset({
    errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EINVAL, errno.ENODATA, errno.ENAMETOOLONG,
})  # fmt: skip
"""Errnos a Tree raises about the request (without a file name); any other is a failure of this machine: EIO."""

# What an overlay wrote about its own layers must not be read as if it were about ours.
_HIDDEN = (b"user.overlay.", b"trusted.overlay.", b"user.fuseoverlayfs.", b"user.containers.", b"system.posix_acl_")

_CAPABILITY = b"security.capability"
_VFS_CAP_2 = struct.Struct("<5I")
_VFS_CAP_3 = struct.Struct("<6I")


class IdShift(NamedTuple):
    """How the ids in the squash (container ids) are shown. The empty shift is the identity."""

    uids: IdMap = ()
    gids: IdMap = ()
    single_uid: int | None = None
    """Everything belongs to this user: for a user namespace with one id."""
    single_gid: int | None = None

    def uid(self, inside: int) -> int:
        """Return the user id to show; one that the map lacks shows as 65534."""
        return _shifted(self.uids, self.single_uid, inside)

    def gid(self, inside: int) -> int:
        """Return the group id to show; one that the map lacks shows as 65534."""
        return _shifted(self.gids, self.single_gid, inside)


class Attr(NamedTuple):
    """What stat(2) shows; times in seconds, blocks of 512 bytes."""

    ino: int
    size: int
    blocks: int
    mtime: int
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int


class Name(NamedTuple):
    """One entry of a listing: `cookie` continues behind it."""

    name: bytes
    cookie: int
    ino: int
    kind: int
    node: int
    """0 for `.` and `..`."""


class Usage(NamedTuple):
    """What statfs(2) shows of a file system that is always full."""

    block_size: int
    blocks: int
    files: int
    max_name: int


class Shown(dict[int, int]):
    """Id in the image → id to show, computed once each; bounded by the 65536 entries of an id table."""

    def __init__(self, shift: Callable[[int], int]) -> None:
        """Remember how ids are shifted."""
        super().__init__()
        self._shift = shift

    def __missing__(self, inside: int) -> int:
        shown = self[inside] = self._shift(inside)
        return shown


class Tree:
    """One squash file, shown with shifted ids. Safe for threads."""

    def __init__(self, image: SquashImage, shift: IdShift = IdShift()) -> None:  # noqa: B008 - a frozen value
        """Use the image, which stays the caller's to close."""
        self.image = image
        self._shift = shift
        self._root_ref = image.root_ref
        self.uids = Shown(shift.uid)
        self.gids = Shown(shift.gid)

    @property
    def shifts(self) -> bool:
        """Whether ids are shown that are not those of the image."""
        return self._shift != IdShift()

    @property
    def has_xattrs(self) -> bool:
        """Whether any file has extended attributes, shown or hidden."""
        return self.image.has_xattrs

    def attr(self, node: int) -> Attr:
        """Return the attributes of a node."""
        return self._attr(self._inode(node))

    def lookup(self, parent: int, name: bytes) -> tuple[int, Attr]:
        """Return (node, attributes) of a name, also of `.` and `..` (for file handles).

        ENOENT, ENOTDIR, ENAMETOOLONG.
        """
        inode = self._inode(parent)
        if name == b".":
            return parent, self._attr(inode)
        if name == b"..":
            node = self._parent(inode)
            return node, self.attr(node)
        if len(name) > MAX_NAME:  # the kernel asks FUSE for names of up to 1024 bytes
            raise _error(errno.ENAMETOOLONG)
        entry = self.image.lookup(inode, name)
        if entry is None:
            raise _error(errno.ENOENT)
        return self._child(entry)

    def readdir(self, node: int, cookie: int) -> Iterator[Name]:
        """Yield the entries from a cookie, 0 the first; `.` and `..` come first. ENOTDIR."""
        inode = self._inode(node)
        listing = self.image.entries_from(inode, max(0, cookie - 2))
        if cookie < 1:
            yield Name(b".", 1, inode.number, stat.S_IFDIR, 0)
        if cookie < 2:
            yield Name(b"..", 2, inode.number if node == ROOT else inode.parent, stat.S_IFDIR, 0)
        for after, entry in listing:
            if len(entry.name) <= MAX_NAME:
                yield Name(entry.name, after + 2, entry.number, entry.kind, entry.ref + 2)

    def segments(self, node: int, cookie: int) -> Iterator[tuple[int, int, Segment]]:
        """Yield (number, offset, segment) of a listing's parts; add 2 for readdir's cookies. ENOTDIR."""
        return self.image.segments(self._inode(node), max(0, cookie - 2))

    def statuses(self, segment: Segment) -> Iterator[tuple[int, ...] | Exception]:
        """Yield (mode with kind, uid, gid, mtime, ino, nlink, size, rdev) of every entry, or that one's error.

        The ids are the image's: `uids` and `gids` say how they are shown.
        """
        return self.image.statuses(segment.refs)

    def read(self, node: int, offset: int, size: int) -> list[Buffer]:
        """Return bytes of a regular file as buffers that share memory with the cache. EISDIR, EINVAL."""
        return self.image.parts(self._inode(node), offset, size)

    def readlink(self, node: int) -> bytes:
        """Return a link's target; EINVAL for other kinds."""
        return self.image.readlink(self._inode(node))

    def xattr_names(self, node: int) -> list[bytes]:
        """Return the names of the attributes that are shown."""
        return [name for name in self.image.xattrs(self._inode(node)) if not name.startswith(_HIDDEN)]

    def xattr(self, node: int, name: bytes) -> bytes:
        """Return one attribute; ENODATA."""
        value = None if name.startswith(_HIDDEN) else self.image.xattrs(self._inode(node)).get(name)
        if value is None:
            raise _error(errno.ENODATA)
        return self._capability(value) if name == _CAPABILITY else value

    def _capability(self, value: bytes) -> bytes:
        """Make a file capability count for the container's root when that is another id than the namespace's 0."""
        root = self._shift.uid(0)
        # capabilities(7), "File capability versioning": version 2 means root of the file system's user namespace,
        # version 3 names the root user id
        if root == 0 or len(value) != _VFS_CAP_2.size:
            return value
        magic, *sets = _VFS_CAP_2.unpack(value)
        if magic & 0xFF000000 != 0x02000000:
            return value
        return _VFS_CAP_3.pack(magic & 0xFF | 0x03000000, *sets, root)

    def usage(self) -> Usage:
        """Return the numbers of statfs(2)."""
        block = self.image.superblock
        return Usage(block.block_size, -(-block.bytes_used // block.block_size), block.inode_count, MAX_NAME)

    def cache_counts(self) -> dict[str, int]:
        """Return how often a block was found decoded, had to be waited for, and was decoded before anybody asked."""
        cache = self.image.cache
        return {"cache_hits": cache.hits, "cache_misses": cache.misses, "cache_ahead": cache.ahead}

    def _inode(self, node: int) -> Inode:
        return self.image.inode(self._root_ref if node == ROOT else node - 2)

    def _child(self, entry: DirEntry) -> tuple[int, Attr]:
        inode = self.image.inode(entry.ref)
        return entry.ref + 2, self._attr(inode)

    def _parent(self, inode: Inode) -> int:
        if inode.kind != stat.S_IFDIR:
            raise _error(errno.ENOTDIR)
        if inode.ref == self._root_ref:
            return ROOT
        ref = self.image.ref_of(inode.parent)
        if ref is None:
            raise _error(errno.ENOENT)
        return ROOT if ref == self._root_ref else ref + 2

    def _attr(self, inode: Inode) -> Attr:
        return Attr(
            inode.number,
            inode.size,
            (inode.size + 511) >> 9,
            inode.mtime,
            inode.kind | inode.mode,
            inode.nlink,
            self.uids[inode.uid],
            self.gids[inode.gid],
            inode.rdev,
        )


def _shifted(id_map: IdMap, single: int | None, inside: int) -> int:
    if single is not None:
        return single
    outside = to_outside(id_map, inside)
    return OVERFLOW_ID if outside is None else outside


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))
