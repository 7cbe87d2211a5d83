"""Inodes: 14 on-disk forms parsed into one tuple.

Source: kernel fs/squashfs/squashfs_fs.h (`struct squashfs_*_inode`) and inode.c for the checks.
"""

import os
import stat
import struct

from squashmount.errors import DamagedError
from squashmount.lean import Callable, Iterable, Iterator, NamedTuple

from .generations import Generations
from .metadata import Metadata, Table
from .superblock import Superblock

NO_XATTR = 0xFFFFFFFF
NO_FRAGMENT = 0xFFFFFFFF

KINDS = (stat.S_IFDIR, stat.S_IFREG, stat.S_IFLNK, stat.S_IFBLK, stat.S_IFCHR, stat.S_IFIFO, stat.S_IFSOCK)
"""S_IFMT values of the basic types 1 to 7; the extended type is 7 higher."""

_CACHED = 4096
_MAX_SYMLINK = 4096  # PATH_MAX; the kernel takes at most a page

_HEADER = "<4H2I"


class Inode(NamedTuple):
    """One inode. `start` to `parent` are what reading it needs; their meaning depends on the kind."""

    ref: int
    """Where it is: offset of its metadata block in the inode table << 16 | offset in the block."""
    kind: int
    """S_IFMT value."""
    mode: int
    """Permission bits with suid, sgid, sticky."""
    uid: int
    gid: int
    mtime: int
    number: int
    nlink: int
    size: int
    """Bytes; of a directory what the file says (3 more than its listing has)."""
    rdev: int
    """As st_rdev."""
    xattr: int
    """Index of its extended attributes, or NO_XATTR."""
    start: int
    """File: position of its first block. Directory: offset of its listing's block in the directory table."""
    offset: int
    """File: offset of its tail in the fragment. Directory: offset of the listing in its first block."""
    fragment: int
    """File: fragment that holds its tail, or NO_FRAGMENT."""
    tail: int
    """Position (<< 16 | offset, offset up to 8192) behind the fixed part: block sizes, link target, directory index."""
    parent: int
    """Directory: inode number of its parent."""
    indexes: int
    """Directory: number of index records."""


# Fields of one form in the order of Inode after `number`: nlink, size, rdev, xattr, start, offset, fragment, parent,
# indexes. Each maker gets the unpacked variable part.
_Fields = tuple[int, int, int, int, int, int, int, int, int]


def _directory(start: int, nlink: int, size: int, offset: int, parent: int) -> _Fields:
    return nlink, size, 0, NO_XATTR, start, offset, NO_FRAGMENT, parent, 0


def _file(start: int, fragment: int, offset: int, size: int) -> _Fields:
    return 1, size, 0, NO_XATTR, start, offset, fragment, 0, 0


def _symlink(nlink: int, size: int) -> _Fields:
    return nlink, size, 0, NO_XATTR, 0, 0, NO_FRAGMENT, 0, 0


def _device(nlink: int, device: int, xattr: int = NO_XATTR) -> _Fields:
    return nlink, 0, _rdev(device), xattr, 0, 0, NO_FRAGMENT, 0, 0


def _ipc(nlink: int, xattr: int = NO_XATTR) -> _Fields:
    return nlink, 0, 0, xattr, 0, 0, NO_FRAGMENT, 0, 0


def _big_directory(nlink: int, size: int, start: int, parent: int, indexes: int, offset: int, xattr: int) -> _Fields:  # noqa: PLR0917 - on disk in this order
    return nlink, size, 0, xattr, start, offset, NO_FRAGMENT, parent, indexes


def _big_file(start: int, size: int, _sparse: int, nlink: int, fragment: int, offset: int, xattr: int) -> _Fields:  # noqa: PLR0917 - on disk in this order
    return nlink, size, 0, xattr, start, offset, fragment, 0, 0


def _rdev(device: int) -> int:
    # The kernel's new_decode_dev: 12 bits of major, 20 of minor.
    return os.makedev((device >> 8) & 0xFFF, (device & 0xFF) | (device >> 12 & 0xFFF00))


_FORMS: tuple[tuple[struct.Struct, Callable[..., _Fields]], ...] = tuple(
    (struct.Struct(_HEADER + layout), make)
    for layout, make in (
        ("2I2HI", _directory),
        ("4I", _file),
        ("2I", _symlink),
        ("2I", _device),
        ("2I", _device),
        ("I", _ipc),
        ("I", _ipc),
        ("4I2HI", _big_directory),
        ("3Q4I", _big_file),
        ("2I", _symlink),
        ("3I", _device),
        ("3I", _device),
        ("2I", _ipc),
        ("2I", _ipc),
    )
)
_LARGEST = max(form.size for form, _ in _FORMS)
_BIG_SYMLINK = 10

_BASIC_DIRECTORY, _BASIC_FILE = 1, 2


class Owners(dict[int, int]):
    """Index in the id table → user or group id, read when it is first needed; at most 65536, by the type on disk."""

    def __init__(self, table: Table) -> None:
        """Nothing is read."""
        super().__init__()
        self._table = table

    def __missing__(self, index: int) -> int:
        owner = self[index] = self._table[index][0]
        return owner


