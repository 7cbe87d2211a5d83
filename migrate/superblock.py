"""The first 96 bytes of a squashfs 4.0 file, as far as a check needs them (kernel: fs/squashfs/squashfs_fs.h)."""

import struct
from typing import NamedTuple

from squashmount.errors import DamagedError

_MAGIC = 0x73717368
_NAMES = {1: "gzip", 2: "lzma", 3: "lzo", 4: "xz", 5: "lz4", 6: "zstd"}


class Superblock(NamedTuple):
    """`bytes_used` is the length of the file system; mksquashfs pads the file to 4 KiB."""

    inodes: int
    mkfs_time: int
    block_size: int
    compressor: str
    bytes_used: int


def read(path: str) -> Superblock:
    """Read and check the superblock; DamagedError when this is not a squashfs 4.0 file."""
    with open(path, "rb") as file:
        head = file.read(96)
    if len(head) < 96:
        raise DamagedError(f"{path} is too short for a squash file.")
    magic, inodes, mkfs_time, block_size, _, compressor, _, _, _, major, minor, _, used = struct.unpack_from(
        "<5I6HQQ", head
    )
    if magic != _MAGIC or (major, minor) != (4, 0):
        raise DamagedError(f"{path} is not a squashfs 4.0 file.")
    return Superblock(inodes, mkfs_time, block_size, _NAMES.get(compressor, str(compressor)), used)
