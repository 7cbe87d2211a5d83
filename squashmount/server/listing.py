"""Directory listings as READDIRPLUS wants them: encoded once for each segment of a directory, then sliced.

What `mig` has encoded is read from the index behind the squash file (see `index`). Without one, a walk costs one loop
iteration a file, here, and nothing else: replies are slices of what is encoded, handed to writev(2) as they are, and a
listing that is resumed or repeated is not encoded again.
Source: kernel include/uapi/linux/fuse.h (struct fuse_direntplus), fs/fuse/readdir.c.
"""

import struct
from bisect import bisect_right
from itertools import accumulate, islice

from squashmount.errors import DamagedError, ToolError
from squashmount.lean import TYPE_CHECKING, Callable, Iterable, Iterator, NamedTuple, Sequence
from squashmount.squashfs.directories import Segment
from squashmount.squashfs.generations import Generations
from squashmount.squashfs.inodes import KINDS

from .tree import LIFETIME, Tree

if TYPE_CHECKING:
    from .index import ListingIndex

_CACHED_BYTES = 16 << 20

# nodeid, (generation), entry and attr lifetimes, (their nanoseconds); ino, size, blocks, three times, (nanoseconds),
# mode, nlink, uid, gid, rdev, blksize, (flags); ino, cookie, name length, type. In parentheses: always 0, as pad bytes.
_RECORD = "=Q8xQQ8x6Q12x6I4xQQII"
_WITHOUT_INODE = struct.Struct("=128xQQII")
_MAX_NAME = 255
_RECORDS = [struct.Struct(f"{_RECORD}{padded}s").pack for padded in range(0, _MAX_NAME + 8, 8)]
"""Packers of a record and the name behind it, by the eights of bytes that the name needs: zeros fill the last one."""
_BLKSIZE = 4096  # Python allocates st_blksize bytes for every open file


_PATIENCE = 4096
"""Names that are encoded, 3 us each, before the index is read: a program that lists a few directories needs the tables
anyway, and a parallel file system should not send both."""

_COOKIE = struct.Struct("=136xQ")
_OWNERS = struct.Struct("=Q100xII")
_IDS = struct.Struct("=II")
_OWNERS_AT = 108


class Encoded(NamedTuple):
    """One segment: `starts[i]` is where record i begins in `data`, and behind the last one the end."""

    data: memoryview
    starts: Sequence[int]
    cookies: Sequence[int]
    """Ascending; record i + 1 continues behind the one that has `cookies[i]`."""


def cookies_of(data: memoryview, starts: Sequence[int]) -> list[int]:
    """Return the cookies in encoded records."""
    unpack = _COOKIE.unpack_from
    return [unpack(data, start)[0] for start in starts[:-1]]


