"""One walk over a tree before it is squashed: how much there is, whose it is, and which xattrs must not travel."""

import errno
import os
import re
import stat
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

SAMPLES = 8
"""Files read back after squashing."""
_SAMPLE_LIMIT = 1 << 20

_UNWANTED = re.compile(
    r"(user|trusted)\.overlay\.|user\.fuseoverlayfs\.|user\.containers\.|security\.(selinux|ima|evm)$|system\."
)
"""The same set as mksquashfs.UNWANTED_XATTRS. `user.overlay.` and `trusted.overlay.` are overlayfs' own
(Documentation/filesystems/overlayfs.rst), the next two fuse-overlayfs' and containers-storage's, and labels, hashes and
ACLs of `security.` and `system.` belong to the host's file system."""


@dataclass(slots=True)
class Survey:
    """What a walk found. `size` is the sum of st_size of regular files in bytes, hard links counted once.

    `candidates` are the files to be read back later: a choice that depends on their names only.
    """

    entries: int = 0
    size: int = 0
    root_mode: int = 0o755
    owners: set[int] = field(default_factory=set)
    unwanted_xattrs: int = 0
    other_xattrs: int = 0
    unwanted_example: str = ""
    candidates: list[tuple[int, bytes]] = field(default_factory=list)

    @property
    def xattrs(self) -> str:
        """Return what mksquashfs must do with xattrs: `keep`, `none` or `filter`."""
        if not self.unwanted_xattrs:
            return "keep"
        return "filter" if self.other_xattrs else "none"


def unwanted(name: str) -> bool:
    """Tell whether an xattr belongs to container storage or this host and not to the image."""
    return _UNWANTED.match(name) is not None


def walk(root: bytes) -> Iterator[tuple[bytes, os.stat_result]]:
    """Yield (path relative to the root, lstat) for the root (b"") and everything below it; errors are raised."""
    yield b"", os.lstat(root)
    stack = [b""]
    while stack:
        directory = stack.pop()
        with os.scandir(os.path.join(root, directory)) as entries:
            for entry in entries:
                path = os.path.join(directory, entry.name)
                info = entry.stat(follow_symlinks=False)
                yield path, info
                if stat.S_ISDIR(info.st_mode):
                    stack.append(path)


def survey(root: str) -> Survey:
    """Walk the tree once. Raises OSError as lstat(2), getdents(2) and listxattr(2) do."""
    top = os.fsencode(root)
    found = Survey()
    linked: set[tuple[int, int]] = set()
    for path, info in walk(top):
        found.entries += 1
        found.owners |= {info.st_uid, info.st_gid}
        if not path:
            found.root_mode = stat.S_IMODE(info.st_mode)
        if stat.S_ISREG(info.st_mode):
            _consider(found, path, info.st_size)
            key = (info.st_dev, info.st_ino)
            if info.st_nlink == 1 or key not in linked:
                found.size += info.st_size
            if info.st_nlink > 1:
                linked.add(key)
        if not stat.S_ISLNK(info.st_mode):
            _count_xattrs(found, os.path.join(top, path))
    return found


def _consider(found: Survey, path: bytes, size: int) -> None:
    if size <= _SAMPLE_LIMIT:
        found.candidates.append((zlib.crc32(path), path))
        if len(found.candidates) > 64 * SAMPLES:
            found.candidates = sorted(found.candidates)[:SAMPLES]


def _count_xattrs(found: Survey, path: bytes) -> None:
    for name in xattrs(path):
        if unwanted(name):
            found.unwanted_xattrs += 1
            found.unwanted_example = found.unwanted_example or f"{name} on {os.fsdecode(path)}"
        else:
            found.other_xattrs += 1


def xattrs(path: bytes) -> list[str]:
    """Return the names of the xattrs of a file; none where the file system has no xattrs."""
    try:
        return os.listxattr(path, follow_symlinks=False)
    except OSError as err:
        if err.errno in {errno.ENOTSUP, errno.EPERM, errno.EACCES}:
            return []
        raise
