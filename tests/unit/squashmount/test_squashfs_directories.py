"""Directories of every size: listing, resuming, look-up."""

import os
import time
from pathlib import Path

import pytest
from squash_images import mksquash

from squashmount.squashfs.image import SquashImage
from squashmount.squashfs.metadata import Metadata

COUNT = 100_000


@pytest.fixture(scope="module")
def huge(tmp_path_factory: pytest.TempPathFactory) -> str:
    top = tmp_path_factory.mktemp("huge")
    (top / "tree/many").mkdir(parents=True)
    folder = os.open(top / "tree/many", os.O_RDONLY)
    # Links are faster than files; ext4 allows 65,000 to one inode.
    first = ""
    for number in range(COUNT):
        if number % 60_000 == 0:
            first = f"name-{number:06}"
            os.close(os.open(first, os.O_CREAT | os.O_WRONLY, dir_fd=folder))
        else:
            os.link(first, f"name-{number:06}", src_dir_fd=folder, dst_dir_fd=folder)
    os.close(folder)
    return mksquash(top / "tree", top / "image", "-comp", "zstd")


def test_a_listing_is_complete_and_in_order(huge: str) -> None:
    with SquashImage.open(huge) as image:
        many = image.find(b"many")
        assert many is not None
        assert many.indexes > 100
        assert [entry.name for entry in image.entries(many)] == [b"name-%06d" % n for n in range(COUNT)]


def test_a_listing_resumes_anywhere(huge: str) -> None:
    with SquashImage.open(huge) as image:
        many = image.find(b"many")
        assert many is not None
        cookie, names = 0, []
        while True:
            part = [found for _, found in zip(range(997), image.entries_from(many, cookie), strict=False)]
            if not part:
                break
            names += [entry.name for _, entry in part]
            cookie = part[-1][0]
        assert names == [b"name-%06d" % n for n in range(COUNT)]
        assert not list(image.entries_from(many, 2**62))


def test_resuming_is_not_quadratic(huge: str) -> None:
    """24 entries a request is what a 4 KiB READDIRPLUS holds: 4,167 requests."""
    with SquashImage.open(huge) as image:
        many = image.find(b"many")
        assert many is not None
        started = time.monotonic()
        whole = sum(1 for _ in image.entries(many))
        once = time.monotonic() - started
        started = time.monotonic()
        cookie = seen = 0
        while seen < whole:
            part = [after for _, (after, _) in zip(range(24), image.entries_from(many, cookie), strict=False)]
            seen += len(part)
            cookie = part[-1]
        assert time.monotonic() - started < 10 * once + 1


def test_a_lookup_reads_a_few_blocks(huge: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loads = []
    original = Metadata._load

    def counting(self: Metadata, position: int, end: int) -> tuple[bytes, int]:
        loads.append(position)
        return original(self, position, end)

    monkeypatch.setattr(Metadata, "_load", counting)
    with SquashImage.open(huge) as image:
        many = image.find(b"many")
        assert many is not None
        loads.clear()
        found = image.lookup(many, b"name-077777")
        assert found is not None
        assert found.name == b"name-077777"
        assert len(loads) <= 5  # two of index, two of listing
        assert image.lookup(many, b"name-0777777") is None
        assert image.lookup(many, b"name-07777") is None
        assert image.lookup(many, b"") is None
        assert image.lookup(many, b"x" * 300) is None
        assert image.lookup(many, b"aaa") is None
        assert image.lookup(many, b"zzz") is None
        assert len(loads) <= 9


def test_every_name_is_found(huge: str) -> None:
    with SquashImage.open(huge) as image:
        many = image.find(b"many")
        assert many is not None
        for number in range(0, COUNT, 7):
            entry = image.lookup(many, b"name-%06d" % number)
            assert entry is not None
            assert entry.name == b"name-%06d" % number
        for entry in list(image.entries(many))[::501]:
            assert image.lookup(many, entry.name) == entry


def test_names_that_look_like_entries(tmp_path: Path) -> None:
    """A name that contains the bytes of another entry's length and name must not be mistaken for it."""
    (tmp_path / "t").mkdir()
    inner = b"\x03\x01abcd"
    names = [b"abcd", b"xx" + inner, inner + b"yy", b"q" * 255, b"q", b"qq"]
    for name in names:
        (tmp_path / "t" / os.fsdecode(name)).write_bytes(name)
    with SquashImage.open(mksquash(tmp_path / "t", tmp_path / "i")) as image:
        root = image.inode(image.root_ref)
        assert sorted(entry.name for entry in image.entries(root)) == sorted(names)
        for name in names:
            entry = image.lookup(root, name)
            assert entry is not None
            assert bytes(image.read(image.inode(entry.ref), 0, 300)) == name
        assert image.lookup(root, b"bcd") is None


def test_an_empty_root(tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    with SquashImage.open(mksquash(tmp_path / "t", tmp_path / "i")) as image:
        root = image.inode(image.root_ref)
        assert not list(image.entries(root))
        assert image.lookup(root, b"x") is None


def test_memory_stays_bounded(huge: str) -> None:
    with SquashImage.open(huge) as image:
        many = image.find(b"many")
        assert many is not None
        for entry in image.entries(many):
            image.inode(entry.ref)
        assert len(image._inodes._parsed) <= 2 * 4096
        segments = image._directories._segments
        kept = [segment for segment, _ in [*segments._young.values(), *segments._old.values()]]
        assert sum(len(segment.data) for segment in kept) < 8 << 20
