"""Whatever the bytes are: DamagedError or OSError, soon, and never another exception."""

import io
import os
import random
import stat
import struct
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from squash_images import mksquash, noise

from squashmount.errors import DamagedError, ToolError
from squashmount.server.listing import Listings
from squashmount.server.tree import Tree
from squashmount.squashfs.image import SquashImage
from squashmount.squashfs.inodes import Inode

SUPERBLOCK = struct.Struct("<4s4I6H8Q")

# scripts/fuzz sets it: a long run with new damage every time instead of the short one that is always the same
LONG = int(os.environ.get("SQUASHMOUNT_FUZZ", "0"))
EXAMPLES = LONG or 1000


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """Small images of every kind of table, stored plain (so that damage reaches the parsers) and compressed."""
    top = tmp_path_factory.mktemp("damage")
    tree = top / "tree"
    (tree / "d/many").mkdir(parents=True)
    for number in range(300):
        (tree / f"d/many/{'n' * 40}{number}").write_bytes(b"%d" % number)
    (tree / "d/file").write_bytes(noise(20_000))
    (tree / "d/tail").write_bytes(b"tail")
    (tree / "link").symlink_to("d/file")
    os.setxattr(tree / "d/file", "user.a", b"value")
    os.setxattr(tree / "d/tail", "user.long", b"v" * 500)
    plain = ["-noI", "-noD", "-noF", "-noX", "-noId"]
    options = [["-comp", "gzip", *plain], ["-comp", "gzip"], ["-comp", "zstd"], ["-comp", "lz4"], ["-comp", "xz"]]
    return [Path(mksquash(tree, top / str(n), "-b", "4K", "-nopad", *o)).read_bytes() for n, o in enumerate(options)]


def image_of(data: bytes) -> SquashImage:
    file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - its descriptor is handed over
    with file:
        file.write(data)
        fd = os.dup(file.fileno())
    return SquashImage(fd, name="damaged.squashfs", cache_bytes=1 << 20)


def read_everything(data: bytes, *, names: int = 2000) -> int:
    """Do all there is to do with an image, as far as damage lets us; return how much could be read."""
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
    listings, cookie = Listings(Tree(image), complaints.append), 0
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
    started = time.monotonic()
    read_everything(bytes(damaged))
    assert time.monotonic() - started < 10


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


def test_every_truncation_is_noticed_at_open(images: list[bytes]) -> None:
    for data in images:
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
