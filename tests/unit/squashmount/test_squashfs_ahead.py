"""Decoding ahead: what is used in sequence is decoded before it is asked for, with few reads, and hides no damage."""

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from lab import wait_for
from squash_images import mksquash, noise

from squashmount.errors import DamagedError
from squashmount.squashfs.image import SquashImage
from squashmount.squashfs.inodes import Inode

BLOCK = 131_072
BLOCKS = 40
SMALL = 400


@pytest.fixture(scope="module")
def squash(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("ahead")
    tree = top / "tree"
    (tree / "small").mkdir(parents=True)
    (tree / "big").write_bytes(content())
    for number in range(SMALL):
        (tree / f"small/{number:05d}").write_bytes(noise(20_000 + number))
    return Path(mksquash(tree, top / "image", "-comp", "zstd"))


def content() -> bytes:
    # half of each block can be compressed: it is decoded, and the blocks do not all look the same
    return b"".join(noise(BLOCK)[number : BLOCK // 2] + bytes(BLOCK // 2 + number) for number in range(BLOCKS))


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.001)


def find(image: SquashImage, path: bytes) -> Inode:
    inode = image.find(path)
    assert inode is not None
    return inode


def test_a_sequence_is_decoded_before_it_is_asked_for(squash: Path) -> None:
    with SquashImage.open(str(squash)) as image:
        big, expected = find(image, b"big"), content()
        for number in range(6):
            image.read(big, number * BLOCK, BLOCK)
        until(lambda: image.cache.ahead + image.cache.misses >= 8)
        misses = image.cache.misses
        assert image.read(big, 6 * BLOCK, 2 * BLOCK) == expected[6 * BLOCK : 8 * BLOCK]
        assert image.cache.misses == misses
        assert image.read(big, 0, len(expected)) == expected
        assert image.cache.misses + image.cache.ahead == BLOCKS


def test_small_files_in_the_order_of_their_directory(squash: Path) -> None:
    with SquashImage.open(str(squash)) as image:
        for number in range(SMALL):
            assert image.read(find(image, b"small/%05d" % number), 0, BLOCK) == noise(20_000 + number)
        assert image.cache.ahead > 0
        fragments = image.superblock.fragment_count
        assert image.cache.misses + image.cache.ahead == fragments


def test_scattered_reads_decode_only_what_is_asked_for(squash: Path) -> None:
    with SquashImage.open(str(squash)) as image:
        big = find(image, b"big")
        for number in range(BLOCKS - 2, 0, -3):
            image.read(big, number * BLOCK, 4096)
        assert image.cache.ahead == 0
        assert image.cache.misses == len(range(BLOCKS - 2, 0, -3))


def test_neighbours_are_read_by_one_request(squash: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requests: list[tuple[str, int]] = []
    pread = os.pread

    def counted(fd: int, size: int, offset: int) -> bytes:
        requests.append((threading.current_thread().name, size))
        return pread(fd, size, offset)

    with SquashImage.open(str(squash)) as image:
        big = find(image, b"big")
        monkeypatch.setattr(os, "pread", counted)
        for number in range(8):
            image.read(big, number * BLOCK, BLOCK)
            until(lambda: not image._contents._ahead._queued)
        ahead = [size for name, size in requests if name != threading.current_thread().name]
        # one block is asked for when one was used, then two, …
        assert len(ahead) < image.cache.ahead / 2
        assert max(ahead) > 4 * BLOCK // 2


def test_damage_ahead_is_found_by_who_reads_it(squash: Path, tmp_path: Path) -> None:
    with SquashImage.open(str(squash)) as image:
        big = find(image, b"big")
        bad = tmp_path / "bad"
        data = bytearray(squash.read_bytes())
        place = big.start + 9 * BLOCK // 2  # in the eighth block or near it
        data[place : place + 4000] = bytes(4000)
        bad.write_bytes(data)
    with SquashImage.open(str(bad)) as image:
        big, good, broken = find(image, b"big"), 0, 0
        expected = content()
        for number in range(BLOCKS):
            try:
                good += image.read(big, number * BLOCK, BLOCK) == expected[number * BLOCK : (number + 1) * BLOCK]
            except DamagedError:
                broken += 1
        assert 1 <= broken <= 2
        assert good + broken >= BLOCKS - 1


def threads() -> int:
    return len(os.listdir("/proc/self/task"))


def test_closing_ends_the_thread(squash: Path) -> None:
    before = threads()
    for _ in range(20):
        with SquashImage.open(str(squash)) as image:
            image.read(find(image, b"big"), 0, 3 * BLOCK)
            assert threads() == before + 1
        wait_for(lambda: threads() == before, "what is left of the thread in the kernel is gone", seconds=5)
