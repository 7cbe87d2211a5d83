"""Directories: listings in runs behind a header, read in segments that the directory index delimits.

A segment (up to about 8 KiB of listing when the directory has an index, else the whole of it) is decoded once and kept
with the places of its entries. So a look-up reads one segment, and a listing resumes at any entry, also in directories
of 100,000 entries. Source: kernel fs/squashfs/dir.c, namei.c.
"""

import struct
from bisect import bisect_left, bisect_right

from squashmount.lean import Iterator, NamedTuple

from .generations import Generations
from .inodes import KINDS, Inode, Inodes
from .metadata import BLOCK, Metadata
from .superblock import Superblock

_RUN = struct.Struct("<3I")
_ENTRY = struct.Struct("<HhHH")
_INDEX = struct.Struct("<3I")
_MAX_RUN = 256
_MAX_NAME = 256
_RESERVED = frozenset({b".", b".."})
_EMPTY = 3  # a directory's size is its listing's plus 3, for `.` and `..`, which are not stored

_CACHED_BYTES = 8 << 20
_ENTRY_BYTES = 200  # of one entry in memory: five pointers, three numbers, the name's head and the name
_CACHED_INDEX_RECORDS = 16384


class DirEntry(NamedTuple):
    """One name in a directory."""

    name: bytes
    ref: int
    number: int
    kind: int
    """S_IFMT value."""


class _Index(NamedTuple):
    """Where the segments of a directory begin: offset in the listing, block in the table, first name."""

    offsets: list[int]
    blocks: list[int]
    names: list[bytes]


class Segment(NamedTuple):
    """Part of a listing, in columns: entry i begins at `places[i]` of `data`."""

    data: bytes
    places: list[int]
    names: list[bytes]
    refs: list[int]
    numbers: list[int]
    kinds: list[int]
    """Types on disk, 1 to 7: S_IFMT values in KINDS."""

    def entry(self, at: int) -> DirEntry:
        """Return one row."""
        return DirEntry(self.names[at], self.refs[at], self.numbers[at], KINDS[self.kinds[at] - 1])


_NOTHING = Segment(b"", [], [], [], [], [])


