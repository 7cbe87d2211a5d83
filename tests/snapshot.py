"""Print a tree as JSON, one entry a path: what two file systems must have in common to be the same image.

Run by a bare Python on both sides (inside a container, and on the mounted original), so: standard library only.

    python3 snapshot.py ROOT [EXCLUDED...]
"""

import errno
import hashlib
import json
import os
import stat
import sys

KINDS = {stat.S_IFREG: "file", stat.S_IFDIR: "dir", stat.S_IFLNK: "link", stat.S_IFIFO: "fifo", stat.S_IFSOCK: "socket"}


def list_xattrs(path: bytes) -> list[str]:
    try:
        return os.listxattr(path)
    except OSError as err:
        # of a squash without any: ours says it as the kernel's does (fs/squashfs/xattr.c, squashfs_listxattr)
        if err.errno != errno.ENOTSUP:
            raise
        return []


def describe(path: bytes, first: dict[tuple[int, int], str]) -> dict[str, object]:
    info = os.lstat(path)
    entry: dict[str, object] = {
        "kind": KINDS.get(stat.S_IFMT(info.st_mode), oct(info.st_mode)),
        "mode": oct(stat.S_IMODE(info.st_mode)),
        "owner": [info.st_uid, info.st_gid],
        "mtime": int(info.st_mtime),
    }
    if stat.S_ISLNK(info.st_mode):
        entry["target"] = os.readlink(path).decode("latin-1")
    else:
        # Only what can be part of an image: labels of the machine's security modules are not.
        names = [name for name in list_xattrs(path) if name.startswith(("user.", "security.capability"))]
        entry["xattrs"] = {name: os.getxattr(path, name).hex() for name in sorted(names)}
    if stat.S_ISBLK(info.st_mode) or stat.S_ISCHR(info.st_mode):
        entry["device"] = [os.major(info.st_rdev), os.minor(info.st_rdev)]
    if stat.S_ISREG(info.st_mode):
        entry["size"] = info.st_size
        entry["links"] = info.st_nlink
        if info.st_nlink > 1:
            entry["same_as"] = first.setdefault((info.st_dev, info.st_ino), path.decode("latin-1"))
        with open(path, "rb") as file:
            entry["sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
    return entry


def snapshot(root: str, excluded: set[str]) -> dict[str, dict[str, object]]:
    os.chdir(root)
    found = {}
    first: dict[tuple[int, int], str] = {}
    pending = [b"."]
    while pending:
        path = pending.pop()
        name = path.decode("latin-1")
        if name in excluded:
            continue
        found[name] = describe(path, first)
        if found[name]["kind"] == "dir":
            pending += sorted((os.path.join(path, entry) for entry in os.listdir(path)), reverse=True)
    return found


if __name__ == "__main__":
    json.dump(snapshot(sys.argv[1], set(sys.argv[2:])), sys.stdout)
