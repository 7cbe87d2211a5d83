"""Builds squash files with the real mksquashfs and compares what readers say about them."""

import hashlib
import os
import stat
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from typing import Any

from squashmount.squashfs.image import SquashImage
from squashmount.squashfs.inodes import Inode

MKSQUASHFS = "mksquashfs"


def mksquash(source: os.PathLike[str] | str, target: os.PathLike[str] | str, *options: str) -> str:
    """Run mksquashfs; return the path of the file."""
    argv = [MKSQUASHFS, str(source), str(target), "-noappend", "-no-progress", "-quiet", *options]
    subprocess.run(argv, check=True, capture_output=True, timeout=120)
    return str(target)


def make_tree(top: os.PathLike[str] | str) -> None:
    """One of everything a container image can hold, and the sizes around block boundaries."""
    base = os.fspath(top)
    for name in ("bin", "empty", "deep/a/b/c", "etc"):
        os.makedirs(os.path.join(base, name))
    for size in (0, 1, 4095, 4096, 4097, 131071, 131072, 131073, 300_001):
        _write(os.path.join(base, f"etc/size-{size}"), noise(size))
    _write(os.path.join(base, "etc/zeros"), bytes(500_000))
    _write(os.path.join(base, "etc/text"), b"hello squash\n" * 40_000)
    with open(os.path.join(base, "etc/holes"), "wb") as file:
        file.seek(1_000_000)
        file.write(b"middle")
        file.truncate(3_000_001)
    _write(os.path.join(base, "bin/su"), b"#!/bin/sh\n")
    os.chown(os.path.join(base, "bin/su"), 1000, 33)
    os.chmod(os.path.join(base, "bin/su"), 0o4755)
    os.chmod(os.path.join(base, "empty"), 0o1777)
    os.link(os.path.join(base, "bin/su"), os.path.join(base, "deep/a/hard"))
    os.symlink("../etc/text", os.path.join(base, "deep/link"))
    os.symlink("x" * 4000, os.path.join(base, "deep/long-link"))
    os.mkfifo(os.path.join(base, "deep/fifo"), 0o640)
    os.mknod(os.path.join(base, "deep/null"), stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(os.path.join(base, "deep/disk"), stat.S_IFBLK | 0o600, os.makedev(259, 70_000))
    _write(os.path.join(os.fsencode(base), b"deep/caf\xe9 \xff\n"), b"not utf-8")
    _write(os.path.join(base, "etc", "n" * 255), b"long name")
    os.utime(os.path.join(base, "etc/text"), (1, 4_000_000_000))


def add_xattrs(top: os.PathLike[str] | str) -> None:
    """user.* everywhere, a capability, and a value long enough to be stored out of line when it is shared."""
    base = os.fspath(top)
    os.setxattr(os.path.join(base, "etc/text"), "user.colour", b"blue\0green")
    os.setxattr(os.path.join(base, "etc"), "user.dir", b"")
    capability = bytes.fromhex("0100000200040000000000000000000000000000")
    os.setxattr(os.path.join(base, "bin/su"), "security.capability", capability)
    os.setxattr(os.path.join(base, "bin/su"), "trusted.secret", b"1")
    for name in ("etc/size-1", "etc/size-4096", "etc/zeros"):
        os.setxattr(os.path.join(base, name), "user.big", b"B" * 1500)
    os.setxattr(os.path.join(base, "etc/size-1"), "user.only", b"1")


def many_files(target: os.PathLike[str] | str, count: int, *options: str, big_mib: int = 0) -> str:
    """Make an image of `count` small files, 500 to a directory, through sqfstar: nothing is written to a disk but it.

    File number n is `d<n // 500>/f<n>` and holds `content_of(n)`; `big` has `big_mib` MiB that cannot be compressed.
    Returns the path. 500,000 files take 5 s.
    """
    # the search for equal files is quadratic here: all have one of a hundred sizes
    argv = ["sqfstar", "-no-duplicates", *options, str(target)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as made:
        assert made.stdin is not None
        for number in range(count):
            if number % 500 == 0:
                made.stdin.write(_tar_header(f"d{number // 500}/", 0, b"5"))
            data = content_of(number)
            made.stdin.write(_tar_header(f"d{number // 500}/f{number}", len(data), b"0") + data.ljust(512, b"\0"))
        made.stdin.write(_tar_header("big", big_mib << 20, b"0"))
        for number in range(big_mib):
            made.stdin.write(noise((1 << 20) + number)[: 1 << 20])
        made.stdin.write(bytes(1024))
    assert made.returncode == 0
    return str(target)


def content_of(number: int) -> bytes:
    """Return what a small file of `many_files` holds: its number and some noise, 8 to 107 bytes."""
    return b"%08d" % number + NOISE[number % 900 : number % 900 + number % 100]


def _tar_header(name: str, size: int, kind: bytes) -> bytes:
    """Return a ustar header (pax(1)); tarfile needs ten times as long."""
    mode = b"0000755" if kind == b"5" else b"0000644"
    head = name.encode().ljust(100, b"\0") + mode + b"\0" + b"0000000\0" * 2 + b"%011o\0" % size + b"00000000001\0"
    tail = kind + bytes(100) + b"ustar\00000"
    checksum = sum(head) + sum(tail) + 8 * 32
    return (head + b"%06o\0 " % checksum + tail).ljust(512, b"\0")


def _write(path: str | bytes, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)


def noise(size: int) -> bytes:
    """Incompressible, the same every time."""
    return hashlib.shake_128(b"%d" % size).digest(size)


NOISE = noise(1000)


def image_of(data: bytes) -> SquashImage:
    """Open an image that is no file, under the name `damaged.squashfs`, with a cache of 1 MiB."""
    file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - its descriptor is handed over
    with file:
        file.write(data)
        fd = os.dup(file.fileno())
    return SquashImage(fd, name="damaged.squashfs", cache_bytes=1 << 20)


def in_a_circle(data: bytes, folder: bytes, file: bytes) -> bytes:
    """Make a file, which lies somewhere below a directory, that directory; the inodes are not compressed."""
    with image_of(data) as image:
        outer, small = image.find(folder), image.find(file)
    assert outer is not None
    assert small is not None
    assert outer.ref >> 16 == small.ref >> 16, "the inodes of a run of entries are in one metadata block"
    name = os.path.basename(file)
    at = data.index(struct.pack("<HH", 2, len(name) - 1) + name)
    assert data[at - 4 : at - 2] == struct.pack("<H", small.ref & 0xFFFF)
    return data[: at - 4] + struct.pack("<H", outer.ref & 0xFFFF) + data[at - 2 : at] + b"\1\0" + data[at + 2 :]


def walk(image: SquashImage) -> Iterator[tuple[bytes, Inode]]:
    """Every path with its inode, the root as b""."""
    stack = [(b"", image.inode(image.root_ref))]
    while stack:
        path, inode = stack.pop()
        yield path, inode
        if inode.kind == stat.S_IFDIR:
            for entry in image.entries(inode):
                child = image.inode(entry.ref)
                assert (entry.kind, entry.number) == (child.kind, child.number)
                stack.append((path + b"/" + entry.name, child))


def describe_image(image: SquashImage) -> dict[bytes, dict[str, Any]]:
    """Everything `describe_folder` says, read from the squash file."""
    seen: dict[int, bytes] = {}
    found = {}
    for path, inode in sorted(walk(image)):
        facts: dict[str, Any] = {
            "kind": inode.kind,
            "mode": inode.mode,
            "owner": (inode.uid, inode.gid),
            "mtime": inode.mtime,
            "xattrs": dict(image.xattrs(inode)),
        }
        if inode.kind == stat.S_IFREG:
            facts |= {"size": inode.size, "sha256": hashlib.sha256(image.read(inode, 0, inode.size)).hexdigest()}
        if inode.kind == stat.S_IFLNK:
            facts["target"] = image.readlink(inode)
        if inode.kind in {stat.S_IFBLK, stat.S_IFCHR}:
            facts["rdev"] = inode.rdev
        if inode.kind != stat.S_IFDIR:
            facts["nlink"] = inode.nlink
            facts["same as"] = seen.setdefault(inode.ref, path)
        found[path] = facts
    return found


def describe_folder(top: str | os.PathLike[str], *, xattrs: bool = True) -> dict[bytes, dict[str, Any]]:
    """What the kernel says about every file under a folder."""
    base = os.fsencode(top)
    names = [b""]
    for folder, folders, files in os.walk(base):
        names += [os.path.join(folder, name)[len(base) :] for name in folders + files]
    seen: dict[int, bytes] = {}
    found = {}
    for path in sorted(names):
        full = base + path
        info = os.lstat(full)
        kind = stat.S_IFMT(info.st_mode)
        facts: dict[str, Any] = {
            "kind": kind,
            "mode": stat.S_IMODE(info.st_mode),
            "owner": (info.st_uid, info.st_gid),
            "mtime": int(info.st_mtime),
            "xattrs": _xattrs(full) if xattrs else {},
        }
        if kind == stat.S_IFREG:
            with open(full, "rb") as file:
                facts |= {"size": info.st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
        if kind == stat.S_IFLNK:
            facts["target"] = os.readlink(full)
        if kind in {stat.S_IFBLK, stat.S_IFCHR}:
            facts["rdev"] = info.st_rdev
        if kind != stat.S_IFDIR:
            facts["nlink"] = info.st_nlink
            facts["same as"] = seen.setdefault(info.st_ino, path)
        found[path] = facts
    return found


def _xattrs(path: bytes) -> dict[bytes, bytes]:
    names = os.listxattr(path, follow_symlinks=False)
    return {os.fsencode(name): os.getxattr(path, name, follow_symlinks=False) for name in names}
