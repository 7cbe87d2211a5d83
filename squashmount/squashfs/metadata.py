"""Metadata blocks: chains of up to 8 KiB behind a 16-bit header, and tables stored in them.

A position is written as in the format's references: the block's offset on disk, and an offset in its decoded bytes.
Source: kernel Documentation/filesystems/squashfs.rst and fs/squashfs/cache.c.
"""

import struct

from .compress import BadDataError, Decoder
from .generations import Generations
from .source import Source

BLOCK = 8192

_STORED_PLAIN = 0x8000
_CACHED_BLOCKS = 512


class Metadata:
    """Decodes metadata blocks and keeps the recent ones (at most 2 x 512, 8 MiB); safe for threads."""

    __slots__ = ("_blocks", "_decode", "source")

    def __init__(self, source: Source, decode: Decoder) -> None:
        """Nothing is read."""
        self.source = source
        self._decode = decode
        self._blocks: Generations[int, tuple[bytes, int]] = Generations(_CACHED_BLOCKS)

    def block(self, position: int, end: int) -> tuple[bytes, int]:
        """Return the decoded block at `position` and the position of the next; none may reach beyond `end`."""
        found = self._blocks.get(position)
        if found is None:
            found = self._load(position, end)
            self._blocks.put(position, found)
        return found

    def read(self, position: int, offset: int, size: int, end: int) -> tuple[bytes, int, int]:
        """Return `size` bytes from a position, across blocks, and the position behind them."""
        data, following = self.block(position, end)
        if offset > len(data):
            raise self.source.damaged(f"offset {offset} in a metadata block of {len(data)} bytes at {position}")
        if offset + size <= len(data):
            return data[offset : offset + size], position, offset + size
        # The table cannot hold this much: do not collect gigabytes before finding out.
        if size > self.capacity(position, end):
            raise self.source.damaged(f"{size} bytes of metadata at {position} reach beyond their table")
        parts = [data[offset:]]
        missing = size - len(parts[0])
        while missing:
            position = following
            data, following = self.block(position, end)
            parts.append(data[:missing])
            offset = len(parts[-1])
            missing -= offset
        return b"".join(parts), position, offset

    @staticmethod
    def capacity(position: int, end: int) -> int:
        """Return how many decoded bytes fit between two places on disk: a stored block has at least 3 bytes."""
        return ((end - position) // 3 + 1) * BLOCK

    def _load(self, position: int, end: int) -> tuple[bytes, int]:
        stored = self.source.read_near(position, max(0, min(2 + BLOCK, end - position)))
        if len(stored) < 2:
            raise self.source.damaged(f"a metadata block at {position} reaches beyond its table")
        header = stored[0] | stored[1] << 8
        size = header & ~_STORED_PLAIN
        if not 0 < size <= BLOCK or 2 + size > len(stored):
            raise self.source.damaged(f"the metadata block at {position} says it has {size} bytes")
        body = stored[2 : 2 + size]
        if not header & _STORED_PLAIN:
            try:
                body = self._decode(body, BLOCK)
            except BadDataError as err:
                raise self.source.damaged(f"the metadata block at {position} cannot be decoded: {err}") from err
            if not body:
                raise self.source.damaged(f"the metadata block at {position} is empty")
        return body, position + 2 + size


class Table:
    """Records of one size in metadata blocks that a list of positions points to; the list is read at first use."""

    __slots__ = ("_count", "_metadata", "_pointers", "_record", "_start", "_what")

    def __init__(self, metadata: Metadata, what: str, *, start: int, count: int, record: str) -> None:
        """`start` is where the list of positions lies; `record` is a struct format that divides 8192."""
        self._metadata = metadata
        self._what = what
        self._start = start
        self._count = count
        self._record = struct.Struct(record)
        self._pointers: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> tuple[int, ...]:
        """Return one record; DamagedError when the table has no such record."""
        if not 0 <= index < self._count:
            raise self._metadata.source.damaged(f"{self._what} {index} of {self._count} does not exist")
        block, offset = divmod(index * self._record.size, BLOCK)
        pointers = self._pointers or self._read_pointers()
        # The blocks lie before their list (mksquashfs writes them so; the kernel checks it).
        data = self._metadata.read(pointers[block], offset, self._record.size, self._start)[0]
        return self._record.unpack(data)

    def _read_pointers(self) -> tuple[int, ...]:
        blocks = -(-self._count * self._record.size // BLOCK)
        raw = self._metadata.source.read_near(self._start, 8 * blocks)
        self._pointers = struct.unpack(f"<{blocks}Q", raw)
        return self._pointers
