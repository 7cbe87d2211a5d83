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
