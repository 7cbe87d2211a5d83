"""What mksquashfs packed is what the reader finds: every compressor, block size and layout option."""

import hashlib
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from squash_images import add_xattrs, describe_folder, describe_image, make_tree, mksquash, noise, walk

from squashmount.errors import DamagedError, ToolError
from squashmount.squashfs import compress
from squashmount.squashfs.blocks import BlockCache
from squashmount.squashfs.image import SquashImage

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the tree has devices and owners: needs root")


Facts = dict[bytes, dict[str, Any]]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("tree")
    make_tree(top)
    add_xattrs(top)
    return top


@pytest.fixture(scope="module")
def facts(tree: Path) -> Facts:
    return describe_folder(tree)


def available(compressor: str) -> bool:
    listed = subprocess.run(["mksquashfs"], check=False, capture_output=True, text=True, timeout=10)
    return f"\t{compressor}" in listed.stdout + listed.stderr


@pytest.mark.parametrize("compressor", ["gzip", "lzma", "lzo", "lz4", "xz", "zstd"])
def test_every_compressor(tree: Path, facts: Facts, tmp_path: Path, compressor: str) -> None:
    if not available(compressor):
        pytest.skip(f"this mksquashfs cannot write {compressor}")
    if compressor == "lzo":
        pytest.importorskip("lzo")
    with SquashImage.open(mksquash(tree, tmp_path / "i", "-comp", compressor)) as image:
        assert image.superblock.compressor == compressor
        assert describe_image(image) == facts


@pytest.mark.parametrize(
    "options",
    [
        ["-b", "4K"],
        ["-b", "16K", "-no-fragments"],
        ["-b", "1M"],
        ["-b", "1M", "-always-use-fragments"],
        ["-no-exports"],
        ["-no-duplicates", "-no-hardlinks"],
        ["-noI", "-noD", "-noF", "-noX", "-noId"],
        ["-no-tailends"],
        ["-no-sparse"],
    ],
    ids="_".join,
)
def test_every_layout(tree: Path, facts: Facts, tmp_path: Path, options: list[str]) -> None:
    with SquashImage.open(mksquash(tree, tmp_path / "i", "-comp", "lz4", *options)) as image:
        found = describe_image(image)
    if "-no-hardlinks" in options:
        for facts_of_one in found.values():
            facts_of_one.pop("nlink", None)
            facts_of_one.pop("same as", None)
        facts = {p: {k: v for k, v in f.items() if k not in {"nlink", "same as"}} for p, f in facts.items()}
    assert found == facts


def test_without_xattrs_there_is_no_table(tree: Path, tmp_path: Path) -> None:
    with SquashImage.open(mksquash(tree, tmp_path / "i", "-no-xattrs")) as image:
        assert not image.has_xattrs
        assert all(image.xattrs(inode) == {} for _, inode in walk(image))


