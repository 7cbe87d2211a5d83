"""The listing index: the same bytes as without it, whatever is asked; ignored when it is damaged or of another file."""

import os
import random
import resource
import shutil
import stat
import struct
from array import array
from collections.abc import Iterator
from pathlib import Path
from zlib import crc32

import pytest
from squash_images import make_tree, many_files, mksquash

from squashmount.errors import DamagedError
from squashmount.idmap import IdRange
from squashmount.server import index, index_writer
from squashmount.server.index import HEADER, ListingIndex
from squashmount.server.index_writer import append_index
from squashmount.server.listing import Encoded, Listings
from squashmount.server.tree import ROOT, IdShift, Tree
from squashmount.squashfs.compress import encoder
from squashmount.squashfs.image import SquashImage

_RANGES = (IdRange(0, 1000, 1), IdRange(1, 100_000, 65_535))
SHIFTS = [IdShift(), IdShift(_RANGES, _RANGES), IdShift(single_uid=5, single_gid=6)]
NAMES = 3000


@pytest.fixture(scope="module", params=["zstd", "gzip", "xz"])
def squash(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Small directories, one of several segments, an empty one, owners that are not root."""
    top = tmp_path_factory.mktemp("index")
    make_tree(top / "tree")
    for number in range(NAMES):
        (top / f"tree/many/{number}").parent.mkdir(exist_ok=True)
        (top / f"tree/many/{number}").symlink_to("x")
    (top / "tree/none").mkdir()
    (top / ("tree/" + "l" * 255)).touch()
    return mksquash(top / "tree", top / "image", "-comp", request.param, "-p", "dev c 600 1000 5000 5 1")


@pytest.fixture
def indexed(squash: str, tmp_path: Path) -> str:
    path = str(tmp_path / "image")
    shutil.copy(squash, path)
    append_index(path)
    return path


def folders(image: SquashImage) -> Iterator[int]:
    todo = [image.root_ref]
    while todo:
        ref = todo.pop()
        yield ROOT if ref == image.root_ref else ref + 2
        todo += [entry.ref for entry in image.entries(image.inode(ref)) if entry.kind == stat.S_IFDIR]


def listed(listings: Listings, node: int, room: int = 4096) -> bytes:
    """List as the kernel does: again and again from the last cookie."""
    whole, cookie = b"", 0
    while part := b"".join(listings.plus(node, cookie, room)):
        assert len(part) <= room
        whole += part
        at = 0
        while at < len(part):
            _, cookie, length, _ = struct.unpack_from("=QQII", part, at + 128)
            at += 152 + length + -length % 8
    return whole


def everything(
    path: str, complaints: list[str], *, shift: IdShift = SHIFTS[0], indexed: bool = True
) -> dict[int, bytes]:
    with SquashImage.open(path) as image:
        listings = Listings(Tree(image, shift), complaints.append, indexed=indexed, patience=0)
        return {node: listed(listings, node) for node in folders(image)}


@pytest.mark.parametrize("shift", SHIFTS, ids=["identity", "keep-id", "single id"])
def test_listings_are_the_same_to_the_byte(indexed: str, shift: IdShift) -> None:
    complaints: list[str] = []
    found = everything(indexed, complaints, shift=shift)
    assert found == everything(indexed, complaints, shift=shift, indexed=False)
    assert sum(map(len, found.values())) > NAMES * 160
    assert not complaints


def test_the_tables_of_the_image_are_not_read(indexed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with SquashImage.open(indexed) as image:
        tree = Tree(image)
        nodes = list(folders(image))
        monkeypatch.setattr(tree, "segments", None)
        for room in (4096, 128 << 10):
            listings = Listings(tree, pytest.fail, patience=0)
            assert all(len(listed(listings, node, room)) >= 2 * 160 for node in nodes)


def test_the_index_is_read_when_many_names_have_been_listed(indexed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[int] = []
    original = ListingIndex.open
    monkeypatch.setattr(ListingIndex, "open", lambda image: opened.append(1) or original(image))
    with SquashImage.open(indexed) as image:
        nodes = list(folders(image))
        for patience, times in ((NAMES * 2, 0), (NAMES // 2, 1)):
            listings = Listings(Tree(image), pytest.fail, patience=patience)
            without = Listings(Tree(image), pytest.fail, indexed=False)
            assert [listed(listings, node) for node in nodes] == [listed(without, node) for node in nodes]
            assert len(opened) == times


def test_a_listing_goes_on_from_any_cookie(indexed: str) -> None:
    with SquashImage.open(indexed) as image:
        many = image.find(b"many")
        assert many is not None
        with_index = Listings(Tree(image), pytest.fail, patience=0)
        without = Listings(Tree(image), pytest.fail, indexed=False)
        chance = random.Random(1)
        for cookie in [*range(5), *(chance.randrange(many.size + 10) for _ in range(200)), 2**62]:
            parts = [b"".join(one.plus(many.ref + 2, cookie, 9000)) for one in (with_index, without)]
            assert parts[0] == parts[1]


def test_a_file_is_no_directory_for_it_either(indexed: str) -> None:
    with SquashImage.open(indexed) as image:
        file = image.find(b"etc/text")
        assert file is not None
        with pytest.raises(NotADirectoryError):
            Listings(Tree(image), pytest.fail, patience=0).plus(file.ref + 2, 0, 4096)


def test_it_can_be_written_again(indexed: str) -> None:
    before = Path(indexed).read_bytes()
    append_index(indexed)
    assert Path(indexed).read_bytes() == before


def test_the_index_of_another_file_is_ignored(squash: str, indexed: str, tmp_path: Path) -> None:
    other = many_files(tmp_path / "other", 100)
    with SquashImage.open(indexed) as image, SquashImage.open(other) as another:
        behind = Path(indexed).read_bytes()[index.index_position(image) :]
        os.truncate(other, index.index_position(another))
    with open(other, "ab") as file:
        file.write(behind)
    with SquashImage.open(other) as image:
        assert ListingIndex.open(image) is None
    assert everything(other, []) == everything(other, [], indexed=False)
    with SquashImage.open(squash) as image:
        assert ListingIndex.open(image) is None


def test_damage_anywhere_in_it_changes_no_listing(indexed: str) -> None:
    right = everything(indexed, [])
    original = Path(indexed).read_bytes()
    with SquashImage.open(indexed) as image:
        begin = index.index_position(image)
    chance = random.Random(2)
    complained = 0
    for number in range(60):
        damaged = bytearray(original)
        for _ in range(chance.randint(1, 4)):
            damaged[chance.randrange(begin, begin + 400 if number % 2 else len(damaged))] ^= 1 << chance.randrange(8)
        Path(indexed).write_bytes(damaged[: chance.choice([len(damaged), chance.randrange(begin, len(damaged))])])
        complaints: list[str] = []
        assert everything(indexed, complaints) == right
        assert len(complaints) <= 1
        complained += len(complaints)
    assert complained > 20


def lie(path: str, change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write an index whose checksums are right and whose content is not."""
    add = index_writer._Writer.add

    def lying(writer: index_writer._Writer, node: int, first: int, encoded: Encoded) -> None:
        data, starts = bytearray(encoded.data), list(encoded.starts)
        if change == "cookies" and len(starts) > 5:
            for start in starts[:-1]:
                struct.pack_into("=Q", data, start + 136, 1)
        elif change == "starts":
            starts[-2] = starts[-1] + 10_000
        elif change == "end":
            starts[-1] += 1 << 20
        elif change == "short":
            data, starts = data[:20], [0, 20]
        elif change == "none":
            starts = [0]
        add(writer, node, first, Encoded(memoryview(data), starts, encoded.cookies))

    monkeypatch.setattr(index_writer._Writer, "add", lying)
    append_index(path)


@pytest.mark.parametrize("change", ["cookies", "starts", "end", "short", "none"])
def test_an_index_that_lies_is_ignored(indexed: str, change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = everything(indexed, [])
    lie(indexed, change, monkeypatch)
    complaints: list[str] = []
    assert everything(indexed, complaints) == right
    assert len(complaints) == 1


def first_record(image: SquashImage) -> Encoded:
    found = ListingIndex.open(image)
    assert found is not None
    return found.read(found.records(ROOT, 0)[0])


@pytest.mark.parametrize(
    ("records", "chunks", "extra", "says"),
    [
        (2**24, 2**24, 0, "cannot be decoded|wrong checksum"),
        (1, 1, 8, "header"),
        (1, 0, 0, "no chunk"),
    ],
)
def test_counts_that_lie(indexed: str, records: int, chunks: int, extra: int, says: str) -> None:
    with SquashImage.open(indexed) as image:
        begin = index.index_position(image)
    table = array("Q", [ROOT, 1]).tobytes() + array("I", [0, 0]).tobytes()
    stored = encoder("gzip")(table)
    superblock = Path(indexed).read_bytes()[:96]
    claimed = 24 * records + 12 * chunks + extra
    os.truncate(indexed, begin)
    with open(indexed, "ab") as file:
        file.write(HEADER.pack(index.MAGIC, superblock, 1, records, chunks, len(stored), claimed, crc32(table)))
        file.write(stored + bytes(8192))
    with SquashImage.open(indexed) as image, pytest.raises(DamagedError) as caught:
        first_record(image)
    assert any(word in caught.value.details for word in says.split("|"))


@pytest.mark.parametrize("number", [3, 77])
def test_an_index_of_a_compressor_that_may_be_missing_is_ignored(indexed: str, number: int) -> None:
    right = everything(indexed, [])
    with SquashImage.open(indexed) as image:
        at = index.index_position(image) + 8 + 96
    with open(indexed, "r+b") as file:
        file.seek(at)
        file.write(struct.pack("<I", number))
    complaints: list[str] = []
    assert everything(indexed, complaints) == right
    assert complaints == ["the listing index is ignored: the header of its listing index is wrong"]


def test_an_image_that_cannot_be_listed_gets_none(squash: str, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    data = bytearray(Path(squash).read_bytes())
    with SquashImage.open(squash) as image:
        at = image.superblock.directory_table
    data[at + 2 : at + 40] = bytes(38)
    broken.write_bytes(data)
    with pytest.raises(DamagedError):
        append_index(str(broken))
    assert broken.read_bytes() == data


def test_an_index_that_cannot_be_written_leaves_a_squash_file(indexed: str) -> None:
    with SquashImage.open(indexed) as image:
        begin = index.index_position(image)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (begin + 100, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            append_index(indexed)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert everything(indexed, []) == everything(indexed, [], indexed=False)
