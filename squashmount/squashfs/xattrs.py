"""Extended attributes: a table of lists, and key-value pairs whose values may be stored elsewhere.

Source: kernel fs/squashfs/xattr.c, xattr_id.c; limits: include/uapi/linux/limits.h.
"""

import struct

from .generations import Generations
from .metadata import Metadata, Table
from .superblock import NO_TABLE, Superblock

_PREFIXES = (b"user.", b"trusted.", b"security.")
_ELSEWHERE = 0x100

_HEADER = struct.Struct("<QII")
_MAX_NAME = 255  # XATTR_NAME_MAX
_MAX_VALUE = 65536  # XATTR_SIZE_MAX
_MAX_NAMES = 65536  # XATTR_LIST_MAX
_MAX_TOTAL = 16 << 20  # of one file; nobody has that, and a damaged list could ask for gigabytes
_CACHED_BYTES = 1 << 20


class Xattrs:
    """The attribute table; attribute sets are kept in a bounded cache (many files share one set)."""

    __slots__ = ("_metadata", "_sets", "_start", "_table", "_table_start")

    def __init__(self, metadata: Metadata, superblock: Superblock) -> None:
        """Nothing is read."""
        self._metadata = metadata
        self._start = superblock.xattr_table
        self._table: Table | None = None
        self._table_start = 0
        self._sets: Generations[int, dict[bytes, bytes]] = Generations(_CACHED_BYTES)

    @property
    def present(self) -> bool:
        """Whether any file of the image has attributes."""
        return self._start != NO_TABLE

    def get(self, index: int) -> dict[bytes, bytes]:
        """Return all attributes of one set with full names; do not change the dictionary."""
        found = self._sets.get(index)
        if found is None:
            found = self._read(index)
            self._sets.put(index, found, 256 + sum(len(name) + len(value) for name, value in found.items()))
        return found

    def _read(self, index: int) -> dict[bytes, bytes]:
        table = self._table or self._open()
        ref, count, _ = table[index]
        place = ref
        found: dict[bytes, bytes] = {}
        names = total = 0
        for _ in range(count):
            raw, place = self._bytes(place, 4)
            kind, length = struct.unpack("<HH", raw)
            name, place = self._bytes(place, length)
            value, place = self._value(place, elsewhere=bool(kind & _ELSEWHERE))
            names += length + 1
            total += len(value)
            if not 0 < length <= _MAX_NAME or names > _MAX_NAMES or total > _MAX_TOTAL or b"\0" in name:
                raise self._metadata.source.damaged(f"the attribute set {index} has impossible names or sizes")
            if kind & 0xFF < len(_PREFIXES):  # the kernel, too, skips prefixes it does not know
                found[_PREFIXES[kind & 0xFF] + name] = value
        return found

    def _value(self, place: int, *, elsewhere: bool) -> tuple[bytes, int]:
        raw, place = self._bytes(place, 4)
        size = int.from_bytes(raw, "little")
        if not elsewhere:
            self._check_size(size)
            return self._bytes(place, size)
        self._check_size(size, exactly=8)
        raw, place = self._bytes(place, 8)
        value, _ = self._value(int.from_bytes(raw, "little"), elsewhere=False)
        return value, place

    def _check_size(self, size: int, *, exactly: int | None = None) -> None:
        if size > _MAX_VALUE or (exactly is not None and size != exactly):
            raise self._metadata.source.damaged(f"an attribute has a value of {size} bytes")

    def _bytes(self, place: int, size: int) -> tuple[bytes, int]:
        """Read at a reference relative to the attribute data, which ends where the table's list begins."""
        data, block, offset = self._metadata.read(self._table_start + (place >> 16), place & 0xFFFF, size, self._start)
        return data, (block - self._table_start) << 16 | offset

    def _open(self) -> Table:
        source = self._metadata.source
        start, count, _ = _HEADER.unpack(source.read_near(self._start, _HEADER.size))
        if not start < self._start:
            raise source.damaged(f"the attribute data at {start} does not lie before its table at {self._start}")
        self._table_start = start
        self._table = Table(
            self._metadata, "attribute set", start=self._start + _HEADER.size, count=count, record="<QII"
        )
        return self._table
