"""File contents: block lists, decoded blocks in a shared cache, fragments (the tails of files).

Source: kernel fs/squashfs/file.c, fragment.c; Documentation/filesystems/squashfs.rst.
"""

import struct
from itertools import accumulate

from squashmount.errors import DamagedError
from squashmount.lean import Callable, Iterable, Iterator, Lock, NamedTuple, OrderedDict, partial, suppress

from .ahead import DEPTH, Ahead, Key
from .compress import BadDataError, Decoder
from .generations import Generations
from .inodes import NO_FRAGMENT, Inode, Inodes
from .metadata import Metadata, Table
from .source import Source
from .superblock import NO_TABLE, Superblock

_STORED_PLAIN = 1 << 24
_SIZE_MASK = _STORED_PLAIN - 1

_CHUNK = 1024
"""Block sizes are read in chunks of this many: a file of 1 GiB has 8192 blocks."""
_CACHED_CHUNKS = 64
_CACHED_CHECKPOINTS = 65536

Buffer = bytes | memoryview


class _Flight:
    """A block being decoded; `landed` is locked until it is."""

    __slots__ = ("error", "landed")

    def __init__(self) -> None:
        self.landed = Lock()
        self.landed.acquire()
        self.error: BaseException | None = None


class BlockCache:
    """Decoded blocks, least recently used dropped first, within a byte budget; a block is decoded by one thread."""

    __slots__ = ("_blocks", "_budget", "_flights", "_lock", "_used", "ahead", "hits", "misses")

    def __init__(self, budget: int) -> None:
        """`budget` is in bytes; at least the newest block is always kept."""
        self._budget = budget
        self._used = 0
        self._lock = Lock()
        self._blocks: OrderedDict[Key, bytes] = OrderedDict()
        self._flights: dict[Key, _Flight] = {}
        self.hits = 0
        self.misses = 0
        self.ahead = 0

    def __contains__(self, key: Key) -> bool:
        """Tell whether the block is here or being decoded."""
        return key in self._blocks or key in self._flights

    def fetch(self, key: Key, decode: Callable[[], bytes]) -> None:
        """Decode a block that nobody waits for, unless it is here or being decoded; it counts as `ahead`.

        Raises what `decode` raises; the block is then as unknown as before.
        """
        with self._lock:
            if key in self:
                return
            flight = self._flights[key] = _Flight()
            self.ahead += 1
        self._decode(key, flight, decode)

    def get(self, key: Key, decode: Callable[[], bytes]) -> bytes:
        """Return the block; the first thread that asks decodes, others wait for it and get the same error if any."""
        while True:
            with self._lock:
                block = self._blocks.get(key)
                if block is not None:
                    self._blocks.move_to_end(key)
                    self.hits += 1
                    return block
                flight = self._flights.get(key)
                if flight is None:
                    flight = self._flights[key] = _Flight()
                    self.misses += 1
                    break
            with flight.landed:
                if flight.error is not None:
                    raise flight.error
        return self._decode(key, flight, decode)

    def _decode(self, key: Key, flight: _Flight, decode: Callable[[], bytes]) -> bytes:
        try:
            block = decode()
        except BaseException as err:
            flight.error = err
            raise
        else:
            with self._lock:
                self._blocks[key] = block
                self._used += len(block)
                while self._used > self._budget and len(self._blocks) > 1:
                    self._used -= len(self._blocks.popitem(last=False)[1])
            return block
        finally:
            with self._lock:
                del self._flights[key]
            flight.landed.release()


class _Chunk(NamedTuple):
    """Up to _CHUNK blocks of one file: their size words and their positions (one more: where the next chunk begins)."""

    words: tuple[int, ...]
    starts: list[int]


