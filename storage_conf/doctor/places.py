"""What several probes ask of the configuration: the files Podman reads, and where it keeps images and state.

Each probe is a process of its own and asks again: all of it together costs less than handing it around.
"""

import errno
import os

from squashmount.errors import ToolError
from squashmount.mountinfo import Mount, parse_line

from ..facts import Facts, gather
from ..ids.libsubid import Pair, ranges_of
from ..podman import SUPPORTED, Installed, Machine, installed
from .node import Node

NEWEST = 5
"""The Podman whose rules are taken where none answers."""


def podman(node: Node) -> Installed | None:
    """Return the installed Podman; None where it does not answer in 2 s."""
    try:
        return installed(node.environ, timeout=2.0)
    except ToolError:
        return None


def configuration(node: Node, *, stores: bool = False) -> Facts:
    """Return what Podman would read for this user; additional stores, which may hang, only when asked for."""
    found = podman(node)
    machine = Machine(
        node.environ,
        node.uid,
        max(found.dialect, SUPPORTED[0]) if found else NEWEST,
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
