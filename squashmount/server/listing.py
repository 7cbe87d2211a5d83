"""Directory listings as READDIRPLUS wants them: encoded once for each segment of a directory, then sliced.

A walk of an image costs one loop iteration a file, here, and nothing else: replies are slices of what is encoded,
handed to writev(2) as they are, and a listing that is resumed or repeated is not encoded again.
Source: kernel include/uapi/linux/fuse.h (struct fuse_direntplus), fs/fuse/readdir.c.
"""

import struct
from bisect import bisect_left, bisect_right
from itertools import accumulate, islice

from squashmount.lean import Callable, NamedTuple
from squashmount.squashfs.directories import Segment
from squashmount.squashfs.generations import Generations
from squashmount.squashfs.inodes import KINDS

from .tree import LIFETIME, Tree

_CACHED_BYTES = 16 << 20

# nodeid, (generation), entry and attr lifetimes, (their nanoseconds); ino, size, blocks, three times, (nanoseconds),
# mode, nlink, uid, gid, rdev, blksize, (flags); ino, cookie, name length, type. In parentheses: always 0, as pad bytes.
_RECORD = "=Q8xQQ8x6Q12x6I4xQQII"
_WITHOUT_INODE = struct.Struct("=128xQQII")
_MAX_NAME = 255
_RECORDS = [struct.Struct(f"{_RECORD}{padded}s").pack for padded in range(0, _MAX_NAME + 8, 8)]
"""Packers of a record and the name behind it, by the eights of bytes that the name needs: zeros fill the last one."""
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
        for number, offset, segment in self._tree.segments(node, cookie):
            encoded = self._encoded.get((node, number))
            if encoded is None:
                encoded = self._encode(node, offset + 2, segment, self._dots(node) if number == 0 else [])
                self._encoded.put((node, number), encoded, len(encoded.data) + 32 * len(encoded.starts))
            starts = encoded.starts
            dots = len(starts) - 1 - len(segment.places)
            # a cookie lies above the place of the entry before it, and offset is one more than the segment's beginning
            first = dots + bisect_left(segment.places, cookie - 2 - (offset - 1)) if cookie > dots else cookie
            last = bisect_right(starts, starts[first] + room) - 1
            parts.append(encoded.data[starts[first] : starts[last]])
            room -= starts[last] - starts[first]
            if last + 1 < len(starts):
                break
            cookie = 0  # whole segments from here on
        return parts

    def _dots(self, node: int) -> list[bytes]:
        """Return the records of `.` and `..`, whose cookies are 1 and 2."""
        names = islice(self._tree.readdir(node, 0), 2)
        return [_without_inode(name.ino, name.cookie, name.name, name.kind) for name in names]

    def _encode(self, node: int, offset: int, segment: Segment, parts: list[bytes]) -> Encoded:
        """Encode a segment behind the records that `parts` has already."""
        append, uids, gids = parts.append, self._tree.uids, self._tree.gids
        _, places, names, refs, numbers, kinds = segment
        statuses = self._tree.statuses(segment)
        for place, name, ref, number, kind, status in zip(places, names, refs, numbers, kinds, statuses, strict=True):
            length = len(name)
            if length > _MAX_NAME:  # the kernel would refuse the whole reply
                append(b"")
            elif isinstance(status, tuple):
                mode, uid, gid, mtime, ino, nlink, size, rdev = status
                append(_RECORDS[(length + 7) >> 3](
                    ref + 2, LIFETIME, LIFETIME, ino, size, (size + 511) >> 9, mtime, mtime, mtime,
                    mode, nlink, uids[uid], gids[gid], rdev, _BLKSIZE, ino, place + offset, length, mode >> 12, name,
                ))  # fmt: skip
            else:
                # The entry without its inode: the kernel asks with LOOKUP, and that name alone fails.
                self._complain(f"reading {name!r} in node {node}: {status}")
                append(_without_inode(number, place + offset, name, KINDS[kind - 1]))
        return Encoded(memoryview(b"".join(parts)), list(accumulate(map(len, parts), initial=0)))


def _without_inode(number: int, cookie: int, name: bytes, kind: int) -> bytes:
    padded = name + bytes(-len(name) % 8)
    return _WITHOUT_INODE.pack(number, cookie, len(name), kind >> 12) + padded