class Listings:
    """Encodes and keeps segments, at most 2 x 16 MiB of them. Safe for threads."""

    def __init__(
        self, tree: Tree, complain: Callable[[str], None], *, indexed: bool = True, patience: int = _PATIENCE
    ) -> None:
        """`complain` is told what could not be read. `indexed`: read an index, if any, after `patience` names."""
        self._tree = tree
        self._complain = complain
        self._encoded: Generations[tuple[int, int], Encoded] = Generations(_CACHED_BYTES)
        self._indexed = indexed
        self._names_left = patience
        self._index: ListingIndex | None = None

    def plus(self, node: int, cookie: int, room: int) -> list[memoryview]:
        """Return records from `cookie` that fit into `room` bytes, as buffers; none at the end. ENOTDIR."""
        if self._indexed and self._names_left <= 0:
            try:
                index = self._index or self._open_index()
                stored = index.records(node, cookie) if index else ()
                if index and stored:
                    return _slices((self._stored(index, node, record) for record in stored), cookie, room)
            except (DamagedError, ToolError) as err:  # ToolError: of another compressor than the image, not installed
                self._indexed = False
                self._complain(f"the listing index is ignored: {err.details or err.brief}")
        return _slices((encoded for _, encoded in self.encoded(node, cookie)), cookie, room)

    def encoded(self, node: int, cookie: int = 0) -> Iterator[tuple[int, Encoded]]:
        """Yield the number and records of a directory's segments, from the one `cookie` lies in. ENOTDIR."""
        for number, offset, segment in self._tree.segments(node, cookie):
            encoded = self._encoded.get((node, number))
            if encoded is None:
                encoded = self._encode(node, offset + 2, segment, self._dots(node) if number == 0 else [])
                self._remember((node, number), encoded)
            yield number, encoded

    def _open_index(self) -> "ListingIndex | None":
        from .index import ListingIndex  # noqa: PLC0415 - not while the first container waits for its mount

        self._index = ListingIndex.open(self._tree.image)
        self._indexed = self._index is not None
        return self._index

    def _stored(self, index: "ListingIndex", node: int, record: int) -> Encoded:
        key = (node, ~record)  # beside those of segments, which count from 0
        encoded = self._encoded.get(key)
        if encoded is None:
            encoded = index.read(record)
            if self._tree.shifts:
                encoded = self._shifted(encoded)
            self._remember(key, encoded)
        return encoded

    def _shifted(self, encoded: Encoded) -> Encoded:
        uids, gids = self._tree.uids, self._tree.gids
        data = bytearray(encoded.data)
        for start in encoded.starts[:-1]:
            node, uid, gid = _OWNERS.unpack_from(data, start)
            if node:
                _IDS.pack_into(data, start + _OWNERS_AT, uids[uid], gids[gid])
        return encoded._replace(data=memoryview(data))

    def _remember(self, key: tuple[int, int], encoded: Encoded) -> None:
        self._encoded.put(key, encoded, len(encoded.data) + 72 * len(encoded.starts))

    def _dots(self, node: int) -> list[bytes]:
        """Return the records of `.` and `..`, whose cookies are 1 and 2."""
        names = islice(self._tree.readdir(node, 0), 2)
        return [_without_inode(name.ino, name.cookie, name.name, name.kind) for name in names]

    def _encode(self, node: int, offset: int, segment: Segment, parts: list[bytes]) -> Encoded:
        """Encode a segment behind the records that `parts` has already."""
        self._names_left -= len(segment.names)
        append, uids, gids = parts.append, self._tree.uids, self._tree.gids
        _, places, names, refs, numbers, kinds = segment
        statuses = self._tree.statuses(segment)
        for place, name, ref, number, kind, status in zip(places, names, refs, numbers, kinds, statuses, strict=True):
            length = len(name)
            if length > _MAX_NAME:  # the kernel would refuse the whole reply
                continue
            if isinstance(status, tuple):
                mode, uid, gid, mtime, ino, nlink, size, rdev = status
                append(_RECORDS[(length + 7) >> 3](
                    ref + 2, LIFETIME, LIFETIME, ino, size, (size + 511) >> 9, mtime, mtime, mtime,
                    mode, nlink, uids[uid], gids[gid], rdev, _BLKSIZE, ino, place + offset, length, mode >> 12, name,
                ))  # fmt: skip
            else:
                # The entry without its inode: the kernel asks with LOOKUP, and that name alone fails.
                self._complain(f"reading {name!r} in node {node}: {status}")
                append(_without_inode(number, place + offset, name, KINDS[kind - 1]))
        data, starts = memoryview(b"".join(parts)), list(accumulate(map(len, parts), initial=0))
        return Encoded(data, starts, cookies_of(data, starts))


def _without_inode(number: int, cookie: int, name: bytes, kind: int) -> bytes:
    padded = name + bytes(-len(name) % 8)
    return _WITHOUT_INODE.pack(number, cookie, len(name), kind >> 12) + padded


def _slices(segments: Iterable[Encoded], cookie: int, room: int) -> list[memoryview]:
    parts: list[memoryview] = []
    for encoded in segments:
        data, starts, cookies = encoded
        first = bisect_right(cookies, cookie)
        last = bisect_right(starts, starts[first] + room) - 1
        parts.append(data[starts[first] : starts[last]])
        room -= starts[last] - starts[first]
        if last + 1 < len(starts):
            break
    return parts
