"""Reads of the squash file: whole windows for metadata, and what happens when a window cannot be read whole."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from squash_images import describe_folder, describe_image, make_tree, mksquash, noise

from squashmount.errors import DamagedError
from squashmount.squashfs.image import SquashImage
from squashmount.squashfs.source import WINDOW, Source

SIZE = 3 * WINDOW + 1000


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Source]:
    path = tmp_path / "file"
    path.write_bytes(noise(SIZE))
    fd = os.open(path, os.O_RDONLY)
    yield Source(fd, "file")
    os.close(fd)


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    pread = os.pread

    def counted(fd: int, size: int, offset: int) -> bytes:
        found.append((offset, size))
        return pread(fd, size, offset)

    monkeypatch.setattr(os, "pread", counted)
    return found


def test_neighbours_cost_one_request(source: Source, requests: list[tuple[int, int]]) -> None:
    data = noise(SIZE)
    for offset in range(0, WINDOW - 100, 1000):
        assert source.read_near(offset, 100) == data[offset : offset + 100]
    assert requests == [(0, WINDOW)]


def test_a_piece_across_windows(source: Source, requests: list[tuple[int, int]]) -> None:
    data = noise(SIZE)
    assert source.read_near(WINDOW - 50, 100) == data[WINDOW - 50 : WINDOW + 50]
    assert source.read_near(SIZE - 10, 10) == data[-10:]
    assert requests == [(0, WINDOW), (WINDOW, WINDOW), (3 * WINDOW, WINDOW)]


@pytest.mark.parametrize(("offset", "size"), [(SIZE - 1, 2), (-1, 4), (SIZE, 1)])
def test_beyond_the_file(source: Source, offset: int, size: int) -> None:
    with pytest.raises(DamagedError, match="damaged"):
        source.read_near(offset, size)


def test_a_bad_neighbour_is_nobodys_error(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    pread = os.pread

    def failing(fd: int, size: int, offset: int) -> bytes:
        if offset <= 5000 < offset + size:
            raise OSError(errno.EIO, "bad sector")
        return pread(fd, size, offset)

    monkeypatch.setattr(os, "pread", failing)
    assert source.read_near(0, 5000) == noise(SIZE)[:5000]
    with pytest.raises(OSError, match="bad sector"):
        source.read_near(4000, 2000)


def test_a_short_read_is_completed(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, size, offset: pread(fd, min(size, 3000), offset))
    assert source.read_near(2000, 5000) == noise(SIZE)[2000:7000]


def test_few_windows_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(100 * WINDOW)
    fd = os.open(path, os.O_RDONLY)
    source = Source(fd, "large")
    for number in range(100):
        source.read_near(number * WINDOW, 10)
    os.close(fd)
    assert len(source._windows) <= 16


@pytest.mark.skipif(os.geteuid() != 0, reason="the tree has devices and owners: needs root")
def test_the_metadata_of_an_image_is_read_by_few_requests(tmp_path: Path, requests: list[tuple[int, int]]) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    make_tree(tree)
    path = mksquash(tree, tmp_path / "image", "-no-fragments")
    with SquashImage.open(path) as image:
        assert describe_image(image) == describe_folder(tree, xattrs=False)
        first = image.superblock.inode_table // WINDOW
    # whatever else is read is data: no metadata block is read alone
    windows = [offset for offset, size in requests if size == WINDOW and offset % WINDOW == 0]
    assert len(set(windows)) == len(windows) == os.stat(path).st_size // WINDOW - first + 1
    assert max(offset for offset, _ in requests if offset not in windows) < image.superblock.inode_table
