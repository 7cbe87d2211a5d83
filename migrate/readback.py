"""Reads a new squash file back before it is published, with another reader than the one that will serve it.

PySquashfsImage 0.9 does not decode LZ4 blocks and fails on names that are not UTF-8; there our own reader is used.
"""

import hashlib
import stat
import struct
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

from squashmount import jsonio
from squashmount.errors import DamagedError, ToolError
from squashmount.squashfs.image import SquashImage
from squashmount.squashfs.inodes import Inode
from squashmount.squashfs.source import Source
from squashmount.squashfs.superblock import Superblock, read_superblock

_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Sample:
    """A file as it must be in the squash: permission bits, container ids, checksum of the contents."""

    path: str
    mode: int
    uid: int
    gid: int
    sha256: str

    @classmethod
    def from_json(cls, value: jsonio.JsonObject) -> "Sample":
        """Rebuild from a JSON object."""
        numbers = {key: jsonio.get_int(value, key) for key in ("mode", "uid", "gid")}
        return cls(path=jsonio.get_str(value, "path"), sha256=jsonio.get_str(value, "sha256"), **numbers)


def header(path: str) -> Superblock:
    """Read and check the superblock; DamagedError when the file is cut off or something else."""
    with open(path, "rb") as file:
        return read_superblock(Source(file.fileno(), path))


def check(path: str, *, entries: int, samples: Iterable[Sample]) -> None:
    """Compare the number of names and the samples; ToolError names the first difference."""
    expected = list(samples)
    try:
        count, found = _read(path, expected)
    except DamagedError as err:
        raise ToolError("The new squash file cannot be read back.", details=str(err)) from err
    if count != entries:
        raise _wrong(f"it has {count} names instead of {entries}")
    for sample in expected:
        if found[sample.path] != sample:
            raise _wrong(f"{sample.path!r} is {found[sample.path]} instead of {sample}")


_Found = tuple[int, dict[str, Sample | None]]


def _read(path: str, expected: list[Sample]) -> _Found:
    if header(path).compressor != "lz4":
        with suppress(*_ITS_LIMITS):
            return _independent(path, expected)
    return _own(path, expected)


_ITS_LIMITS = (ValueError, LookupError, AttributeError, NotImplementedError, struct.error)
"""How PySquashfsImage fails on what it does not know; whether the file is sound is then our reader's verdict."""


def _independent(path: str, expected: list[Sample]) -> _Found:
    from PySquashfsImage import SquashFsImage  # noqa: PLC0415 - 50 ms, needed once per squash

    found: dict[str, Sample | None] = {}
    with open(path, "rb") as opened:
        image = SquashFsImage(opened)
        for sample in expected:
            file = image.select(sample.path)
            digest = hashlib.sha256()
            for piece in file.iter_bytes() if file else ():
                digest.update(piece)
            made = file and Sample(sample.path, stat.S_IMODE(file.mode), file.uid, file.gid, digest.hexdigest())
            found[sample.path] = made
        return sum(1 for _ in image), found


def _own(path: str, expected: list[Sample]) -> _Found:
    with SquashImage.open(path) as image:
        count = 1
        stack = [image.inode(image.root_ref)]
        while stack:
            for entry in image.entries(stack.pop()):
                count += 1
                if entry.kind == stat.S_IFDIR:
                    stack.append(image.inode(entry.ref))
        return count, {sample.path: _sample(image, sample.path) for sample in expected}


def _sample(image: SquashImage, path: str) -> Sample | None:
    inode = image.find(path.encode("utf-8", "surrogateescape"))
    if inode is None:
        return None
    return Sample(path, stat.S_IMODE(inode.mode), inode.uid, inode.gid, _digest(image, inode))


def _digest(image: SquashImage, inode: Inode) -> str:
    digest = hashlib.sha256()
    for offset in range(0, inode.size, _CHUNK):
        digest.update(image.read(inode, offset, _CHUNK))
    return digest.hexdigest()


def _wrong(details: str) -> ToolError:
    return ToolError("The new squash file differs from the image.", details=details, hint="try another mksquashfs")