class Contents:
    """Reads regular files."""

    __slots__ = (
        "_ahead",
        "_block_size",
        "_checkpoints",
        "_chunks",
        "_decode",
        "_fragments",
        "_inodes",
        "_newest_fragment",
        "_source",
        "_zeros",
        "cache",
    )

    def __init__(
        self,
        source: Source,
        decode: Decoder,
        metadata: Metadata,
        inodes: Inodes,
        superblock: Superblock,
        *,
        budget: int,
    ) -> None:
        """Nothing is read; `budget` is the block cache's, in bytes."""
        self._source = source
        self._decode = decode
        self._inodes = inodes
        self._block_size = superblock.block_size
        self._zeros = bytes(superblock.block_size)
        self._chunks: Generations[tuple[int, int], _Chunk] = Generations(_CACHED_CHUNKS)
        self._checkpoints: Generations[int, list[tuple[int, int]]] = Generations(_CACHED_CHECKPOINTS)
        count = 0 if superblock.fragment_table == NO_TABLE else superblock.fragment_count
        self._fragments = Table(metadata, "fragment", start=superblock.fragment_table, count=count, record="<QII")
        self._newest_fragment = 0
        self.cache = BlockCache(budget)
        self._ahead = Ahead(self._fetch)

    def close(self) -> None:
        """Stop decoding ahead; returns when nobody reads the file for that any more."""
        self._ahead.close()

    def parts(self, inode: Inode, offset: int, size: int) -> list[Buffer]:
        """Return the bytes [offset, offset + size) of a file as buffers, nothing copied; short at its end."""
        end = min(offset + size, inode.size)
        found: list[Buffer] = []
        while offset < end:
            number, within = divmod(offset, self._block_size)
            block = self._block(inode, number)
            taken = min(end - offset, len(block) - within)
            found.append(block if taken == len(block) else memoryview(block)[within : within + taken])
            offset += taken
        return found

    def extents(self, inode: Inode, offset: int, size: int) -> list[tuple[int, int]]:
        """Return (start, end) in the squash file of the blocks with the bytes [offset, offset + size) of a file."""
        found: list[tuple[int, int]] = []
        end = min(offset + size, inode.size)
        for number in range(offset // self._block_size, -(-end // self._block_size)):
            if inode.fragment != NO_FRAGMENT and inode.size - number * self._block_size < self._block_size:
                start, word, _ = self._fragments[inode.fragment]
            else:
                chunk = self._chunk(inode, number // _CHUNK)
                word, start = chunk.words[number % _CHUNK], chunk.starts[number % _CHUNK]
            if word & _SIZE_MASK:
                found.append((start, start + (word & _SIZE_MASK)))
        return found

    def _block(self, inode: Inode, number: int) -> Buffer:
        """Return one decoded block of a file; it has the length the file's size demands."""
        expected = min(self._block_size, inode.size - number * self._block_size)
        if expected < self._block_size and inode.fragment != NO_FRAGMENT:
            return self._tail(inode, expected)
        chunk, within = self._chunk(inode, number // _CHUNK), number % _CHUNK
        word, start = chunk.words[within], chunk.starts[within]
        if not word & _SIZE_MASK:
            return self._zeros if expected == self._block_size else self._zeros[:expected]
        block = self.cache.get((start, word), lambda: self._load(start, word))
        if len(block) != expected:
            raise self._source.damaged(f"the block at {start} has {len(block)} bytes, its file needs {expected}")
        return block

    def _tail(self, inode: Inode, expected: int) -> Buffer:
        start, word, _ = self._fragments[inode.fragment]
        if inode.fragment != self._newest_fragment:
            self._newest_fragment = inode.fragment
            with suppress(OSError, DamagedError):  # of the neighbours' records: this file may be intact
                self._decode_ahead(inode.fragment)
        block = self.cache.get((start, word), lambda: self._load(start, word))
        tail = memoryview(block)[inode.offset : inode.offset + expected]
        if len(tail) != expected:
            raise self._source.damaged(f"fragment {inode.fragment} is too short for the file {inode.ref:#x}")
        return tail

    def _fragment(self, number: int) -> Key:
        start, word, _ = self._fragments[number]
        return start, word

    def _known(self, key: Key) -> bool:
        return key in self.cache or key in self._ahead

    def _decode_ahead(self, number: int) -> None:
        """Ask for as many fragments behind `number` as were used in sequence before it.

        mksquashfs packs the small files of a directory into one fragment after another.
        """
        used = 0
        while used < min(DEPTH, number) and self._known(self._fragment(number - used - 1)):
            used += 1
        following = [self._fragment(at) for at in range(number + 1, min(number + 1 + used, len(self._fragments)))]
        self._ahead.put(key for key in following if key[1] & _SIZE_MASK <= self._block_size and not self._known(key))

    def _fetch(self, keys: list[Key]) -> None:
        """Decode blocks into the cache, neighbours read by one request."""
        for run in _neighbours(key for key in keys if key not in self.cache):
            first, (last, word) = run[0][0], run[-1]
            stored = memoryview(self._source.read(first, last + (word & _SIZE_MASK) - first))
            for key in run:
                at = key[0] - first
                data = bytes(stored[at : at + (key[1] & _SIZE_MASK)])
                self.cache.fetch(key, partial(self._decoded, key, data))

    def _load(self, start: int, word: int) -> bytes:
        return self._decoded((start, word), None)

    def _decoded(self, key: Key, stored: bytes | None) -> bytes:
        start, word = key
        size = word & _SIZE_MASK
        if word >= _STORED_PLAIN << 1 or not 0 < size <= self._block_size:
            raise self._source.damaged(f"the block at {start} says it has {word:#x} bytes")
        if stored is None:
            stored = self._source.read(start, size)
        if word & _STORED_PLAIN:
            return stored
        try:
            return self._decode(stored, self._block_size)
        except BadDataError as err:
            raise self._source.damaged(f"the block at {start} cannot be decoded: {err}") from err

    def _chunk(self, inode: Inode, number: int) -> _Chunk:
        found = self._chunks.get((inode.ref, number))
        if found is not None:
            return found
        if self._block_count(inode) * 4 > self._inodes.capacity():
            raise self._source.damaged(f"the file {inode.ref:#x} has more blocks than the inode table can hold")
        # Where a chunk begins is known from the chunk before it; checkpoints[n] is for chunk n.
        checkpoints = self._checkpoints.get(inode.ref) or [(inode.tail, inode.start)]
        nearest = min(number, len(checkpoints) - 1)
        place, start = checkpoints[nearest]
        for at in range(nearest, number + 1):
            found, place = self._read_chunk(inode, at, place, start)
            start = found.starts[-1]
            if at + 1 == len(checkpoints):
                checkpoints = [*checkpoints, (place, start)]
        assert found is not None
        self._chunks.put((inode.ref, number), found)
        if number:
            self._checkpoints.put(inode.ref, checkpoints, len(checkpoints))
        return found

    def _read_chunk(self, inode: Inode, number: int, place: int, start: int) -> tuple[_Chunk, int]:
        count = min(_CHUNK, self._block_count(inode) - number * _CHUNK)
        raw, place = self._inodes.bytes_at(place, 4 * count)
        words = struct.unpack(f"<{count}I", raw)
        return _Chunk(words, list(accumulate((word & _SIZE_MASK for word in words), initial=start))), place

    def _block_count(self, inode: Inode) -> int:
        """Blocks in the inode's list: the last, short one is not among them when it is in a fragment."""
        full, rest = divmod(inode.size, self._block_size)
        return full + (rest > 0 and inode.fragment == NO_FRAGMENT)


def _neighbours(keys: Iterable[Key]) -> Iterator[list[Key]]:
    """Yield runs of blocks that lie one behind the other on disk."""
    run: list[Key] = []
    end = -1
    for start, word in keys:
        if run and start != end:
            yield run
            run = []
        run.append((start, word))
        end = start + (word & _SIZE_MASK)
    if run:
        yield run
