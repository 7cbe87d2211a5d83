"""Directory listings as READDIRPLUS wants them: encoded once for each segment of a directory, then sliced.

A walk of an image costs one loop iteration a file, here, and nothing else: replies are slices of what is encoded,
handed to writev(2) as they are, and a listing that is resumed or repeated is not encoded again.
Source: kernel include/uapi/linux/fuse.h (struct fuse_direntplus), fs/fuse/readdir.c.
"""

import struct
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from typing import NamedTuple

from squashmount.squashfs.directories import DirEntry
from squashmount.squashfs.generations import Generations

from .tree import LIFETIME, Tree

_CACHED_BYTES = 16 << 20

# nodeid, (generation), entry and attr lifetimes, (their nanoseconds); ino, size, blocks, three times, (nanoseconds),
# mode, nlink, uid, gid, rdev, blksize, (flags); ino, cookie, name length, type. In parentheses: always 0, as pad bytes.
_RECORD = struct.Struct("=Q8xQQ8x6Q12x6I4xQQII")
_WITHOUT_INODE = struct.Struct("=128xQQII")
_SIZE = _RECORD.size
_BLKSIZE = 4096  # Python allocates st_blksize bytes for every open file


class Encoded(NamedTuple):
    """One segment: `starts[i]` is where record i begins in `data`, and behind the last one the end."""

    data: memoryview
    starts: list[int]


class Listings:
    """Encodes and keeps segments, at most 2 x 16 MiB of them. Safe for threads."""

    def __init__(self, tree: Tree, complain: Callable[[str], None]) -> None:
        """`complain` is told which entry could not be read; that name alone fails then."""
        self._tree = tree
        self._complain = complain
        self._encoded: Generations[tuple[int, int], Encoded] = Generations(_CACHED_BYTES)

    def plus(self, node: int, cookie: int, room: int) -> list[memoryview]:
        """Return records from `cookie` that fit into `room` bytes, as buffers; none at the end. ENOTDIR."""
        parts: list[memoryview] = []
        if cookie < 2:
            dots = self._dots(node, cookie)
            room -= len(dots)
            if room < 0:
                return []
            parts.append(memoryview(dots))
        for number, offset, places, entries in self._tree.segments(node, cookie):
            encoded = self._encoded.get((node, number))
            if encoded is None:
                encoded = self._encode(node, offset + 2, places, entries)
                self._encoded.put((node, number), encoded, len(encoded.data) + 32 * len(encoded.starts))
            starts = encoded.starts
            # a cookie lies above the place of the entry before it, and offset is one more than the segment's beginning
            first = bisect_left(places, cookie - 2 - (offset - 1)) if cookie > 2 else 0
            last = bisect_right(starts, starts[first] + room) - 1
            parts.append(encoded.data[starts[first] : starts[last]])
            room -= starts[last] - starts[first]
            if last < len(entries):
                break
            cookie = 2  # whole segments from here on
        return parts

    def _dots(self, node: int, cookie: int) -> bytes:
        dots = b""
        for name in self._tree.readdir(node, cookie):
            if name.node:
                break
            padded = name.name + bytes(-len(name.name) % 8)
            dots += _WITHOUT_INODE.pack(name.ino, name.cookie, len(name.name), name.kind >> 12) + padded
        return dots

    def _encode(self, node: int, offset: int, places: list[int], entries: list[DirEntry]) -> Encoded:
        parts: list[bytes] = []
        starts: list[int] = []
        append, pack, uids, gids = parts.append, _RECORD.pack, self._tree.uids, self._tree.gids
        at = 0
        for place, entry, status in zip(places, entries, self._tree.statuses(entries), strict=True):
            name, ref, ino, kind = entry
            length = len(name)
            starts.append(at)
            if length > 255:  # NAME_MAX: the kernel would refuse the whole reply
                continue
            padded = length + (-length % 8)
            if isinstance(status, tuple):
                mode, uid, gid, mtime, ino, nlink, size, rdev = status
                append(pack(
                    ref + 2, LIFETIME, LIFETIME, ino, size, (size + 511) >> 9, mtime, mtime, mtime,
                    mode, nlink, uids[uid], gids[gid], rdev, _BLKSIZE, ino, place + offset, length, kind >> 12,
                ))  # fmt: skip
            else:
                # The entry without its inode: the kernel asks with LOOKUP, and that name alone fails.
                self._complain(f"reading {name!r} in node {node}: {status}")
                append(_WITHOUT_INODE.pack(ino, place + offset, length, kind >> 12))
            append(name.ljust(padded, b"\0"))
            at += _SIZE + padded
        starts.append(at)
        return Encoded(memoryview(b"".join(parts)), starts)
