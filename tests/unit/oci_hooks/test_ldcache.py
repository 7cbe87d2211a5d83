"""The loader's cache: real ones written by ldconfig in every layout, damaged ones, and huge ones."""

import os
import random
import struct
import subprocess
from pathlib import Path

import pytest
from elf_files import library
from hypothesis import given
from hypothesis import strategies as st
from squashmount.oci_hooks.ldcache import CacheError, parse_cache, read_cache
from squashmount.oci_hooks.tree import DirectoryTree

EXPECTED = {"libone.so.1": ["/opt/own/libone.so.1"], "libtwo.so.2": ["/opt/own/libtwo.so.2"]}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("image")
    library(top / "opt/own/libone.so.1")
    library(top / "opt/own/libtwo.so.2")
    (top / "etc").mkdir()
    (top / "etc/ld.so.conf").write_text("/opt/own\n")
    return top


def cache(tree: Path, layout: str) -> Path:
    subprocess.run(["/sbin/ldconfig", "-r", str(tree), "-X", "-c", layout], check=True, timeout=60)
    return tree / "etc/ld.so.cache"


@pytest.mark.parametrize("layout", ["new", "compat", "old"])
def test_every_layout(tree: Path, layout: str) -> None:
    cache(tree, layout)
    with DirectoryTree(str(tree)) as image:
        assert read_cache(image) == EXPECTED


def test_the_machines_own_agrees_with_ldconfig() -> None:
    printed = subprocess.run(["/sbin/ldconfig", "-p"], capture_output=True, text=True, check=True).stdout
    wanted = {line.rsplit(" => ", 1)[1] for line in printed.splitlines() if " => " in line}
    assert wanted
    with DirectoryTree("/") as host:
        assert {path for paths in read_cache(host).values() for path in paths} == wanted


def test_no_cache(tmp_path: Path) -> None:
    with DirectoryTree(str(tmp_path)) as image:
        assert read_cache(image) == {}


def test_a_cache_of_the_other_byte_order() -> None:
    strings = b"libone.so.1\0/opt/own/libone.so.1\0"
    start = 48 + 24
    head = b"glibc-ld.so.cache1.1" + struct.pack(">IIB3xI12x", 1, len(strings), 0, 0)
    data = head + struct.pack(">iIIIQ", 0x503, start, start + 12, 0, 0) + strings
    assert parse_cache(data) == {"libone.so.1": ["/opt/own/libone.so.1"]}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"ld.so-1.7.0",
        b"glibc-ld.so.cache1.1",
        b"glibc-ld.so.cache1.1" + b"\xff" * 28,
        b"ld.so-1.7.0\0" + struct.pack("<I", 1 << 30),
        b"glibc-ld.so.cache1.1" + struct.pack("<II20x", 1, 4) + struct.pack("<iIIIQ", 3, 1 << 31, 0, 0, 0) + b"abc\0",
        b"glibc-ld.so.cache1.1" + struct.pack("<II20x", 1, 4) + struct.pack("<iIIIQ", 3, 72, 72, 0, 0) + b"no end",
    ],
)
def test_damaged(data: bytes) -> None:
    with pytest.raises(CacheError, match="is damaged"):
        parse_cache(data)


def test_a_huge_file_is_not_read(tree: Path) -> None:
    path = cache(tree, "new")
    os.truncate(path, 1 << 40)
    with DirectoryTree(str(tree)) as image, pytest.raises(CacheError, match="1099511627776 bytes"):
        read_cache(image)


def test_a_fifo_or_directory_in_its_place(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    os.mkfifo(tmp_path / "etc/ld.so.cache")
    with DirectoryTree(str(tmp_path)) as image, pytest.raises(CacheError, match="is not a file"):
        read_cache(image)


@pytest.fixture(scope="module")
def compat(tree: Path) -> bytes:
    return cache(tree, "compat").read_bytes()


@given(seed=st.integers(0, 2**32), flips=st.integers(1, 20))
def test_damage_is_an_error_or_another_cache_but_never_a_crash(compat: bytes, seed: int, flips: int) -> None:
    chance = random.Random(seed)
    data = bytearray(compat)
    for _ in range(flips):
        data[chance.randrange(11, len(data))] = chance.randrange(256)
    try:
        found = parse_cache(bytes(data))
    except CacheError:
        return
    assert all(path.startswith("/") for paths in found.values() for path in paths)
