"""Put the overlay on Podman's target: kernel overlay, or fuse-overlayfs. Both return only when it is mounted."""

import errno
import os

from . import linux
from .errors import HostError, ToolError
from .host import Host
from .lean import NoReturn, suppress
from .plan import FUSE, KERNEL, MountPlan
from .request import MountRequest, escape_path, split_options

PAGE = 4096
"""mount(2): "data … at most a page"; longer option strings are cut without a word."""

_RECORD = "squashmount-overlay"


def mount_kernel(request: MountRequest, plan: MountPlan, squash_root: str, empty: str, *, userns: bool) -> None:
    """Mount kernel overlay on the target. Raises OSError with the kernel's errno.

    `squash_root` is where the server shows the squash ("" when there is none), `empty` an empty directory: without an
    upper layer the kernel wants at least two lowers.
    """
    lowers = [*plan.above, *([squash_root] if squash_root else [])]
    if request.upper is None and len(lowers) == 1:
        lowers.append(empty)
    options = [*request.kernel_options]
    if userns and "userxattr" not in options:
        # trusted.* xattrs need privilege over the machine (overlayfs.rst, "userxattr")
        options.append("userxattr")
    if request.context:
        options.append(f"context={request.context}")
    if request.volatile and request.upper is not None:
        options.append("volatile")
        _allow_volatile_again(request.work or "")
    short = _Short()
    try:
        data = _data(lowers, request, options)
        if len(os.fsencode(data)) >= PAGE:
            # only the squash root keeps its name: mountinfo then tells which server an overlay uses
            lowers = [path if path == squash_root else short.name(path) for path in lowers]
            data = _data(lowers, request, options)
        if len(os.fsencode(data)) >= PAGE:
            raise OSError(errno.E2BIG, os.strerror(errno.E2BIG), request.target)
        linux.mount("overlay", request.target, "overlay", request.flags, data)
    finally:
        short.close()


def _data(lowers: list[str], request: MountRequest, options: list[str]) -> str:
    parts = ["lowerdir=" + ":".join(map(escape_path, lowers))]
    if request.upper is not None and request.work is not None:
        parts += [f"upperdir={escape_path(request.upper)}", f"workdir={escape_path(request.work)}"]
    return ",".join(parts + options)


class _Short:
    """Short names for directories, valid until `close`.

    proc(5): a lookup of /proc/self/fd/N goes to the open directory; containers-storage does the same for long lists.
    """

    def __init__(self) -> None:
        self.fds: list[int] = []

    def name(self, path: str) -> str:
        self.fds.append(os.open(path, os.O_PATH | os.O_CLOEXEC))
        return f"/proc/self/fd/{self.fds[-1]}"

    def close(self) -> None:
        for fd in self.fds:
            os.close(fd)


def _allow_volatile_again(work: str) -> None:
    # overlayfs.rst, "Volatile mount": the kernel leaves work/incompat/volatile/dirty and refuses the upper layer until
    # it is gone. Podman asks for volatile only for containers whose content nobody keeps (--rm).
    incompat = os.path.join(work, "work", "incompat")
    for remove, path in ((os.unlink, "volatile/dirty"), (os.rmdir, "volatile"), (os.rmdir, "")):
        with suppress(FileNotFoundError):
            remove(os.path.join(incompat, path))


def mount_fuse_overlayfs(request: MountRequest, plan: MountPlan, squash_root: str, host: Host) -> None:
    """Mount fuse-overlayfs on the target, with Podman's options except for the lowers. Raises ToolError, HostError."""
    from .process import run  # noqa: PLC0415 - subprocess costs 8 ms, paid only on this branch

    if host.fuse_overlayfs is None:
        raise _no_fuse_overlayfs(plan.reason)
    short = _Short()
    try:
        lowers = ":".join(_plain(path, short) for path in [*plan.above, squash_root])
        others = [option for option in split_options(request.raw) if not option.startswith("lowerdir=")]
        # noacl: a squash holds no POSIX ACLs, and a FUSE lower in a user namespace answers EOPNOTSUPP to the question
        # (fs/fuse/acl.c, fuse_no_acl), which fuse-overlayfs would pass on to every open of a file of another owner
        options = ",".join([f"lowerdir={lowers}", *others, "noacl"])
        run(host.fuse_overlayfs, "-o", options, request.target, pass_fds=short.fds)
    finally:
        short.close()
    if not os.path.ismount(request.target):
        raise ToolError(f"fuse-overlayfs ended well but mounted nothing on {request.target}.")


def _plain(path: str, short: _Short) -> str:
    # fuse-overlayfs 1.10 splits lowerdir at every colon, escaped or not; it resolves each piece before it uses it
    return short.name(path) if any(char in path for char in ":,\\") else path


def hand_over(request: MountRequest, host: Host) -> NoReturn:
    """Become fuse-overlayfs with exactly the arguments Podman gave. Returns only by an exception."""
    if host.fuse_overlayfs is None:
        raise _no_fuse_overlayfs("no layer of this image has a squash file")
    os.execv(host.fuse_overlayfs, [host.fuse_overlayfs, "-o", request.raw, request.target])  # noqa: S606 - that is the job


def _no_fuse_overlayfs(reason: str) -> HostError:
    return HostError(
        "fuse-overlayfs is needed for this container but is not installed.",
        details=reason,
        hint="as root: apt-get install fuse-overlayfs (dnf install fuse-overlayfs)",
    )


def recorded_kind(request: MountRequest) -> str:
    """Return the kind of overlay that wrote this container's upper layer before, "" for a new or read-only one.

    An upper layer with content but without our record was written by something else. fuse-overlayfs reads what both
    write (whiteouts as devices and as `.wh.` files, both kinds of opaque marks), kernel overlay only its own.
    """
    if request.work is None or request.upper is None:
        return ""
    try:
        with open(_record(request.work), encoding="utf-8") as file:
            kind = file.read(16)
    except FileNotFoundError:
        kind = ""
    if kind in {KERNEL, FUSE}:
        return kind
    with os.scandir(request.upper) as entries:
        return FUSE if next(entries, None) is not None else ""


def record_kind(request: MountRequest, kind: str) -> None:
    """Remember the kind beside the upper layer; Podman removes it with the container."""
    if request.work is not None:
        with open(_record(request.work), "w", encoding="utf-8") as file:
            file.write(kind)


def _record(work: str) -> str:
    return os.path.join(os.path.dirname(os.path.abspath(work)), _RECORD)
