"""The first 96 bytes: what kind of file this is and where its tables are (squashfs 4.0, little endian).

Source: kernel fs/squashfs/squashfs_fs.h `struct squashfs_super_block` and super.c for the checks.
"""

import struct

from squashmount.errors import DamagedError
from squashmount.lean import NamedTuple

from .compress import COMPRESSORS
from .source import HINT, Source

NO_TABLE = 0xFFFFFFFFFFFFFFFF

FLAG_NO_XATTRS = 0x200

_LAYOUT = struct.Struct("<4s4I6H8Q")
_LITTLE, _BIG = b"hsqs", b"sqsh"


class Superblock(NamedTuple):
    """Positions and sizes are in bytes; an absent table is at NO_TABLE."""

    inode_count: int
    mtime: int
    block_size: int
    fragment_count: int
    compressor: str
    flags: int
    id_count: int
    root_ref: int
    bytes_used: int
    id_table: int
    xattr_table: int
    inode_table: int
    directory_table: int
    fragment_table: int
    export_table: int

    @property
    def directory_end(self) -> int:
        """Where the directory table must have ended: the next table's index, or the end of the file system."""
        others = (self.id_table, self.xattr_table, self.fragment_table, self.export_table, self.bytes_used)
        return min(position for position in others if position > self.directory_table)


def read_superblock(source: Source) -> Superblock:
    """Read and check it; DamagedError says what the file is instead when that can be told."""
    if source.limit < _LAYOUT.size:
        raise _not_squash(source, f"it has {source.limit} bytes, a superblock alone has {_LAYOUT.size}")
    fields = _LAYOUT.unpack(source.read(0, _LAYOUT.size))
    magic, inodes, mtime, block_size, fragments, compressor, block_log, flags, ids, major, minor = fields[:11]
    if magic == _BIG:
        raise _not_squash(source, "it is a big endian squashfs; only version 4.0 (little endian) can be mounted")
    if magic != _LITTLE:
        raise _not_squash(source, f"it begins with {magic!r}, a squash file with {_LITTLE!r}")
    if (major, minor) != (4, 0):
        raise _not_squash(source, f"it is squashfs version {major}.{minor}; only version 4.0 can be mounted")
    if compressor not in COMPRESSORS:
        raise source.damaged(f"compressor number {compressor} does not exist")
    if block_size != 1 << block_log or not 12 <= block_log <= 20:
        raise source.damaged(f"a block size of {block_size} (2^{block_log}) is not allowed")
    found = Superblock(inodes, mtime, block_size, fragments, COMPRESSORS[compressor], flags, ids, *fields[11:])
    _check_tables(source, found)
    return found


def _check_tables(source: Source, block: Superblock) -> None:
    if not _LAYOUT.size <= block.bytes_used <= source.limit:
        raise source.damaged(f"it has {source.limit} bytes, its superblock says {block.bytes_used}: cut off?")
    if not _LAYOUT.size <= block.inode_table < block.directory_table <= block.bytes_used:
        raise source.damaged("its inode and directory tables are out of order")
    optional = (block.xattr_table, block.fragment_table, block.export_table)
    for table in (block.id_table, *(table for table in optional if table != NO_TABLE)):
        if not block.directory_table <= table <= block.bytes_used:
            raise source.damaged(f"a table at {table} lies outside of its {block.bytes_used} bytes")
    if not block.id_count:
        raise source.damaged("its table of owners is empty")


def _not_squash(source: Source, details: str) -> DamagedError:
    return DamagedError(f"{source.name} is not a squash file this program can mount.", details=details, hint=HINT)
