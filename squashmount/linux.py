"""System calls the standard library lacks: mount(2), umount2(2), unshare(2), setns(2).

Thin wrappers that raise OSError with the errno and the path concerned; what an errno means is the caller's business.
`os.unshare` and `os.setns` exist only since Python 3.12.
"""

import ctypes
import os

MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_REMOUNT = 0x20
MS_NOATIME = 0x400
MS_NODIRATIME = 0x800
MS_BIND = 0x1000
MS_MOVE = 0x2000
MS_REC = 0x4000
MS_SILENT = 0x8000
MS_UNBINDABLE = 1 << 17
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MS_SHARED = 1 << 20
MS_RELATIME = 1 << 21
MS_STRICTATIME = 1 << 24

MNT_FORCE = 0x1
MNT_DETACH = 0x2
UMOUNT_NOFOLLOW = 0x8

CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

PR_SET_PDEATHSIG = 1
SIGKILL = 9  # the signal module costs an import of enum at every container start

Name = str | bytes

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
_libc.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)
_libc.unshare.argtypes = (ctypes.c_int,)
_libc.setns.argtypes = (ctypes.c_int, ctypes.c_int)


def mount(source: Name | None, target: Name, fstype: Name | None, flags: int = 0, data: Name | None = None) -> None:
    """Mount a file system (man 2 mount). `data` is its option string; the kernel takes at most a page of it."""
    _check(_libc.mount(_raw(source), _raw(target), _raw(fstype), flags, _raw(data)), target)


def umount(target: Name, flags: int = 0) -> None:
    """Unmount (man 2 umount); MNT_DETACH waits for nobody."""
    _check(_libc.umount2(_raw(target), flags), target)


def unshare(flags: int) -> None:
    """Give this process namespaces of its own: CLONE_NEW* (man 2 unshare)."""
    _check(_libc.unshare(flags), None)


def setns(fd: int, flags: int = 0) -> None:
    """Enter the namespace `fd` refers to (man 2 setns); `flags` names the kind expected, 0 for any."""
    _check(_libc.setns(fd, flags), None)


def die_with_parent(parent: int) -> None:
    """Ask the kernel for SIGKILL when the parent *thread* ends (prctl(2), PR_SET_PDEATHSIG).

    `parent` is the pid it had before the fork: one that ended in between sends nothing, so we end here.
    """
    _check(_libc.prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0), None)
    if os.getppid() != parent:
        os._exit(1)


def _raw(value: Name | None) -> bytes | None:
    # ctypes cuts a string at its first NUL: another path than the one asked for would be mounted.
    raw = None if value is None else os.fsencode(value)
    if raw is not None and b"\0" in raw:
        raise ValueError("embedded null byte")
    return raw


def _check(result: int, path: Name | None) -> None:
    if result != 0:
        errno = ctypes.get_errno()
        raise OSError(errno, os.strerror(errno), path)
