"""The node itself: cgroups, FUSE, kernel and programs: U60, U61, U70, U71, U80."""

import errno
import os
import re
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from squashmount.errors import ToolError
from squashmount.host import which
from squashmount.process import run_both

from ..finding import Fact, Finding, error, info, warning
from ..podman import SUPPORTED
from .node import Node
from .places import podman
from .probe import Probe

_CGROUPS = "/sys/fs/cgroup"
_KERNEL_OVERLAY = (5, 11)


def cgroups(node: Node) -> Iterator[Finding | Fact]:
    """Tell which cgroups there are (U60) and whether limits can be set in them (U61)."""
    own = next((line[3:] for line in (node.text("/proc/self/cgroup") or "").splitlines() if line[:3] == "0::"), "")
    if not os.path.exists(node.path(f"{_CGROUPS}/cgroup.controllers")):
        kind = "v1 and v2 (hybrid)" if os.path.isdir(node.path(f"{_CGROUPS}/unified")) else "v1"
        yield Fact("cgroup", kind)
        found = podman(node)
        report = error if found and found.major >= 6 else warning
        yield report(
            f"This node has cgroups {kind}.",
            "Rootless containers get no limits there, crun drops its controllers in hybrid mode, Podman 5 warns and "
            "Podman 6 does not work.",
            "as root: boot with systemd.unified_cgroup_hierarchy=1",
            id="U60",
            evidence=f"{_CGROUPS}/cgroup.controllers is missing",
        )
        return
    folder = node.path(f"{_CGROUPS}{own}")
    controllers = (node.text(f"{_CGROUPS}{own}/cgroup.controllers") or "").split()
    delegated = os.access(folder, os.W_OK) and os.access(os.path.join(folder, "cgroup.procs"), os.W_OK)
    seen = f"{own or '/'}: {'yours' if delegated else 'not yours'}, controllers {' '.join(controllers) or 'none'}"
    yield Fact("cgroup", f"v2, {seen}")
    missing = [name for name in ("cpu", "memory", "pids") if name not in controllers]
    if not delegated or missing:
        yield info(
            "Containers cannot have limits of their own here.",
            "The cgroup of this process is not delegated to you, or lacks controllers; limits of the job hold all the "
            "same, but --memory and --cpus do not work.",
            "as root: Delegate=cpu cpuset memory pids for user@.service; in a job leave --memory and --cpus out",
            id="U61",
            evidence=seen,
        )


def fuse(node: Node) -> Iterator[Finding | Fact]:
    """Tell whether /dev/fuse opens (U70) and fusermount3 helps outside of a namespace (U71)."""
    device = node.path("/dev/fuse")
    try:
        os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
    except OSError as err:
        fix = f"as root: chmod 0666 {device} (udev does it where it runs)"
        if err.errno == errno.EPERM:
            fix = (
                "allow the device in the job's cgroup (Slurm: cgroup_allowed_devices_file.conf, or ConstrainDevices=no)"
            )
        elif err.errno in {errno.ENOENT, errno.ENODEV, errno.ENXIO}:
            fix = "as root: modprobe fuse, and load it at boot (/etc/modules-load.d/fuse.conf)"
        yield error(
            f"/dev/fuse cannot be opened: {os.strerror(err.errno or 0)}.",
            "Squash files are shown through it, and fuse-overlayfs needs it as well.",
            fix,
            id="U70",
            evidence=_device(device),
        )
    else:
        yield Fact("/dev/fuse", "opens")
    path = which("fusermount3")
    if node.uid and not (path and os.stat(path).st_mode & stat.S_ISUID):
        yield warning(
            f"{path} is not setuid root." if path else "fusermount3 is not installed.",
            "Containers do without it (they mount in their namespace); `squashmount mount` outside of one does not.",
            f"as root: chmod 4755 {path}" if path else "as root: apt-get install fuse3 (dnf install fuse3)",
            id="U71",
        )


def _device(path: str) -> str:
    try:
        status = os.stat(path)
    except OSError as err:
        return os.strerror(err.errno or 0)
    return f"mode {stat.S_IMODE(status.st_mode):04o}, owner {status.st_uid}:{status.st_gid}"


