"""Parse /proc/PID/mountinfo (proc(5)): which mounts a mount namespace has."""

import os

from .lean import NamedTuple


class Mount(NamedTuple):
    """One line: mount id, mount point, file system type, source and the superblock's options."""

    id: int
    target: str
    fstype: str
    source: str
    options: str


def read_mounts(pid: str = "self") -> list[Mount]:
    """Return the mounts of a process's namespace, in mount order. OSError when the process is gone."""
    with open(f"/proc/{pid}/mountinfo", "rb") as file:
        return [parse_line(os.fsdecode(line)) for line in file]


def parse_line(line: str) -> Mount:
    """Parse one line: fields up to a lone hyphen vary in number (proc(5), fields 7 and 8)."""
    before, _, after = line.partition(" - ")
    fields, rest = before.split(" "), after.rstrip("\n").split(" ")
    return Mount(int(fields[0]), _unescaped(fields[4]), rest[0], _unescaped(rest[1]), _unescaped(rest[-1]))


def _unescaped(field: str) -> str:
    # proc(5): blank, tab, newline and backslash are written in octal
    for octal, char in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        field = field.replace(octal, char)
    return field


def namespace_id(pid: str = "self") -> int:
    """Return the inode that names a process's mount namespace (namespaces(7)). OSError when it is gone."""
    return os.stat(f"/proc/{pid}/ns/mnt").st_ino


def find_process(namespace: int) -> str | None:
    """Return the oldest process in a mount namespace whose /proc entry we may read, or None."""
    own = os.getpid()
    for pid in sorted((int(name) for name in os.listdir("/proc") if name.isdigit()), key=int):
        if pid == own:
            continue
        try:
            if namespace_id(str(pid)) == namespace:
                return str(pid)
        except OSError:
            continue
    return None
