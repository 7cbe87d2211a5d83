"""Writes the listing index behind a squash file (layout: see `index`)."""

import os
import stat
import struct
import sys
from array import array
from collections.abc import Iterator, Sequence
from zlib import crc32

from squashmount.errors import DamagedError
from squashmount.squashfs.compress import COMPRESSORS, Encoder, encoder
from squashmount.squashfs.image import SquashImage
from squashmount.squashfs.inodes import KINDS

from .index import ALIGNMENT, CHUNK_BYTES, HEADER, MAGIC, SUPERBLOCK_BYTES, index_position
from .listing import Encoded, Listings
from .tree import ROOT, Tree

_DIRECTORY = KINDS.index(stat.S_IFDIR) + 1


def append_index(path: str) -> int:
    """Encode all listings of a squash file that nobody uses yet; return how many bytes it has behind the file system.

    What was there before is replaced. DamagedError when a directory or an inode cannot be read, OSError as write(2):
    the file is a squash file all the same.
    """
    with SquashImage.open(path) as image:
        compressor = _compressor(image.superblock.compressor)
        index = _Writer(encoder(compressor))
        for node, first, encoded in _records(image):
            index.add(node, first, encoded)
        with open(path, "r+b") as file:
            superblock = file.read(SUPERBLOCK_BYTES)
            file.truncate(index_position(image))
            file.seek(0, os.SEEK_END)
            number = next(number for number, name in COMPRESSORS.items() if name == compressor)
            written = sum(map(file.write, index.finish(superblock, number)))
            return written + file.write(bytes(-written % ALIGNMENT))


def _compressor(of_image: str) -> str:
    """Return one that whoever reads the image has, and that decodes in no time."""
    return of_image if of_image == "zstd" else "gzip"


def _records(image: SquashImage) -> Iterator[tuple[int, int, Encoded]]:
    """Yield node, first cookie and content of every record, directories in the order of a walk."""
    tree = Tree(image)
    complaints: list[str] = []
    listings = Listings(tree, complaints.append, indexed=False)
    seen, stack = {ROOT}, [ROOT]
    while stack:
        node = stack.pop()
        for _, encoded in listings.encoded(node):
            if complaints:
                raise DamagedError(f"The squash file {image.name} cannot be listed.", details=complaints[0])
            if encoded.cookies:
                yield node, encoded.cookies[0], encoded
        below = [
            ref + 2
            for _, _, segment in tree.segments(node, 0)
            for ref, kind in zip(segment.refs, segment.kinds, strict=True)
            if kind == _DIRECTORY
        ]
        if not seen.isdisjoint(below):
            raise DamagedError(f"The squash file {image.name} has a directory in two places.")
        seen.update(below)
        stack += reversed(below)


class _Writer:
    """Collects records into compressed chunks: a tenth of the listings' size stays in memory."""

    def __init__(self, encode: Encoder) -> None:
        self._encode = encode
        self._records: list[tuple[int, int, int, int]] = []
        self._chunks: list[tuple[bytes, int, int]] = []
        self._open = bytearray()

    def add(self, node: int, first: int, encoded: Encoded) -> None:
        """Append one record."""
        self._records.append((node, first, len(self._chunks), len(self._open)))
        self._open += struct.pack("<I", len(encoded.starts) - 1) + _column("I", encoded.starts) + encoded.data
        self._open += bytes(-len(self._open) % 8)
        if len(self._open) >= CHUNK_BYTES:
            self._close_chunk()

    def finish(self, superblock: bytes, compressor: int) -> list[bytes]:
        """Return header, table and chunks."""
        self._close_chunk()
        records, chunks = sorted(self._records), self._chunks
        table = b"".join(
            [
                *(_column(kind, [record[at] for record in records]) for at, kind in enumerate("QQII")),
                _column("I", [len(stored) for stored, _, _ in chunks]),
                _column("I", [size for _, size, _ in chunks]),
                _column("I", [crc for _, _, crc in chunks]),
            ]
        )
        stored = self._encode(table)
        sizes = (len(records), len(chunks), len(stored), len(table), crc32(table))
        return [HEADER.pack(MAGIC, superblock, compressor, *sizes), stored, *(chunk for chunk, _, _ in chunks)]

    def _close_chunk(self) -> None:
        if self._open:
            data = bytes(self._open)
            self._chunks.append((self._encode(data), len(data), crc32(data)))
            self._open.clear()


def _column(kind: str, numbers: Sequence[int]) -> bytes:
    column = array(kind, numbers)
    if sys.byteorder != "little":
        column.byteswap()
    return column.tobytes()
