"""Directories: listings in runs behind a header, read in segments that the directory index delimits.

A segment (up to about 8 KiB of listing when the directory has an index, else the whole of it) is decoded once and kept
with the places of its entries. So a look-up reads one segment, and a listing resumes at any entry, also in directories
of 100,000 entries. Source: kernel fs/squashfs/dir.c, namei.c.
"""

import struct
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from typing import NamedTuple

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
_ENTRY_BYTES = 240  # of one entry in memory: a tuple of five, three numbers, the name's head, two pointers
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


class _Segment(NamedTuple):
    """Part of a listing: `entries[i]` begins at `places[i]` of `data`."""

    data: bytes
    places: list[int]
    entries: list[DirEntry]


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
        self._segments: Generations[tuple[int, int], _Segment] = Generations(_CACHED_BYTES)
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
            _, places, entries = segment
            for at in range(first, len(entries)):
                yield base + places[at], entries[at]

    def segments(self, inode: Inode, cookie: int = 0) -> Iterator[tuple[int, int, list[int], list[DirEntry]]]:
        """Yield (number, cookie offset, places, entries) of the segments from the one `cookie` lies in.

        The cookie that continues behind `entries[i]` is `places[i]` plus the cookie offset.
        """
        if inode.size <= _EMPTY:
            return
        index = self._index(inode)
        for number in range(max(0, bisect_right(index.offsets, cookie) - 1), len(index.offsets)):
            _, places, entries = self._segment(inode, index, number)
            yield number, index.offsets[number] + 1, places, entries

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
                return segment.entries[at]
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

    def _segment(self, inode: Inode, index: _Index, number: int) -> _Segment:
        key = (inode.ref, number)
        found = self._segments.get(key)
        if found is None:
            found = self._read_segment(inode, index, number)
            self._segments.put(key, found, len(found.data) + _ENTRY_BYTES * len(found.places))
        return found

    def _read_segment(self, inode: Inode, index: _Index, number: int) -> _Segment:
        begin = index.offsets[number]
        end = index.offsets[number + 1] if number + 1 < len(index.offsets) else inode.size - _EMPTY
        block = self._start + index.blocks[number]
        if block >= self._end:
            raise self._metadata.source.damaged(f"the directory {inode.ref:#x} lies outside of the directory table")
        # The kernel computes the offset like this (dir.c, get_dir_index_using_offset).
        data = self._metadata.read(block, (inode.offset + begin) % BLOCK, end - begin, self._end)[0]
        return self._parse(inode, data)

    def _parse(self, inode: Inode, data: bytes) -> _Segment:
        segment = _Segment(data, [], [])
        place = 0
        try:
            while place < len(data):
                run = _RUN.unpack_from(data, place)
                if run[0] >= _MAX_RUN:
                    raise self._metadata.source.damaged(f"a run of {run[0] + 1} names in directory {inode.ref:#x}")
                place = self._parse_run(inode, segment, place + _RUN.size, run)
        except struct.error as err:
            raise self._metadata.source.damaged(f"the directory {inode.ref:#x} ends within an entry") from err
        return segment

    def _parse_run(self, inode: Inode, segment: _Segment, place: int, run: tuple[int, int, int]) -> int:
        data, places, entries = segment
        count, block, first = run
        block <<= 16
        forbidden = (inode.ref, self._root)
        damaged = self._metadata.source.damaged
        unpack = _ENTRY.unpack_from
        for _ in range(count + 1):
            offset, delta, kind, length = unpack(data, place)
            behind = place + 9 + length
            name = data[place + 8 : behind]
            if behind > len(data) or length >= _MAX_NAME or not 1 <= kind <= len(KINDS):
                raise damaged(f"the directory {inode.ref:#x} has an impossible entry")
            if b"/" in name or b"\0" in name or name in _RESERVED:
                raise damaged(f"the directory {inode.ref:#x} contains the name {name!r}")
            ref = block | offset
            if ref in forbidden:
                raise damaged(f"the directory {inode.ref:#x} contains itself or the root")
            places.append(place)
            entries.append(DirEntry(name, ref, (first + delta) & 0xFFFFFFFF, KINDS[kind - 1]))
            place = behind
        return place
