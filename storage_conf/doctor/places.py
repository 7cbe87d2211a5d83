"""What several probes ask of the configuration: the files Podman reads, and where it keeps images and state.

Each probe is a process of its own and asks again: all of it together costs less than handing it around.
"""

import errno
import os
import re

from squashmount.errors import ToolError
from squashmount.mountinfo import Mount, parse_line
from squashmount.process import run

from ..facts import Facts, gather
from ..ids.libsubid import Pair, ranges_of
from ..podman import SUPPORTED, Machine
from .node import Node

NEWEST = 5
"""The Podman whose rules are taken where none answers."""


_NOWHERE = b'[storage]\ndriver = "overlay"\ngraphroot = "/nonexistent"\nrunroot = "/nonexistent"\n'


def podman_version(node: Node) -> str:
    """Return what the installed Podman calls itself ("4.3.1"); empty where it does not answer in 2 s."""
    # it reads its files even for --version and fails on a broken one, which is what is to be explained
    file = os.memfd_create("storage.conf")
    try:
        os.write(file, _NOWHERE)
        files = {"CONTAINERS_STORAGE_CONF": f"/proc/self/fd/{file}", "CONTAINERS_CONF": os.devnull}
        out = run("podman", "--version", env={**node.environ, **files}, timeout=2.0, pass_fds=[file])
    except ToolError:
        return ""
    finally:
        os.close(file)
    found = re.search(r"version (\d+\.\d+\S*)", out)
    return found[1] if found else ""


def major(version: str) -> int:
    """Return which of the supported dialects a version speaks."""
    number = int(version.partition(".")[0]) if version else NEWEST
    return min(max(number, SUPPORTED[0]), SUPPORTED[-1])


def configuration(node: Node, version: str = "", *, stores: bool = False) -> Facts:
    """Return what Podman would read for this user; additional stores, which may hang, only when asked for."""
    machine = Machine(
        node.environ,
        node.uid,
        major(version),
        etc=node.path("/etc/containers"),
        vendor=node.path("/usr/share/containers"),
    )
    return gather(machine, mounts(node), stores=stores)


def mounts(node: Node) -> list[Mount]:
    """Return the mounts of this process, in mount order."""
    return [parse_line(line) for line in (node.text("/proc/self/mountinfo") or "").splitlines() if " - " in line]


def nearest(path: str) -> str:
    """Return the path, or the deepest directory above it that exists."""
    real = os.path.realpath(path)
    while not os.path.isdir(real) and real != "/":
        real = os.path.dirname(real)
    return real


def nameless_file(folder: str) -> int:
    """Return a descriptor of a new file without a name; where that cannot be (NFS), its name is gone at once. OSError.

    open(2): a file system without O_TMPFILE answers EOPNOTSUPP, an old one EISDIR.
    """
    try:
        return os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as err:
        if err.errno not in {errno.EOPNOTSUPP, errno.ENOSYS, errno.EISDIR, errno.EINVAL, errno.ENOENT}:
            raise
    path = os.path.join(folder, f".squashmount-doctor-{os.getpid()}-{os.urandom(4).hex()}")
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    os.unlink(path)
    return file


def own_ranges(node: Node) -> tuple[list[Pair], list[Pair]]:
    """Return (start, count) of the user's subordinate uids and gids as the node's source lists them; often one each."""
    names = (node.name, str(node.uid))
    return ranges_of(names, "uid"), ranges_of(names, "gid")
