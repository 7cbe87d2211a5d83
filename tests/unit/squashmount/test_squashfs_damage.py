"""Whatever the bytes are: DamagedError or OSError, soon, in bounded memory, and never another exception.

The seeds are files (corpus/make.py made them), the damage is drawn from a fixed beginning: the same on every machine.
"""

import io
import lzma
import os
import random
import resource
import stat
import struct
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lz4.block
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from squash_images import image_of, in_a_circle, mksquash, noise

from squashmount.errors import DamagedError, ToolError
from squashmount.server.index_writer import append_index
from squashmount.server.listing import Listings
from squashmount.server.tree import Tree
from squashmount.squashfs.image import SquashImage
from squashmount.squashfs.inodes import Inode

SUPERBLOCK = struct.Struct("<4s4I6H8Q")

# scripts/fuzz sets it: a long run with new damage every time instead of the short one that is always the same
LONG = int(os.environ.get("SQUASHMOUNT_FUZZ", "0"))
EXAMPLES = LONG or 1000


SMALL = b"d/many/" + b"n" * 40 + b"7"  # its inode is a basic one, those of d/file and d/many are extended ones

SECONDS = 10
"""Of processor time, for one damaged file; whole ones take 0.02."""
MEMORY = 192 << 20
"""Address space for one damaged file: the caches, and the 128 MiB that liblzma may take (compress._XZ_MEMORY)."""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """The seeds, the plain one first, and at the end one with a listing index."""
    folder = Path(__file__).parent / "corpus"
    seeds = [(folder / f"{name}.squashfs").read_bytes() for name in ("plain", "gzip", "zstd", "lz4", "xz")]
    indexed = tmp_path_factory.mktemp("seed") / "indexed"
    indexed.write_bytes(seeds[1])
    append_index(str(indexed))
    return [*seeds, indexed.read_bytes()]


