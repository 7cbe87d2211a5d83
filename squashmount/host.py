"""What this machine and this process can do: probed once, passed down, built by hand in tests."""

import os

from .idmap import IdMap, read_id_map
from .lean import NamedTuple

KERNEL_OVERLAY_IN_USERNS = (5, 11)
"""First Linux that mounts overlay in a user namespace (Documentation/filesystems/overlayfs.rst, "userxattr")."""


class Host(NamedTuple):
    """Facts the plan depends on."""

    kernel: tuple[int, int]
    userns: bool
    single_id: bool
    fuse_overlayfs: str | None
    squashfuse_ll: str | None

    @property
    def kernel_overlay(self) -> bool:
        """Tell whether this process may ask the kernel for an overlay."""
        return not self.userns or self.kernel >= KERNEL_OVERLAY_IN_USERNS


def probe_host() -> Host:
    """Look at /proc/self and PATH; no program is started."""
    uid_map = read_id_map("/proc/self/uid_map")
    return Host(
        kernel=_kernel_version(os.uname().release),
        userns=not is_initial(uid_map),
        single_id=sum(entry.length for entry in uid_map) == 1,
        fuse_overlayfs=which("fuse-overlayfs"),
        squashfuse_ll=which("squashfuse_ll"),
    )


def is_initial(uid_map: IdMap) -> bool:
    """Tell the machine's own user namespace: it maps every id to itself (user_namespaces(7))."""
    return len(uid_map) == 1 and uid_map[0] == (0, 0, 2**32 - 1)


def _kernel_version(release: str) -> tuple[int, int]:
    numbers = "".join(char if char.isdigit() else " " for char in release).split()
    return (int(numbers[0]), int(numbers[1])) if len(numbers) > 1 else (0, 0)


def which(program: str) -> str | None:
    """Find a program on PATH and where distributions put helpers (shutil.which costs more than the mount)."""
    places = [*os.environ.get("PATH", "").split(":"), "/usr/local/bin", "/usr/bin", "/bin", "/usr/sbin", "/sbin"]
    for place in places:
        path = os.path.join(place, program)
        if place and os.access(path, os.X_OK) and os.path.isfile(path):
            return path
    return None