class Directories:
    """The directory table, with bounded caches of segments and indexes."""

    __slots__ = ("_end", "_indexes", "_inodes", "_metadata", "_root", "_segments", "_start")

    def __init__(self, metadata: Metadata, inodes: Inodes, superblock: Superblock) -> None:
        """Nothing is read."""
        self._metadata = metadata
        self._inodes = inodes
        self._start = superblock.directory_table
        self._end = superblock.directory_end
        self._root = superblock.root_ref
        self._segments: Generations[tuple[int, int], Segment] = Generations(_CACHED_BYTES)
        self._indexes: Generations[int, _Index] = Generations(_CACHED_INDEX_RECORDS)

    def entries(self, inode: Inode, cookie: int = 0) -> Iterator[tuple[int, DirEntry]]:
        """Yield (cookie of the next entry, entry) from the entry that `cookie` names; 0 is the first.

        A cookie is a place in the listing. One that no entry has continues at the next entry.
        """
        if inode.size <= _EMPTY:
            return
        index = self._index(inode)
        for number in range(max(0, bisect_right(index.offsets, cookie) - 1), len(index.offsets)):
            base = index.offsets[number]
            segment = self._segment(inode, index, number)
            first = bisect_left(segment.places, cookie - base) if cookie > base else 0
            # Any value above this entry's place and not above the next one's.
            base += 1
            for at in range(first, len(segment.places)):
                yield base + segment.places[at], segment.entry(at)

    def segments(self, inode: Inode, cookie: int = 0) -> Iterator[tuple[int, int, Segment]]:
        """Yield (number, cookie offset, segment) from the segment `cookie` lies in.

        The cookie that continues behind entry i is `places[i]` plus the cookie offset. An empty directory has one
        empty segment.
        """
        if inode.size <= _EMPTY:
            yield 0, 1, _NOTHING
            return
        index = self._index(inode)
        for number in range(max(0, bisect_right(index.offsets, cookie) - 1), len(index.offsets)):
            yield number, index.offsets[number] + 1, self._segment(inode, index, number)

    def lookup(self, inode: Inode, name: bytes) -> DirEntry | None:
        """Find one name; reads one segment."""
        if inode.size <= _EMPTY or not 0 < len(name) <= _MAX_NAME:
            return None
        index = self._index(inode)
        segment = self._segment(inode, index, max(0, bisect_right(index.names, name) - 1))
        # Length field and name: C speed, no assumption about the order, and the place decides if it is an entry.
        needle = struct.pack("<H", len(name) - 1) + name
        found = segment.data.find(needle)
        while found >= 0:
            at = bisect_left(segment.places, found - 6)
            if at < len(segment.places) and segment.places[at] == found - 6:
                return segment.entry(at)
            found = segment.data.find(needle, found + 1)
        return None

    def _index(self, inode: Inode) -> _Index:
        found = self._indexes.get(inode.ref)
        if found is None:
            found = self._read_index(inode)
            self._indexes.put(inode.ref, found, len(found.offsets))
        return found

    def _read_index(self, inode: Inode) -> _Index:
        index = _Index([0], [inode.start], [b""])
        place = inode.tail
        damaged = self._metadata.source.damaged
        for _ in range(inode.indexes):
            raw, place = self._inodes.bytes_at(place, _INDEX.size)
            offset, block, length = _INDEX.unpack(raw)
            if length >= _MAX_NAME:
                raise damaged(f"the index of the directory {inode.ref:#x} has a name of {length + 1} bytes")
            name, place = self._inodes.bytes_at(place, length + 1)
            if not index.offsets[-1] < offset < inode.size - _EMPTY or block < index.blocks[-1]:
                if offset == 0 == index.offsets[-1]:  # an index record for the very first entry adds nothing
                    continue
                raise damaged(f"the index of the directory {inode.ref:#x} is out of order")
            index.offsets.append(offset)
            index.blocks.append(block)
            index.names.append(name)
        return index

    def _segment(self, inode: Inode, index: _Index, number: int) -> Segment:
        key = (inode.ref, number)
        found = self._segments.get(key)
        if found is None:
            found = self._read_segment(inode, index, number)
            self._segments.put(key, found, len(found.data) + _ENTRY_BYTES * len(found.places))
        return found

    def _read_segment(self, inode: Inode, index: _Index, number: int) -> Segment:
        begin = index.offsets[number]
        end = index.offsets[number + 1] if number + 1 < len(index.offsets) else inode.size - _EMPTY
        block = self._start + index.blocks[number]
        if block >= self._end:
            raise self._metadata.source.damaged(f"the directory {inode.ref:#x} lies outside of the directory table")
        # The kernel computes the offset like this (dir.c, get_dir_index_using_offset).
        data = self._metadata.read(block, (inode.offset + begin) % BLOCK, end - begin, self._end)[0]
        return self._parse(inode, data)

    def _parse(self, inode: Inode, data: bytes) -> Segment:
        segment = Segment(data, [], [], [], [], [])
        place = 0
        try:
            while place < len(data):
                run = _RUN.unpack_from(data, place)
                if run[0] >= _MAX_RUN:
                    raise self._metadata.source.damaged(f"a run of {run[0] + 1} names in directory {inode.ref:#x}")
                place = _parse_run(segment, place + _RUN.size, run)
        except struct.error as err:
            raise self._metadata.source.damaged(f"the directory {inode.ref:#x} ends within an entry") from err
        self._check(inode, segment, place)
        return segment

    def _check(self, inode: Inode, segment: Segment, end: int) -> None:
        """Raise DamagedError for what no entry may say; whole columns at once, which costs next to nothing."""
        data, _, names, refs, _, kinds = segment
        if not names:
            return
        damaged = self._metadata.source.damaged
        if end > len(data) or max(map(len, names)) > _MAX_NAME or min(kinds) < 1 or max(kinds) > len(KINDS):
            raise damaged(f"the directory {inode.ref:#x} has an impossible entry")
        joined = b"/".join(names)
        if joined.count(b"/") >= len(names) or b"\0" in joined or not _RESERVED.isdisjoint(names):
            raise damaged(f"the directory {inode.ref:#x} contains a name no file can have")
        if inode.ref in refs or self._root in refs:
            raise damaged(f"the directory {inode.ref:#x} contains itself or the root")


def _parse_run(segment: Segment, place: int, run: tuple[int, int, int]) -> int:
    # Every name of an image comes through here: bound methods, and no checks that can be made on a whole column
    data, places, names, refs, numbers, kinds = segment
    add_place, add_name, add_ref = places.append, names.append, refs.append
    add_number, add_kind = numbers.append, kinds.append
    count, block, first = run
    block <<= 16
    unpack = _ENTRY.unpack_from
    for _ in range(count + 1):
        offset, delta, kind, length = unpack(data, place)
        behind = place + 9 + length
        add_place(place)
        add_name(data[place + 8 : behind])
        add_ref(block | offset)
        add_number((first + delta) & 0xFFFFFFFF)
        add_kind(kind)
        place = behind
    return place