@contextmanager
def bounded() -> Iterator[None]:
    """Fail if the block takes too long, or asks for more memory than it may have (MemoryError)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    started = time.process_time()
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert time.process_time() - started < SECONDS


def read_everything(data: bytes, *, names: int = 2000) -> int:
    """Do all there is to do with an image, as far as damage lets us; return how much could be read."""
    with bounded():
        return _read_everything(data, names)


def _read_everything(data: bytes, names: int) -> int:
    done = 0
    try:
        image = image_of(data)
    except (DamagedError, OSError, ToolError):  # ToolError: it says lzo now
        return 0
    with image:
        stack = [image.root_ref]
        while stack and done < names:
            done += 1
            try:
                stack += read_one(image, image.inode(stack.pop()))
            except (DamagedError, OSError):
                continue
    return done


def read_one(image: SquashImage, inode: Inode) -> list[int]:
    children = []
    for use in (
        image.xattrs,
        lambda node: image.lookup(node, b"n" * 40 + b"77"),
        lambda node: image.ref_of(node.number),
    ):
        try:
            use(inode)
        except (DamagedError, OSError):
            continue
    if inode.kind == stat.S_IFDIR:
        list_as_the_server_does(image, inode.ref)
        for entry in image.entries(inode):
            children.append(entry.ref)
            if len(children) >= 1000:
                break
    elif inode.kind == stat.S_IFREG:
        image.read(inode, 0, 1 << 16)
        image.read(inode, max(0, inode.size - 5000), 5000)
        image.read(inode, inode.size // 2, 100)
    elif inode.kind == stat.S_IFLNK:
        image.readlink(inode)
    return children


def list_as_the_server_does(image: SquashImage, ref: int) -> None:
    complaints: list[str] = []
    listings, cookie = Listings(Tree(image), complaints.append, patience=0), 0
    for _ in range(100):
        records = b"".join(listings.plus(1 if ref == image.root_ref else ref + 2, cookie, 4096))
        if not records:
            break
        at = 0
        while at < len(records):
            _, cookie, length, _ = struct.unpack_from("=QQII", records, at + 128)
            at += 152 + length + -length % 8
        assert at == len(records)


def test_undamaged_images_are_read_whole(images: list[bytes]) -> None:
    assert [read_everything(data) for data in images] == [306] * len(images)


@settings(
    max_examples=EXAMPLES, derandomize=not LONG, deadline=None, suppress_health_check=list(HealthCheck), database=None
)
@given(st.data())
def test_flipped_bytes(images: list[bytes], data: st.DataObject) -> None:
    damaged = bytearray(data.draw(st.sampled_from(images)))
    # Most of the file is contents; the tables at its end and the superblock are where damage is interesting.
    tables = st.integers(SUPERBLOCK.unpack_from(damaged)[13] % len(damaged), len(damaged) - 1)
    places = st.one_of(tables, st.integers(0, 95), st.integers(0, len(damaged) - 1))
    for place, value in data.draw(st.lists(st.tuples(places, st.integers(0, 255)), min_size=1, max_size=8)):
        damaged[place] = value
    read_everything(bytes(damaged))


def test_random_damage_in_the_plain_tables(images: list[bytes]) -> None:
    """Nothing is compressed here, so every change is a wrong value and not just a failed checksum."""
    chance = random.Random(None if LONG else 4)
    original = images[0]
    begin = SUPERBLOCK.unpack_from(original)[13]
    survived = 0
    rounds = LONG or 1500
    for _ in range(rounds):
        damaged = bytearray(original)
        for _ in range(chance.randint(1, 6)):
            place = chance.randrange(begin, len(original) - 4)
            size = chance.choice((1, 2, 4))
            damaged[place : place + size] = chance.choice((b"\0" * 4, b"\xff" * 4, chance.randbytes(4)))[:size]
        survived += read_everything(bytes(damaged)) > 1
    assert survived > rounds // 3  # else nothing but the superblock was tested


LIES = (
    0,
    1,
    3,
    0x7F,
    0xFF,
    0x7FFF,
    0x8000,
    0xFFFF,
    0xFFFFFF,
    0x1FFFFFF,
    0x7FFFFFFF,
    0xFFFFFFFF,
    1 << 62,
    (1 << 64) - 1,
)


def test_lies_copies_and_cuts(images: list[bytes]) -> None:
    """Sizes and counts that lie, references that lead elsewhere (also in circles), ends that are missing.

    What is copied within the tables is well-formed in the wrong place. What is cut off is denied by the superblock.
    """
    chance = random.Random(None if LONG else 5)
    survived = 0
    rounds = LONG or 1500
    for _ in range(rounds):
        damaged = bytearray(chance.choice(images) if chance.random() < 0.3 else images[0])
        begin = SUPERBLOCK.unpack_from(damaged)[13]
        for _ in range(chance.randint(1, 4)):
            place = chance.randrange(begin, len(damaged) - 8) if chance.random() < 0.9 else chance.randrange(4, 88)
            size = chance.choice((2, 2, 4, 4, 8))
            match chance.randrange(8):
                case 0 | 1 | 2:
                    lie = chance.choice((*LIES, len(damaged), place, begin, place - begin))
                    damaged[place : place + size] = (lie & (1 << 8 * size) - 1).to_bytes(8, "little")[:size]
                case 3 | 4 | 5:
                    length = chance.choice((2, 4, 8, 32, 64, 300))
                    source = chance.randrange(begin, len(damaged) - 8)
                    copied = damaged[source : source + min(length, len(damaged) - place)]
                    damaged[place : place + len(copied)] = copied
                case 6:
                    number = int.from_bytes(damaged[place : place + size], "little") + chance.choice((-8, -1, 1, 8, 96))
                    damaged[place : place + size] = (number & (1 << 8 * size) - 1).to_bytes(size, "little")
                case _:
                    del damaged[max(96, len(damaged) - chance.choice((1, 8, 30, 300, 3000))) :]
                    damaged[40:48] = len(damaged).to_bytes(8, "little")
                    break
        survived += read_everything(bytes(damaged)) > 1
    assert survived > rounds // 4


def test_every_truncation_is_noticed_at_open(images: list[bytes]) -> None:
    for data in images[:-1]:  # an index that is cut off is no damage of the file system
        for size in (0, 1, 95, 96, 1000, len(data) // 2, len(data) - 1):
            with pytest.raises(DamagedError) as caught:
                image_of(data[:size])
            assert "migrate2scratch mig" in caught.value.hint


def changed(data: bytes, **fields: Any) -> bytes:
    names = (
        "magic inodes mtime block_size fragments compressor log flags ids major minor "
        "root used id xattr inode directory fragment export"
    )
    values = dict(zip(names.split(), SUPERBLOCK.unpack_from(data), strict=True)) | fields
    return SUPERBLOCK.pack(*values.values()) + data[SUPERBLOCK.size :]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"magic": b"sqsh"}, "big endian"),
        ({"magic": b"\x7fELF"}, "ELF"),
        ({"major": 3, "minor": 1}, "version 3.1"),
        ({"minor": 1}, "version 4.1"),
        ({"compressor": 7}, "compressor number 7"),
        ({"compressor": 0}, "compressor number 0"),
        ({"block_size": 5000}, "block size"),
        ({"log": 40}, "block size"),
        ({"block_size": 1 << 21, "log": 21}, "block size"),
        ({"used": 1 << 60}, "cut off"),
        ({"inode": 1 << 63}, "out of order"),
        ({"id": (1 << 64) - 1}, "lies outside"),
        ({"xattr": 1 << 40}, "lies outside"),
        ({"ids": 0}, "owners is empty"),
    ],
)
def test_impossible_superblocks(images: list[bytes], fields: dict[str, Any], says: str) -> None:
    with pytest.raises(DamagedError) as caught:
        image_of(changed(images[0], **fields))
    assert says in caught.value.details


def test_a_root_outside_of_the_table_is_noticed(images: list[bytes]) -> None:
    for root in (1 << 47, (1 << 64) - 1, 0xFFFF):
        with image_of(changed(images[0], root=root)) as image, pytest.raises(DamagedError):
            image.inode(image.root_ref)


def test_forbidden_names_are_damage(images: list[bytes]) -> None:
    for bad in (b"t/il", b"t\0il"):
        data = images[0]
        at = data.rindex(b"tail")
        with image_of(data[:at] + bad + data[at + 4 :]) as image, pytest.raises(DamagedError, match="damaged"):
            image.find(b"d/file")


def test_a_directory_that_contains_the_root_is_damage(images: list[bytes]) -> None:
    data = images[0]
    with image_of(data) as image:
        root = image.inode(image.root_ref)
        entry = image.lookup(root, b"d")
        assert entry is not None
        listing = struct.pack("<HhHH", entry.ref & 0xFFFF, 0, 0, 0)[:2]
    at = data.index(struct.pack("<HH", 1, 0) + b"d", data.index(b"\x03\x00link") - 40)
    # The entry of `d`: offset, number, type, length, name. Point its offset at the root's own inode.
    assert data[at - 4 : at - 2] == listing
    damaged = data[: at - 4] + struct.pack("<H", root.ref & 0xFFFF) + data[at - 2 :]
    with image_of(damaged) as image, pytest.raises(DamagedError, match="damaged"):
        list(image.entries(image.inode(image.root_ref)))


def test_a_directory_in_its_own_subdirectory_is_no_endless_work(images: list[bytes]) -> None:
    """Nobody can tell without reading everything; whoever walks into it goes in circles, one request at a time."""
    data = in_a_circle(images[0], b"d", SMALL)
    with bounded(), image_of(data) as image:
        assert found(image, b"/".join([SMALL] + [SMALL[2:]] * 50)).ref == found(image, b"d").ref
    assert read_everything(data) == 2000  # as many names as it was allowed to look at


Use = Callable[[SquashImage, Inode], object]


def everything(image: SquashImage, inode: Inode) -> object:
    return image.read(inode, 0, 1 << 30)


def names_of(image: SquashImage, inode: Inode) -> object:
    return list(image.entries(inode))


# path, offset of the field in its inode (squashfs format, "inode table"), format, the lie, what notices
INODE_LIES: dict[str, tuple[bytes, int, str, int, Use]] = {
    "a size of 4 GiB": (SMALL, 28, "<I", 0xFFFFFFFF, everything),
    "a fragment that does not exist": (SMALL, 20, "<I", 0x7FFFFFFF, everything),
    "an offset behind the fragment": (SMALL, 24, "<I", 0xFFFFFFFF, everything),
    "a link of 4 GiB": (b"link", 20, "<I", 0xFFFFFFFF, SquashImage.readlink),
    "a listing of 64 KiB": (b"d", 24, "<H", 0xFFFF, names_of),
    "a listing of 4 GiB": (b"d/many", 20, "<I", 0xFFFFFFFF, names_of),
    "65535 index entries": (b"d/many", 32, "<H", 0xFFFF, lambda image, inode: image.lookup(inode, b"x")),
    "a listing outside of the table": (b"d/many", 24, "<I", 0xFFFFFF00, names_of),
    "an attribute set that does not exist": (b"d/file", 52, "<I", 0x7FFFFFFF, SquashImage.xattrs),
    "an exabyte": (b"d/file", 24, "<Q", (1 << 63) - 1, everything),
    "more than an exabyte": (b"d/file", 24, "<Q", (1 << 64) - 1, everything),
    "a block of 16 MiB": (b"d/file", 56, "<I", 0xFFFFFF, everything),
    "a block of 4 GiB": (b"d/file", 56, "<I", 0xFFFFFFFF, everything),
    "blocks outside of the file": (b"d/file", 16, "<Q", 1 << 62, everything),
}


@pytest.mark.parametrize("lie", INODE_LIES)
def test_what_an_inode_says_is_checked(images: list[bytes], lie: str) -> None:
    path, offset, form, value, use = INODE_LIES[lie]
    data = bytearray(images[0])
    struct.pack_into(form, data, place_of(images[0], path) + offset, value)
    assert data != images[0]
    with bounded(), image_of(bytes(data)) as image:
        with pytest.raises(DamagedError):
            use(image, found(image, path))
        # the others are as they were
        assert path == b"link" or image.readlink(found(image, b"link")) == b"d/file"
        assert path in {b"d", b"d/tail"} or image.read(found(image, b"d/tail"), 0, 9) == b"tail"
    assert read_everything(bytes(data)) >= 3


@pytest.mark.parametrize(("field", "names"), [("inodes", 306), ("fragments", 306), ("xattrs", 306), ("ids", 0)])
def test_giant_counts_cost_nothing(images: list[bytes], field: str, names: int) -> None:
    """The lists of tables that large would have gigabytes. Without its owners no inode can be read."""
    data = bytearray(images[0])
    if field == "xattrs":
        struct.pack_into("<I", data, SUPERBLOCK.unpack_from(data)[14] + 8, 0xFFFFFFFF)
    else:
        data[:] = changed(images[0], **{field: 0xFFFF if field == "ids" else 0xFFFFFFFF})
    tracemalloc.start()
    try:
        # the first is the root, of which there is nothing but the reference
        assert read_everything(bytes(data)) >= names
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


BOMBS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda data: zlib.compress(data, 9),
    "xz": lambda data: lzma.compress(
        data, check=lzma.CHECK_CRC32, filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 8192}]
    ),
    "zstd": lambda data: zstandard.ZstdCompressor(level=3).compress(data),
    "zstd without its size": lambda data: zstandard.ZstdCompressor(level=3, write_content_size=False).compress(data),
    "lz4": lambda data: lz4.block.compress(data, store_size=False),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_block_that_unpacks_to_megabytes_is_damage(tmp_path: Path, bomb: str) -> None:
    (tmp_path / "t").mkdir()
    (tmp_path / "t/file").write_bytes(noise(200_000))
    (tmp_path / "t/other").write_bytes(b"other")
    options = ("-b", "128K", "-nopad", "-noI", "-noId", "-no-fragments", "-comp", bomb.split(maxsplit=1)[0])
    data = bytearray(Path(mksquash(tmp_path / "t", tmp_path / "i", *options)).read_bytes())
    packed = BOMBS[bomb](bytes(24 << 20))
    assert len(packed) <= 128 << 10
    with image_of(bytes(data)) as image:
        start = found(image, b"file").start
    at = place_of(bytes(data), b"file")
    assert struct.unpack_from("<I", data, at + 16) == (start,)
    struct.pack_into("<I", data, at + 16, len(data))
    struct.pack_into("<I", data, at + 32, len(packed))
    data[40:48] = (len(data) + len(packed)).to_bytes(8, "little")
    with bounded(), image_of(bytes(data) + packed) as image:
        tracemalloc.start()
        try:
            with pytest.raises(DamagedError, match="cannot be decoded"):
                image.read(found(image, b"file"), 0, 200_000)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 4 << 20
        assert image.read(found(image, b"other"), 0, 10) == b"other"


def found(image: SquashImage, path: bytes) -> Inode:
    inode = image.find(path)
    assert inode is not None
    return inode


def place_of(data: bytes, path: bytes) -> int:
    """Where an inode lies in the plain seed; it must not cross the border of a metadata block."""
    with image_of(data) as image:
        ref = found(image, path).ref
        assert ref & 0xFFFF < 8192 - 64
        return image.superblock.inode_table + (ref >> 16) + 2 + (ref & 0xFFFF)


def test_short_reads_are_completed(images: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """pread(2) may return less than there is: when a signal comes, and on some network file systems."""
    pread, calls = os.pread, []

    def short(fd: int, size: int, offset: int) -> bytes:
        calls.append(size)
        return pread(fd, min(size, 100), offset)

    monkeypatch.setattr(os, "pread", short)
    assert [read_everything(data) for data in images] == [306] * len(images)
    assert len(calls) > 500


def test_a_closed_or_unreadable_file_is_an_os_error(images: list[bytes], tmp_path: Path) -> None:
    path = tmp_path / "i"
    path.write_bytes(images[0])
    image = SquashImage.open(str(path))
    os.truncate(path, 200)
    with pytest.raises(DamagedError, match="damaged"):
        image.inode(image.root_ref)
    image.close()
    image.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        image.inode(image.root_ref)
    with pytest.raises(FileNotFoundError):
        SquashImage.open(str(tmp_path / "none"))
    with pytest.raises(DamagedError):
        SquashImage.open("/dev/null")


def test_a_failed_open_closes_the_descriptor(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(io.BytesIO(bytes(200)).read())
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        with pytest.raises(DamagedError):
            SquashImage.open(str(tmp_path / "f"))
    assert len(os.listdir("/proc/self/fd")) == before
