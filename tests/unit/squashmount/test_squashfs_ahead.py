"""Decoding ahead: small files in sequence are decoded before they are asked for, with few reads, and hide no damage."""

import os
import threading
import time
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
    (tree / "big").write_bytes(big())
    for number in range(SMALL):
        (tree / f"small/{number:05d}").write_bytes(small(number))
    return Path(mksquash(tree, top / "image", "-comp", "zstd"))


def small(number: int) -> bytes:
    # about half can be compressed: a fragment stored as it is would not be decoded
    return noise(10_000 + number) + bytes(10_000)


def big() -> bytes:
    return b"".join(noise(BLOCK)[number : BLOCK // 2] + bytes(BLOCK // 2 + number) for number in range(BLOCKS))


def find(image: SquashImage, path: bytes) -> Inode:
    inode = image.find(path)
    assert inode is not None
    return inode


def read_small(image: SquashImage, numbers: range) -> None:
    for number in numbers:
        assert image.read(find(image, b"small/%05d" % number), 0, BLOCK) == small(number)


def settle(image: SquashImage) -> None:
    wait_for(lambda: not image._contents._ahead._queued, "what was asked for is decoded", seconds=20)


def test_the_next_fragments_are_decoded_before_they_are_asked_for(squash: Path) -> None:
    with SquashImage.open(str(squash)) as image:
        read_small(image, range(40))  # about six fragments
        settle(image)
        misses = image.cache.misses
        read_small(image, range(40, 46))
        assert image.cache.misses == misses


def test_every_fragment_is_decoded_once(squash: Path) -> None:
    with SquashImage.open(str(squash)) as image:
        read_small(image, range(SMALL))
        assert image.cache.ahead > 0
        assert image.cache.misses + image.cache.ahead == image.superblock.fragment_count


def test_a_large_file_is_the_kernels_to_read_ahead(squash: Path) -> None:
    with SquashImage.open(str(squash)) as image:
        assert image.read(find(image, b"big"), 0, BLOCKS * BLOCK) == big()
        assert (image.cache.misses, image.cache.ahead) == (BLOCKS, 0)


def test_scattered_reads_decode_only_what_is_asked_for(squash: Path) -> None:
    with SquashImage.open(str(squash)) as image:
        for number in range(0, SMALL, 20):
            read_small(image, range(number, number + 1))
        assert image.cache.ahead == 0


def test_neighbours_are_read_by_one_request(squash: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requests: list[tuple[str, int]] = []
    pread = os.pread

    def counted(fd: int, size: int, offset: int) -> bytes:
        requests.append((threading.current_thread().name, size))
        return pread(fd, size, offset)

    with SquashImage.open(str(squash)) as image:
        monkeypatch.setattr(os, "pread", counted)
        for number in range(60):
            read_small(image, range(number, number + 1))
            settle(image)
        ahead = [size for name, size in requests if name != threading.current_thread().name]
        assert 0 < len(ahead) < image.cache.ahead


def test_damage_ahead_is_found_by_who_reads_it(squash: Path, tmp_path: Path) -> None:
    with SquashImage.open(str(squash)) as image:
        place, word = image._contents._fragment(5)
        assert not word >> 24, "stored as it is: there is nothing to decode"
    bad = tmp_path / "bad"
    data = bytearray(squash.read_bytes())
    data[place : place + 200] = bytes(200)
    bad.write_bytes(data)
    with SquashImage.open(str(bad)) as image:
        broken = []
        for number in range(SMALL):
            try:
                read_small(image, range(number, number + 1))
            except DamagedError:
                broken.append(find(image, b"small/%05d" % number).fragment)
        assert broken
        assert set(broken) == {5}


def threads() -> int:
    return len(os.listdir("/proc/self/task"))


def test_closing_ends_the_thread(squash: Path) -> None:
    before = threads()
    time.sleep(0.5)  # other tests' threads may just be leaving the kernel
    before = min(before, threads())
    for _ in range(20):
        with SquashImage.open(str(squash)) as image:
            read_small(image, range(20))
            assert threads() == before + 1
        wait_for(lambda: threads() == before, "what is left of the thread in the kernel is gone", seconds=5)


def test_a_damaged_record_of_a_neighbour_is_nobodys_error(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    for number in range(1100):
        (tree / f"{number:05d}").write_bytes(noise(3000 + number))  # one a fragment: three blocks of records
    path = Path(mksquash(tree, tmp_path / "image", "-comp", "zstd", "-b", "4K"))
    with SquashImage.open(str(path)) as image:
        files = {number: find(image, b"%05d" % number) for number in range(1000)}
        pointers = image._contents._fragments._read_pointers()
    data = bytearray(path.read_bytes())
    data[pointers[1] : pointers[1] + 2] = b"\xff\xff"
    path.write_bytes(data)
    per_block = 8192 // 16
    with SquashImage.open(str(path)) as image:
        for number, inode in files.items():
            if inode.fragment in {per_block - 3, per_block - 2, per_block - 1}:
                assert image.read(inode, 0, BLOCK) == noise(3000 + number)
            elif inode.fragment == per_block:
                with pytest.raises(DamagedError):
                    image.read(inode, 0, BLOCK)


def test_no_thread_to_be_had_is_no_error(squash: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_self: object) -> None:
        raise RuntimeError("can't start new thread")

    with SquashImage.open(str(squash)) as image:
        monkeypatch.setattr("squashmount.squashfs.ahead.Thread.start", refuse)
        read_small(image, range(60))
        assert image.cache.ahead == 0
        monkeypatch.undo()
        read_small(image, range(60, 120))
        assert image._contents._ahead._thread is not None