class Inodes:
    """The inode table; parsed inodes are kept in a bounded cache."""

    __slots__ = ("_end", "_ids", "_metadata", "_owners", "_parsed", "_start")

    def __init__(self, metadata: Metadata, superblock: Superblock) -> None:
        """Nothing is read."""
        self._metadata = metadata
        self._start = superblock.inode_table
        self._end = superblock.directory_table
        self._ids = Table(metadata, "owner", start=superblock.id_table, count=superblock.id_count, record="<I")
        self._owners = Owners(self._ids)
        self._parsed: Generations[int, Inode] = Generations(_CACHED)

    def get(self, ref: int) -> Inode:
        """Return one inode; DamagedError when there is none at that reference."""
        found = self._parsed.get(ref)
        if found is None:
            found = self._parse(ref)
            self._parsed.put(ref, found)
        return found

    def statuses(self, refs: Iterable[int]) -> Iterator[tuple[int, ...] | Exception]:
        """Yield (mode with kind, uid, gid, mtime, number, nlink, size, rdev) of every inode, or that one's error.

        For whole directories: the two forms that nearly all inodes have are decoded where they lie. Plain tuples,
        because this loop runs half a million times in a walk of a large image.
        """
        at, data, owners = -1, b"", self._owners
        directory, file = _FORMS[_BASIC_DIRECTORY - 1][0].unpack_from, _FORMS[_BASIC_FILE - 1][0].unpack_from
        for ref in refs:
            try:
                if ref >> 16 != at:
                    at = -1
                    data, _ = self._metadata.block(self._start + (ref >> 16), self._end)
                    at = ref >> 16
                offset = ref & 0xFFFF
                form = data[offset] | data[offset + 1] << 8 if offset + 32 <= len(data) else 0
                if form == _BASIC_FILE:
                    _, mode, uid, gid, mtime, number, _, _, _, size = file(data, offset)
                    yield mode & 0o7777 | stat.S_IFREG, owners[uid], owners[gid], mtime, number, 1, size, 0
                elif form == _BASIC_DIRECTORY:
                    _, mode, uid, gid, mtime, number, _, nlink, size, _, _ = directory(data, offset)
                    yield mode & 0o7777 | stat.S_IFDIR, owners[uid], owners[gid], mtime, number, nlink, size, 0
                else:
                    one = self.get(ref)
                    mode = one.kind | one.mode
                    yield mode, one.uid, one.gid, one.mtime, one.number, one.nlink, one.size, one.rdev
            except (DamagedError, OSError) as err:
                yield err

    def target(self, inode: Inode) -> bytes:
        """Return a symbolic link's target."""
        return self.bytes_at(inode.tail, inode.size)[0]

    def bytes_at(self, place: int, size: int) -> tuple[bytes, int]:
        """Return `size` bytes at a place like `Inode.tail`, and the place behind them."""
        data, block, offset = self._metadata.read(place >> 16, place & 0xFFFF, size, self._end)
        return data, block << 16 | offset

    def capacity(self) -> int:
        """Return how many bytes the inode table can hold at most."""
        return Metadata.capacity(self._start, self._end)

    def _parse(self, ref: int) -> Inode:
        position, offset = self._start + (ref >> 16), ref & 0xFFFF
        damaged = self._metadata.source.damaged
        if ref < 0 or position >= self._end:
            raise damaged(f"inode reference {ref:#x} lies outside of the inode table")
        data, _ = self._metadata.block(position, self._end)
        if offset + 2 <= len(data):
            number = data[offset] | data[offset + 1] << 8
        else:
            number = int.from_bytes(self._metadata.read(position, offset, 2, self._end)[0], "little")
        if not 1 <= number <= len(_FORMS):
            raise damaged(f"the inode at {ref:#x} has type {number}")
        form, make = _FORMS[number - 1]
        if offset + form.size <= len(data):
            fields = form.unpack_from(data, offset)
            tail = position << 16 | (offset + form.size)
        else:
            raw, position, offset = self._metadata.read(position, offset, form.size, self._end)
            fields = form.unpack(raw)
            tail = position << 16 | offset
        _, mode, uid, gid, mtime, serial, *rest = fields
        nlink, size, rdev, xattr, start, place, fragment, parent, indexes = make(*rest)
        kind = KINDS[(number - 1) % 7]
        inode = Inode(
            ref, kind, mode & 0o7777, self._owners[uid], self._owners[gid], mtime, serial, nlink, size, rdev, xattr,
            start, place, fragment, tail, parent, indexes,
        )  # fmt: skip
        if kind == stat.S_IFLNK:
            return self._checked_symlink(inode, extended=number == _BIG_SYMLINK)
        if kind == stat.S_IFREG and size >= 1 << 63:
            raise damaged(f"the file at {ref:#x} has the size {size}")
        return inode

    def _checked_symlink(self, inode: Inode, *, extended: bool) -> Inode:
        if not 0 < inode.size <= _MAX_SYMLINK:
            raise self._metadata.source.damaged(f"the link at {inode.ref:#x} has a target of {inode.size} bytes")
        if not extended:
            return inode
        _, behind = self.bytes_at(inode.tail, inode.size)
        return inode._replace(xattr=int.from_bytes(self.bytes_at(behind, 4)[0], "little"))