def test_devices_from_pseudo_files(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    pseudo = ["-p", "console c 600 0 5 5 1", "-p", "big b 640 7 8 4095 1048575", "-p", "d d 755 70000 70001"]
    with SquashImage.open(mksquash(tmp_path / "s", tmp_path / "i", *pseudo)) as image:
        console, big, folder = (image.find(name) for name in (b"console", b"big", b"/d/"))
        assert (console.uid, console.gid, console.rdev, console.mode) == (0, 5, os.makedev(5, 1), 0o600)
        assert big.rdev == os.makedev(4095, 1048575)
        assert (folder.uid, folder.gid) == (70000, 70001)
        assert image.find(b"d/nothing") is None
        assert image.find(b"console/x") is None
        assert image.find(b"/").ref == image.root_ref


def test_unsquashfs_agrees(tree: Path, tmp_path: Path) -> None:
    path = mksquash(tree, tmp_path / "i", "-b", "8K", "-comp", "zstd")
    subprocess.run(
        ["unsquashfs", "-q", "-n", "-d", tmp_path / "out", path], check=True, capture_output=True, timeout=60
    )
    with SquashImage.open(path) as image:
        assert describe_image(image) == describe_folder(tmp_path / "out")


@pytest.mark.filterwarnings("ignore")
def test_pysquashfsimage_agrees(tree: Path, tmp_path: Path) -> None:
    other = pytest.importorskip("PySquashfsImage")
    path = mksquash(tree, tmp_path / "i", "-comp", "xz", "-no-xattrs", "-wildcards", "-e", "deep/caf*")  # UTF-8 only
    with SquashImage.open(path) as image, other.SquashFsImage.from_file(path) as theirs:
        expected = {}
        for file in theirs:
            name = b"" if file.path == "/" else os.fsencode(file.path)
            content = hashlib.sha256(file.read_bytes()).digest() if file.is_file else None
            expected[name] = (file.filemode, file.uid, file.gid, file.inode.inode_number, content)

        ours = {
            path: (
                stat.filemode(inode.kind | inode.mode),
                inode.uid,
                inode.gid,
                inode.number,
                hashlib.sha256(image.read(inode, 0, inode.size)).digest() if inode.kind == stat.S_IFREG else None,
            )
            for path, inode in walk(image)
        }
    assert len(ours) == len(expected) > 25
    assert ours == expected


def test_reads_at_every_kind_of_edge(tree: Path, tmp_path: Path) -> None:
    block = 4096
    with SquashImage.open(mksquash(tree, tmp_path / "i", "-b", "4K", "-comp", "lz4")) as image:
        for name in ("etc/size-300001", "etc/holes", "etc/size-4097", "etc/size-4096"):
            inode = image.find(name.encode())
            whole = (tree / name).read_bytes()
            for offset in (0, 1, block - 1, block, block + 1, len(whole) - 2, len(whole) - 1, len(whole), 2**63 - 1):
                for size in (0, 1, block, 3 * block + 5, 1 << 20):
                    assert bytes(image.read(inode, offset, size)) == whole[offset : offset + size]


def test_wrong_kinds_are_refused(tree: Path, tmp_path: Path) -> None:
    with SquashImage.open(mksquash(tree, tmp_path / "i")) as image:
        folder, file, link = (image.find(name) for name in (b"etc", b"etc/text", b"deep/link"))
        with pytest.raises(NotADirectoryError):
            image.lookup(file, b"x")
        with pytest.raises(NotADirectoryError):
            image.entries(link)
        with pytest.raises(IsADirectoryError):
            image.read(folder, 0, 1)
        with pytest.raises(OSError, match="Invalid argument"):
            image.readlink(file)


def test_the_export_table_finds_every_inode(tree: Path, tmp_path: Path) -> None:
    with SquashImage.open(mksquash(tree, tmp_path / "i")) as image:
        for _, inode in walk(image):
            assert image.ref_of(inode.number) == inode.ref
    with SquashImage.open(mksquash(tree, tmp_path / "j", "-no-exports")) as image:
        assert image.ref_of(1) is None


def test_a_sparse_file_larger_than_4_gib(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    size = 5 * 2**30 + 12345
    with open(tmp_path / "s/big", "wb") as file:
        file.seek(4 * 2**30 + 777)
        file.write(noise(5000))
        file.seek(size - 7)
        file.write(b"the end")
    with SquashImage.open(mksquash(tmp_path / "s", tmp_path / "i", "-b", "1M", "-comp", "lz4")) as image:
        inode = image.find(b"big")
        assert inode.size == size
        assert bytes(image.read(inode, 4 * 2**30 + 770, 5014)) == bytes(7) + noise(5000) + bytes(7)
        assert bytes(image.read(inode, size - 7, 100)) == b"the end"
        assert bytes(image.read(inode, 3 * 2**30, 2**20)) == bytes(2**20)


def test_block_lists_in_several_chunks(tmp_path: Path) -> None:
    """More than 1024 blocks, read backwards and then with nothing cached."""
    (tmp_path / "s").mkdir()
    data = noise(13_000_000)
    (tmp_path / "s/f").write_bytes(data)
    path = mksquash(tmp_path / "s", tmp_path / "i", "-b", "4K", "-comp", "lz4")
    with SquashImage.open(path, cache_bytes=0) as image:
        inode = image.find(b"f")
        for offset in range(12_900_000, 0, -777_777):
            assert bytes(image.read(inode, offset, 9000)) == data[offset : offset + 9000]
    with SquashImage.open(path) as image:
        assert bytes(image.read(image.find(b"f"), 0, len(data))) == data


def test_many_threads_read_the_same_files(tree: Path, facts: Facts, tmp_path: Path) -> None:
    image = SquashImage.open(mksquash(tree, tmp_path / "i", "-b", "4K", "-comp", "zstd"), cache_bytes=100_000)
    wrong = []

    def check() -> None:
        if describe_image(image) != facts:
            wrong.append(1)

    threads = [threading.Thread(target=check) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    image.close()
    assert not wrong


def test_one_block_is_decoded_once() -> None:
    cache = BlockCache(1000)
    entered, go = threading.Event(), threading.Event()
    calls = []

    def decode() -> bytes:
        calls.append(1)
        entered.set()
        assert go.wait(10)
        return b"x" * 10

    found = []
    threads = [threading.Thread(target=lambda: found.append(cache.get((1, 2), decode))) for _ in range(4)]
    threads[0].start()
    assert entered.wait(10)
    for thread in threads[1:]:
        thread.start()
    go.set()
    for thread in threads:
        thread.join(10)
    assert found == [b"x" * 10] * 4
    assert len(calls) == 1
    assert (cache.misses, cache.hits) == (1, 3)


def test_a_failed_decode_is_reported_and_not_remembered() -> None:
    cache = BlockCache(1000)

    def fail() -> bytes:
        raise DamagedError("broken")

    with pytest.raises(DamagedError, match="broken"):
        cache.get((1, 1), fail)
    assert cache.get((1, 1), lambda: b"fine") == b"fine"


def test_the_cache_keeps_its_budget() -> None:
    cache = BlockCache(100)
    for key in range(50):
        cache.get((key, 0), lambda: bytes(30))
    assert sum(len(block) for block in cache._blocks.values()) <= 100
    assert (49, 0) in cache._blocks
    assert (0, 0) not in cache._blocks


def test_a_missing_decoder_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:

    monkeypatch.setitem(sys.modules, "lzo", None)
    with pytest.raises(ToolError) as caught:
        compress.decoder("lzo")
    assert caught.value.hint == "pip install 'squashmount[lzo]'"


@pytest.mark.parametrize("compressor", ["gzip", "xz", "lzma", "lz4", "zstd"])
def test_bombs_are_refused_without_unpacking_them(compressor: str) -> None:
    """64 MiB of zeros where 8 KiB are allowed: no more than the limit may be produced."""
    import lzma
    import tracemalloc
    import zlib

    import lz4.block
    import zstandard

    zeros = bytes(64 << 20)
    bomb = {
        "gzip": lambda: zlib.compress(zeros),
        "xz": lambda: lzma.compress(zeros),
        "lzma": lambda: lzma.compress(zeros, format=lzma.FORMAT_ALONE),
        "lz4": lambda: lz4.block.compress(zeros, store_size=False),
        "zstd": lambda: zstandard.ZstdCompressor().compress(zeros),
    }[compressor]()
    decode = compress.decoder(compressor)
    tracemalloc.start()
    try:
        with pytest.raises(compress.BadDataError):
            decode(bomb, 8192)
        assert tracemalloc.get_traced_memory()[1] < 20 << 20  # xz allocates the dictionary its header asks for
    finally:
        tracemalloc.stop()
