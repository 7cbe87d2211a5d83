"""Get a mounted /dev/fuse descriptor; who answers on it is not decided here.

Inside Podman's user namespace, or as root, mount(2) does it directly (kernel >= 4.18 for user namespaces). Ordinary
users outside of one need the setuid helper fusermount3. Options: kernel Documentation/filesystems/fuse.rst.
"""

import errno
import os

from squashmount import linux
from squashmount.errors import HostError

DEVICE = "/dev/fuse"
READ_ONLY = linux.MS_RDONLY | linux.MS_NODEV | linux.MS_NOSUID | linux.MS_NOATIME

_FUSERMOUNT_HINT = "install the package fuse3; fusermount3 must be setuid root, or run inside `podman unshare`"
_FSTYPES = ("fuse.squashmount", "fuse")


def mount_fuse(
    mountpoint: str,
    *,
    source: str,
    flags: int = READ_ONLY,
    allow_other: bool = True,
    default_permissions: bool = True,
    user_id: int | None = None,
    group_id: int | None = None,
) -> int:
    """Mount a FUSE file system and return the descriptor its server reads requests from (close-on-exec).

    `source` is what mountinfo shows in its first field. Nothing answers until somebody serves the descriptor; when
    the last copy of it is closed, every access fails with ENOTCONN. Raises HostError.

    `default_permissions` in a user namespace: the kernel's check then asks for POSIX ACLs, which a FUSE mount there
    refuses with EOPNOTSUPP for files of other owners (fs/fuse/acl.c, fuse_no_acl). Leave it off below an overlay,
    which checks permissions itself.
    """
    fd = _open_device()
    options = [
        f"fd={fd}",
        "rootmode=40000",
        f"user_id={os.geteuid() if user_id is None else user_id}",
        f"group_id={os.getegid() if group_id is None else group_id}",
    ]
    options += ["allow_other"] * allow_other + ["default_permissions"] * default_permissions
    try:
        _mount_first_known_type(source, mountpoint, flags, ",".join(options))
    except OSError as err:
        os.close(fd)
        raise HostError(
            f"Cannot mount a FUSE file system on {mountpoint}.", details=str(err), hint=_mount_hint(err.errno)
        ) from err
    return fd


def mount_fusermount(mountpoint: str, *, source: str, allow_other: bool = False) -> int:
    """As mount_fuse, for ordinary users outside of a user namespace: the setuid helper fusermount3 mounts.

    The user must own the mount point; `allow_other` needs `user_allow_other` in /etc/fuse.conf. Raises HostError, and
    ToolError when the helper is missing or refuses. Protocol: libfuse util/fusermount.c (_FUSE_COMMFD, SCM_RIGHTS).
    """
    import socket  # noqa: PLC0415 - never needed inside Podman's user namespace

    from squashmount import process  # noqa: PLC0415 - subprocess costs more than the mount

    # A comma or backslash in an option value is escaped by a backslash (util/fusermount.c, do_mount).
    name = source.replace("\\", "\\\\").replace(",", "\\,")
    options = ["ro", "nosuid", "nodev", "noatime", "default_permissions", "subtype=squashmount", f"fsname={name}"]
    options += ["allow_other"] * allow_other
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        environment = os.environ | {"_FUSE_COMMFD": str(theirs.fileno())}
        command = ("fusermount3", "-o", ",".join(options), "--", mountpoint)
        process.run(*command, env=environment, pass_fds=(theirs.fileno(),), timeout=30, hint=_FUSERMOUNT_HINT)
        # It has ended: the descriptor is in the socket already, or never will be.
        ours.setblocking(False)
        try:
            _, fds, _, _ = socket.recv_fds(ours, 1, 1)
        except BlockingIOError:
            fds = []
    if not fds:
        raise HostError(f"fusermount3 mounted {mountpoint} but gave no descriptor.", hint="update fuse3")
    os.set_inheritable(fds[0], False)
    return fds[0]


def unmount_fuse(mountpoint: str) -> None:
    """Take the mount out of the tree at once; users of it keep it until they let go. OSError, or ToolError."""
    try:
        linux.umount(mountpoint, linux.MNT_DETACH)
    except PermissionError:
        from squashmount import process  # noqa: PLC0415 - subprocess costs more than the mount

        process.run("fusermount3", "-u", "-z", "--", mountpoint, timeout=30, hint=_FUSERMOUNT_HINT)


def _open_device() -> int:
    try:
        return os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as err:
        if err.errno in {errno.ENOENT, errno.ENODEV, errno.ENXIO}:
            hint = "this kernel has no FUSE: as root `modprobe fuse` (and load it at boot)"
        elif err.errno in {errno.EACCES, errno.EPERM}:
            hint = f"as root `chmod 0666 {DEVICE}` (udev does this where it runs), or allow the device in the cgroup"
        else:
            hint = ""
        raise HostError(f"Cannot open {DEVICE}.", details=str(err), hint=hint) from err


def _mount_first_known_type(source: str, mountpoint: str, flags: int, options: str) -> None:
    # The subtype makes the mount recognisable in mountinfo; ENODEV is a kernel that does not take one.
    for fstype in _FSTYPES[:-1]:
        try:
            linux.mount(source, mountpoint, fstype, flags, options)
        except OSError as err:
            if err.errno != errno.ENODEV:
                raise
        else:
            return
    linux.mount(source, mountpoint, _FSTYPES[-1], flags, options)


def _mount_hint(code: int | None) -> str:
    if code in {errno.EPERM, errno.EACCES}:
        return "mounting needs root, or a user namespace on Linux 4.18 or newer: start it with `podman unshare`"
    if code == errno.EINVAL:
        return f"{DEVICE} must be opened in the user namespace that mounts, and the user must be mapped in it"
    if code == errno.ENODEV:
        return "this kernel has no FUSE: as root `modprobe fuse`"
    if code in {errno.ENOENT, errno.ENOTDIR}:
        return "the mount point must be an existing directory"
    if code == errno.ENOTCONN:
        return "a dead FUSE mount is in the way: `umount -l` it"
    if code in {errno.ENOSPC, errno.EMFILE}:
        return "too many mounts or open files: see /proc/sys/fs/mount-max and `ulimit -n`"
    return ""
