"""The listing index: every directory of a squash file as READDIRPLUS wants it, encoded once and for all by `mig`.

It lies behind the squash file system, where readers of squashfs do not look (the superblock says where that ends), so
it is copied, checked and staged with the file. Whoever does not know it, or finds it damaged, encodes the listings from
the squashfs tables: the same bytes, for 3 us a name.

Layout, little endian, from the first multiple of 4096 behind `bytes_used`:

    header    magic, copy of the superblock's 96 bytes, compressor number, count of records, count of chunks,
              table: stored size, decoded size, CRC-32 of the decoded bytes
    table     records, in columns: node (8 bytes, ascending), first cookie (8), chunk (4), offset in it (4);
              chunks, in columns: stored size (4), decoded size (4), CRC-32 (4); they follow the table in this order
    chunks    records: count (4), start of each of its entries and the end of the last (4 each), the entries
              (struct fuse_direntplus and name, see `listing`), zeros up to a multiple of 8

A record is a segment of a directory (see Directories). Ids are those in the image.
"""

import struct
import sys
from array import array
from bisect import bisect_left, bisect_right
from itertools import accumulate
from operator import lt
from zlib import crc32

from squashmount.squashfs.compress import COMPRESSORS, BadDataError, decoder
from squashmount.squashfs.generations import Generations
from squashmount.squashfs.image import SquashImage
from squashmount.squashfs.source import Source

from .listing import Encoded, cookies_of

ALIGNMENT = 4096
MAGIC = b"sqmlist1"
HEADER = struct.Struct("<8s96sIIIIII")
SUPERBLOCK_BYTES = 96
CHUNK_BYTES = 128 << 10
"""Decoded; a chunk ends with the record that reaches this."""
MAX_DECODED = 64 << 20
"""Of the table or a chunk: a few hundred damaged bytes can claim gigabytes."""
_RECORD_BYTES, _CHUNK_ENTRY_BYTES = 24, 12
_CACHED_BYTES = 1 << 20


class ListingIndex:
    """The index of one squash file, opened. Safe for threads.

    Wherever it is read: DamagedError when it contradicts itself, OSError when reading fails.
    """

    def __init__(
        self, source: Source, position: int, header: tuple[bytes, bytes, int, int, int, int, int, int]
    ) -> None:
        """Read the table."""
        _, _, compressor, records, chunks, stored, decoded, crc = header
        self._source = source
        if (
            COMPRESSORS.get(compressor) not in {"gzip", "zstd"}
            or decoded != records * _RECORD_BYTES + chunks * _CHUNK_ENTRY_BYTES
        ):
            raise source.damaged("the header of its listing index is wrong")
        self._decode = decoder(COMPRESSORS[compressor])
        table = memoryview(self._decoded(source.read(position, stored), decoded, crc))
        self._nodes, self._cookies = (_column("Q", table, 8 * records * at, records) for at in (0, 1))
        self._chunk, self._offset = (_column("I", table, 4 * records * at, records) for at in (4, 5))
        sizes, self._decoded_sizes, self._crcs = (
            _column("I", table, _RECORD_BYTES * records + 4 * chunks * number, chunks) for number in range(3)
        )
        self._positions = list(accumulate(sizes, initial=position + stored))
        self._chunks: Generations[int, bytes] = Generations(_CACHED_BYTES)

    @classmethod
    def open(cls, image: SquashImage) -> "ListingIndex | None":
        """Return the index behind an image; None when there is none, or this machine's numbers are not its numbers."""
        if sys.byteorder != "little":  # the kernel takes struct fuse_direntplus in its own byte order
            return None
        source = Source(image.fileno(), image.name)
        position = index_position(image)
        if position + HEADER.size > source.limit:
            return None
        header = HEADER.unpack(source.read_near(position, HEADER.size))
        if header[0] != MAGIC or header[1] != source.read_near(0, SUPERBLOCK_BYTES):
            return None
        return cls(source, position + HEADER.size, header)

    def records(self, node: int, cookie: int) -> range:
        """Return the numbers of a directory's records from the one `cookie` lies in; empty when there are none."""
        first = bisect_left(self._nodes, node)
        end = bisect_right(self._nodes, node, first)
        return range(max(first, bisect_right(self._cookies, cookie, first, end) - 1), end)

    def read(self, record: int) -> Encoded:
        """Return one record."""
        number, offset = self._chunk[record], self._offset[record]
        chunk = self._chunks.get(number)
        if chunk is None:
            chunk = self._load(number)
            self._chunks.put(number, chunk, len(chunk))
        try:
            encoded = _record(chunk, offset)
        except (struct.error, ValueError) as err:
            raise self._source.damaged(f"record {record} of its listing index: {err}") from err
        if encoded.cookies[0] != self._cookies[record]:
            raise self._source.damaged(f"record {record} of its listing index is out of order")
        return encoded

    def _load(self, number: int) -> bytes:
        if number >= len(self._crcs):
            raise self._source.damaged(f"its listing index has no chunk {number}")
        begin, end = self._positions[number : number + 2]
        # neighbours are wanted next: whole windows, as for the tables of squashfs
        stored = self._source.read_near(begin, end - begin)
        return self._decoded(stored, self._decoded_sizes[number], self._crcs[number])

    def _decoded(self, stored: bytes, size: int, crc: int) -> bytes:
        try:
            data = self._decode(stored, min(size, MAX_DECODED))
        except BadDataError as err:
            raise self._source.damaged(f"its listing index cannot be decoded: {err}") from err
        if len(data) != size or crc32(data) != crc:
            raise self._source.damaged("its listing index has a wrong checksum")
        return data


def _record(chunk: bytes, offset: int) -> Encoded:
    """Return a record that a listing can go through; struct.error or ValueError for any other."""
    (count,) = struct.unpack_from("<I", chunk, offset)
    begin = offset + 4 * (count + 2)
    starts = _column("I", memoryview(chunk), offset + 4, count + 1)
    if not count or starts[0] or not all(map(lt, starts, starts[1:])) or begin + starts[-1] > len(chunk):
        raise ValueError("its entries are out of place")
    data = memoryview(chunk[begin : begin + starts[-1]])  # a copy: it outlives the chunk
    cookies = array("Q", cookies_of(data, starts))
    if not all(map(lt, cookies, cookies[1:])):
        raise ValueError("its cookies do not ascend")
    return Encoded(data, starts, cookies)


def index_position(image: SquashImage) -> int:
    """Return where the index of a squash file is, or would be."""
    return -(-image.superblock.bytes_used // ALIGNMENT) * ALIGNMENT


def _column(kind: str, data: memoryview, offset: int, count: int) -> "array[int]":
    column = array(kind)
    column.frombytes(data[offset : offset + count * column.itemsize])
    if len(column) != count:
        raise ValueError(f"{count} numbers at {offset} of {len(data)} bytes")
    return column
