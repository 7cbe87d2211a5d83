"""How many bytes of a squash file a workload really needs: the stored sizes of the distinct blocks it touches.

What is touched is what the program asks for, not what a reader of squash files does about it. The workload runs with
chroot(2) in the image, seen through the pass-through file system without any read-ahead, so every name looked up and
every page read is on record. Then our reader looks the same names and bytes up in the squash file, and each metadata
block (inodes, directories, fragment table) and each data or fragment block on the way is counted once, as long as it is
on disk. Left out: what Podman and crun look up in the image before the program starts, a handful of blocks.
"""

import stat
import struct
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

from inputs import Spec
from lab import Done, run
from shared import SharedMount

from squashmount.squashfs.compress import Decoder, decoder
from squashmount.squashfs.directories import Directories
from squashmount.squashfs.inodes import NO_FRAGMENT, Inode, Inodes
from squashmount.squashfs.metadata import Metadata, Table
from squashmount.squashfs.source import Source
from squashmount.squashfs.superblock import NO_TABLE, read_superblock

SUPERBLOCK_BYTES = 96
LARGEST = 1 << 20
"""Bytes of one request, at most (passthrough.READ_AHEAD)."""
_SIZE = (1 << 24) - 1

Trace = list[tuple[str, str, int, int]]


class _Recorder(Metadata):
    """Metadata that remembers which of its blocks were used."""

    __slots__ = ("used",)

    def __init__(self, source: Source, decode: Decoder) -> None:
        super().__init__(source, decode)
        self.used: dict[int, int] = {}

    def block(self, position: int, end: int) -> tuple[bytes, int]:
        found = super().block(position, end)
        self.used[position] = found[1] - position
        return found


class Needed:
    """Looks names and bytes up in a squash file and remembers the blocks."""

    def __init__(self, fd: int) -> None:
        """`fd` stays the caller's."""
        source = Source(fd, "the squash file")
        self._block = read_superblock(source)
        decode = decoder(self._block.compressor)
        self._metadata = _Recorder(source, decode)
        self._inodes = Inodes(self._metadata, self._block)
        self._directories = Directories(self._metadata, self._inodes, self._block)
        count = 0 if self._block.fragment_table == NO_TABLE else self._block.fragment_count
        self._fragments = Table(
            self._metadata, "fragment", start=self._block.fragment_table, count=count, record="<QII"
        )
        self._data: dict[int, int] = {}

    def add(self, trace: Iterable[tuple[str, str, int, int]]) -> None:
        """Count what these requests (passthrough.Book) need."""
        for kind, path, offset, size in trace:
            inode = self._find(path)
            if inode is None:
                continue  # looked for in vain: the directory's listing is counted
            if kind == "readdir":
                for _ in self._directories.entries(inode):
                    pass
            elif kind == "readlink":
                self._inodes.target(inode)
            elif kind == "read" and inode.kind == stat.S_IFREG:
                self._read(inode, offset, min(offset + size, inode.size))

    def total(self) -> dict[str, int]:
        """Return bytes on disk: of metadata blocks, data blocks, and all with the superblock."""
        metadata, data = sum(self._metadata.used.values()), sum(self._data.values())
        blocks = len(self._metadata.used) + len(self._data)
        return {"metadata": metadata, "data": data, "bytes": metadata + data + SUPERBLOCK_BYTES, "blocks": blocks}

    def fewest_requests(self, times: float) -> int:
        """Return how few requests bring all of it when gaps are read, too: up to `times` the bytes needed.

        What a reader could do that knows beforehand what will be needed, in this file as it is laid out. The smallest
        gaps are read first.
        """
        sizes = {0: SUPERBLOCK_BYTES} | self._metadata.used | self._data
        blocks = sorted(sizes)
        gaps = [(here - before - sizes[before], here) for before, here in pairwise(blocks)]
        spare = (times - 1) * sum(sizes.values())
        apart = set()
        for gap, here in sorted(gaps):
            spare -= gap
            if spare < 0:
                apart.add(here)
        count, begin = 0, 0
        for block in blocks:
            if not count or block in apart or block + sizes[block] - begin > LARGEST:
                count, begin = count + 1, block
        return count

    def _find(self, path: str) -> Inode | None:
        inode = self._inodes.get(self._block.root_ref)
        for name in path.encode(errors="surrogateescape").split(b"/"):
            if name:
                entry = self._directories.lookup(inode, name) if inode.kind == stat.S_IFDIR else None
                if entry is None:
                    return None
                inode = self._inodes.get(entry.ref)
        return inode

    def _read(self, inode: Inode, offset: int, end: int) -> None:
        block_size = self._block.block_size
        blocks = inode.size // block_size + (inode.size % block_size > 0 and inode.fragment == NO_FRAGMENT)
        words = struct.unpack(f"<{blocks}I", self._inodes.bytes_at(inode.tail, 4 * blocks)[0]) if blocks else ()
        starts = [inode.start]
        for word in words:
            starts.append(starts[-1] + (word & _SIZE))
        for number in range(offset // block_size, -(-end // block_size)):
            if number < blocks:
                start, word = starts[number], words[number]
            else:
                start, word, _ = self._fragments[inode.fragment]
            if word & _SIZE:  # a block of zeros is not stored
                self._data[start] = word & _SIZE


def trace_import(squash: Path, work: Path, squashmount: Path, program: str, spec: Spec) -> Trace:
    """Run the import storm as root in the image; return what it asked of its files. AssertionError when it fails."""
    plain = work / "plain"
    plain.mkdir(parents=True)
    run(str(squashmount), "mount", str(squash), str(plain)).ok()
    try:
        with SharedMount(plain, work / "traced") as traced:
            traced.start(read_ahead=0)
            _chroot(traced.at, "import", program, spec).ok()
            return traced.trace()
    finally:
        run("umount", "-l", str(plain)).ok()


def _chroot(root: Path, workload: str, program: str, spec: Spec) -> Done:
    # the program reads /proc/self/mounts; this mount is the shell's alone
    script = 'mount -t proc proc "$0/proc" && exec env -i LANG=C.UTF-8 PATH=/usr/local/bin:/usr/bin:/bin '
    script += '/usr/sbin/chroot "$0" python3 -c "$1" "$2" "" "$3"'
    argv = ("unshare", "--mount", "sh", "-c", script, str(root), program, workload, spec.json())
    return run(*argv, timeout=300)
