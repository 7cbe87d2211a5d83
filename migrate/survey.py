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

_OF_STORAGE = re.compile(r"(user|trusted)\.overlay\.|user\.fuseoverlayfs\.|user\.containers\.")
"""`user.overlay.` and `trusted.overlay.` are overlayfs' own (Documentation/filesystems/overlayfs.rst), the others
fuse-overlayfs' and containers-storage's. In a squash they would change what an overlay on top of it shows."""
_OF_HOST = re.compile(r"security\.(selinux|ima|evm|SMACK64.*)$|system\.")
"""Labels, hashes and ACLs of the file system the image is unpacked on."""


@dataclass(slots=True)
class Survey:
    """What a walk found. `size` is the sum of st_size of regular files in bytes, hard links counted once.

    `candidates` are the files to be read back later: a choice that depends on their names only.
    """

    entries: int = 0
    size: int = 0
    root_mode: int = 0o755
    owners: set[int] = field(default_factory=set)
    storage_xattrs: int = 0
    host_xattrs: int = 0
    image_xattrs: int = 0
    example: str = ""
    candidates: list[tuple[int, bytes]] = field(default_factory=list)

    @property
    def xattrs(self) -> str:
        """Return what mksquashfs must do with xattrs: `keep`, `none` or `filter`."""
        if not self.storage_xattrs and not self.host_xattrs:
            return "keep"
        return "filter" if self.image_xattrs else "none"


def belongs_to(name: str) -> str:
    """Return whose xattr it is: `storage`, `host` or `image`."""
    if _OF_STORAGE.match(name):
        return "storage"
    return "host" if _OF_HOST.match(name) else "image"


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
        whose = belongs_to(name)
        if whose == "storage":
            found.storage_xattrs += 1
            found.example = found.example or f"{name} on {os.fsdecode(path)}"
        elif whose == "host":
            found.host_xattrs += 1
        else:
            found.image_xattrs += 1


def xattrs(path: bytes) -> list[str]:
    """Return the names of the xattrs of a file; none where the file system has no xattrs."""
    try:
        return os.listxattr(path, follow_symlinks=False)
    except OSError as err:
        if err.errno in {errno.ENOTSUP, errno.EPERM, errno.EACCES}:
            return []
        raise