_PROGRAMS = (
    # the program, how it is asked, what its own line says: fuse-overlayfs names fusermount3's version first
    ("crun", "--version", r"^crun version (\S+)"),
    ("runc", "--version", r"^runc version (\S+)"),
    ("fuse-overlayfs", "--version", r"^fuse-overlayfs: version (\S+)"),
    ("squashfuse_ll", "--help", r"^squashfuse (\S+)"),
    ("mksquashfs", "-version", r"^mksquashfs version (\S+)"),
    ("unsquashfs", "-version", r"^unsquashfs version (\S+)"),
)


_SECONDS = 2.0
"""For each of them; a program on a file system that does not answer must not hide the others."""


def versions(node: Node) -> Iterator[Finding | Fact]:
    """Tell the versions that count, and what is missing or too old: U80."""
    release = node.text("/proc/sys/kernel/osrelease") or os.uname().release
    yield Fact("kernel", release.strip())
    with ThreadPoolExecutor(len(_PROGRAMS)) as pool:
        said = list(pool.map(lambda asked: _asked(node, *asked), _PROGRAMS))
    found = {name: version for (name, *_), version in zip(_PROGRAMS, said, strict=True)}
    told = (f"{name} {version}" for name, version in found.items() if isinstance(version, str) and version)
    yield Fact("programs", ", ".join(told) or "none")
    yield from (one for one in said if isinstance(one, Finding))
    numbers = re.match(r"(\d+)\.(\d+)", release)
    kernel = (int(numbers[1]), int(numbers[2])) if numbers else (0, 0)
    if kernel < _KERNEL_OVERLAY:
        yield warning(
            f"Linux {release.strip()} has no overlay for users.",
            "Before 5.11 a user namespace cannot mount one: fuse-overlayfs takes its place, which is slower.",
            "a newer kernel (RHEL 8.5 and later have it in 4.18)",
            id="U80",
        )
    if not which("podman"):
        yield error("podman is not installed.", "Nothing runs without it.", "as root: apt-get install podman", id="U80")
    elif not (this := podman(node)):
        yield error(
            "podman does not tell its version.",
            "It is broken, or hangs: it was asked with an empty configuration.",
            "podman --version",
            id="U80",
        )
    elif this.major < SUPPORTED[0]:
        yield error(
            f"Podman {this.version} is too old.", "Podman 4, 5 or 6 is needed.", "install a newer one", id="U80"
        )
    if not (found["crun"] or found["runc"]):
        yield error(
            "Neither crun nor runc is installed.",
            "Podman starts containers with one of them.",
            "as root: apt-get install crun (dnf install crun)",
            id="U80",
        )


def _asked(node: Node, program: str, option: str, pattern: str) -> str | Finding:
    """Return a program's version, or that it cannot be asked."""
    try:
        return version_of(node, program, option, pattern)
    except ToolError as err:
        report = error if program in {"crun", "runc"} else warning
        return report(
            f"{which(program)} cannot be asked for its version.",
            "It is broken, or hangs: Podman or squashmount will fail or hang when they start it.",
            f"{program} {option}; does its file system answer? As root: install it anew",
            id="U80",
            evidence=err.brief,
        )


def version_of(node: Node, program: str, option: str, pattern: str) -> str:
    """Return a program's version; empty where it is missing. ToolError where it cannot be started, dies, or hangs."""
    path = which(program)
    if not path:
        return ""
    out, err = run_both(path, option, ok=tuple(range(256)), env=dict(node.environ), timeout=_SECONDS)
    said = re.search(pattern, f"{out}\n{err}", re.MULTILINE)
    return said[1] if said else "of an unknown version"


PROBES = (
    Probe(("U60", "U61"), "The cgroups", cgroups),
    Probe(("U70", "U71"), "FUSE", fuse),
    # Podman 5 does not even tell its version where it cannot make a directory in XDG_RUNTIME_DIR
    Probe(("U80",), "The programs", versions, explained_by=("U50",)),
)
