"""The files of an image (or of the host) seen from outside: whatever its links say, nothing beyond its root is reached.

Paths are absolute inside the tree. Every symbolic link is followed as the container would follow it: an absolute one
starts at the tree's root, and `..` stops there (openat2(2), RESOLVE_IN_ROOT).
"""

import ctypes
import errno
import io
import os
import stat

from squashmount.errors import HostError
from squashmount.lean import TYPE_CHECKING, Callable, NamedTuple, Self

if TYPE_CHECKING:
    from typing import BinaryIO, Protocol

    from squashmount.squashfs.image import SquashImage
    from squashmount.squashfs.inodes import Inode
else:
    Protocol = object

MAX_LINKS = 40
"""As the kernel (path_resolution(7), "Upper limit")."""

_SYS_OPENAT2 = 437  # the same number on every architecture since Linux 5.6
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_IN_ROOT = 0x10
_RETRIES = 8


class Target(NamedTuple):
    """Where a path leads in the tree: its real path, and what is there ("" for nothing yet).

    `dangling`: a link on the way leads to something that is not there.
    """

    path: str
    kind: str
    dangling: bool = False


class Tree(Protocol):
    """What planners read. A path that cannot be resolved is absent (`trouble` says why); no method leaves the root."""

    def resolve(self, path: str) -> str | None:
        """Return the real path inside the tree with every link followed; None when it leads nowhere."""

    def trouble(self, path: str) -> str:
        """Return why `resolve` gives None; "" when it does not."""

    def target(self, path: str) -> Target:
        """Return where something made at `path` would lie; OSError when no place can be told (a circle of links)."""

    def open(self, path: str) -> "BinaryIO":
        """Open a regular file for reading; OSError for everything else, and never waits for a FIFO's writer."""

    def listdir(self, path: str) -> list[str]:
        """Return the names in a directory, sorted; OSError as os.listdir."""

    def kind(self, path: str) -> str:
        """Return what a path leads to: "file", "dir", "other", or "" for nothing."""

    def size(self, path: str) -> int:
        """Return the size of a regular file, bytes; OSError when there is none."""


def kind_of(mode: int) -> str:
    """Return the word for a file's mode."""
    return "file" if stat.S_ISREG(mode) else "dir" if stat.S_ISDIR(mode) else "other"


class _Paths:
    """What follows from `target` alone."""

    def target(self, path: str) -> Target:
        """As Tree.target."""
        raise NotImplementedError

    def resolve(self, path: str) -> str | None:
        """As Tree.resolve."""
        try:
            found = self.target(path)
        except OSError:
            return None
        return found.path if found.kind else None

    def trouble(self, path: str) -> str:
        """As Tree.trouble."""
        try:
            found = self.target(path)
        except OSError as err:
            return f"{err.strerror or err}"
        if found.kind:
            return ""
        same = found.path == os.path.normpath(path)
        return "does not exist" if same else f"leads to {found.path!r}, which does not exist"


class DirectoryTree(_Paths):
    """A directory as a tree: the root file system of a container, or `/` of the host."""

    def __init__(self, root: str) -> None:
        """Open the root, which is kept open until `close`. HostError when it is not a directory we may search."""
        self.root = root
        try:
            self._fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as err:
            raise HostError(
                f"{root} cannot be used as a root file system.",
                details=str(err),
                hint="name a directory that you may enter, which holds usr, etc and so on",
            ) from err
        self._base = os.readlink(f"/proc/self/fd/{self._fd}").rstrip("/")

    def close(self) -> None:
        """Close the root."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def target(self, path: str) -> Target:
        """As Tree.target."""
        try:
            fd = self.open_fd(path, os.O_PATH)
        except OSError as err:
            if err.errno != errno.ENOENT:
                raise
            return _walked(path, self._probe)
        try:
            real = os.readlink(f"/proc/self/fd/{fd}")
            kind = kind_of(os.fstat(fd).st_mode)
        finally:
            os.close(fd)
        if real == self._base or real.startswith(f"{self._base}/"):
            return Target(real[len(self._base) :] or "/", kind)
        # the root was renamed, or is seen from another mount namespace: /proc shows another prefix
        return _walked(path, self._probe)

    def _probe(self, path: str) -> tuple[str, str]:
        # `path` holds no links: all above were resolved; one put there meanwhile is refused by O_NOFOLLOW
        parent, name = os.path.split(path)
        directory = self.open_fd(parent, os.O_PATH | os.O_DIRECTORY)
        try:
            fd = os.open(name or ".", os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
            try:
                mode = os.fstat(fd).st_mode
                return ("link", os.readlink("", dir_fd=fd)) if stat.S_ISLNK(mode) else (kind_of(mode), "")
            finally:
                os.close(fd)
        finally:
            os.close(directory)

    def open(self, path: str) -> "BinaryIO":
        """As Tree.open."""
        # O_PATH first: opening a device can have effects, and a FIFO is no error before it is read
        fd = self.open_fd(path, os.O_PATH)
        try:
            mode = os.fstat(fd).st_mode
            if not stat.S_ISREG(mode):
                number = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
                raise OSError(number, "is not a regular file", path)
            return open(f"/proc/self/fd/{fd}", "rb")
        finally:
            os.close(fd)

    def listdir(self, path: str) -> list[str]:
        """As Tree.listdir."""
        fd = self.open_fd(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            return sorted(os.listdir(fd))
        finally:
            os.close(fd)

    def kind(self, path: str) -> str:
        """As Tree.kind."""
        status = self.stat(path)
        return kind_of(status.st_mode) if status else ""

    def size(self, path: str) -> int:
        """As Tree.size."""
        status = self.stat(path)
        if status is None or not stat.S_ISREG(status.st_mode):
            raise OSError(errno.ENOENT, "is not a regular file", path)
        return status.st_size

    def stat(self, path: str) -> os.stat_result | None:
        """Return the status of what a path leads to; None for nothing."""
        try:
            fd = self.open_fd(path, os.O_PATH)
        except OSError:
            return None
        try:
            return os.fstat(fd)
        finally:
            os.close(fd)

    def open_fd(self, path: str, flags: int, mode: int = 0) -> int:
        """Open any path inside the root as open(2) would after chroot(2); magic links of /proc are ELOOP."""
        if "\0" in path:
            raise OSError(errno.EINVAL, "embedded null byte", path)
        fd = _openat2(self._fd, path, flags | os.O_CLOEXEC, mode)
        if fd is None:
            return self._open_by_steps(path, flags | os.O_CLOEXEC, mode)
        return fd

    def _open_by_steps(self, path: str, flags: int, mode: int) -> int:
        # a kernel before 5.6, or a seccomp filter of that age
        dirs = [os.dup(self._fd)]
        links = 0
        parts = [part for part in path.split("/") if part][::-1]
        try:
            while parts:
                part = parts.pop()
                if part == "..":
                    if len(dirs) > 1:
                        os.close(dirs.pop())
                    continue
                if part == ".":
                    continue
                if not parts and flags & os.O_CREAT and not _is_there(part, dirs[-1]):
                    return os.open(part, flags | os.O_EXCL | os.O_NOFOLLOW, mode, dir_fd=dirs[-1])
                step = os.open(part, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dirs[-1])
                if not stat.S_ISLNK(os.fstat(step).st_mode):
                    dirs.append(step)
                    continue
                try:
                    text = os.readlink("", dir_fd=step)
                finally:
                    os.close(step)
                links += 1
                if links > MAX_LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
                if text.startswith("/"):
                    while len(dirs) > 1:
                        os.close(dirs.pop())
                parts += [name for name in text.split("/") if name][::-1]
            if flags & os.O_PATH:
                return os.dup(dirs[-1])
            if flags & os.O_CREAT and flags & os.O_EXCL:
                raise OSError(errno.EEXIST, os.strerror(errno.EEXIST), path)
            return os.open(f"/proc/self/fd/{dirs[-1]}", flags & ~os.O_NOFOLLOW)
        finally:
            for fd in dirs:
                os.close(fd)


def _is_there(name: str, directory: int) -> bool:
    try:
        os.lstat(name, dir_fd=directory)
    except FileNotFoundError:
        return False
    return True


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


_libc = ctypes.CDLL(None, use_errno=True)


def _openat2(root: int, path: str, flags: int, mode: int) -> int | None:
    """Call openat2(2) inside `root`; None when this kernel has it not."""
    how = _OpenHow(flags, mode, _RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS)
    name = ctypes.c_char_p(os.fsencode(path))
    for _ in range(_RETRIES):
        fd: int = _libc.syscall(_SYS_OPENAT2, root, name, ctypes.byref(how), ctypes.c_size_t(ctypes.sizeof(how)))
        if fd >= 0:
            return fd
        number = ctypes.get_errno()
        if number == errno.ENOSYS:
            return None
        # EAGAIN: something was renamed or mounted meanwhile and the kernel cannot tell whether we left the root
        if number != errno.EAGAIN:
            raise OSError(number, os.strerror(number), path)
    raise OSError(errno.EAGAIN, "the root file system keeps changing", path)


class SquashTree(_Paths):
    """The tree in a squash file, read without mounting it."""

    def __init__(self, image: "SquashImage") -> None:
        """Read from `image`, which stays the caller's. Damage raises DamagedError wherever it is met."""
        self._image = image

    def target(self, path: str) -> Target:
        """As Tree.target."""
        return _walked(path, self._probe)

    def _probe(self, path: str) -> tuple[str, str]:
        inode = self._image.find(os.fsencode(path))
        if inode is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        if inode.kind == stat.S_IFLNK:
            return "link", os.fsdecode(self._image.readlink(inode))
        return kind_of(inode.kind), ""

    def _inode(self, path: str) -> "Inode":
        found = self.target(path)
        inode = self._image.find(os.fsencode(found.path)) if found.kind else None
        if inode is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return inode

    def open(self, path: str) -> "BinaryIO":
        """As Tree.open."""
        inode = self._inode(path)
        if inode.kind != stat.S_IFREG:
            raise OSError(errno.EISDIR if inode.kind == stat.S_IFDIR else errno.EINVAL, "is not a regular file", path)
        return io.BufferedReader(_SquashFile(self._image, inode), 1 << 16)

    def listdir(self, path: str) -> list[str]:
        """As Tree.listdir."""
        return sorted(os.fsdecode(entry.name) for entry in self._image.entries(self._inode(path)))

    def kind(self, path: str) -> str:
        """As Tree.kind."""
        try:
            return self.target(path).kind
        except OSError:
            return ""

    def size(self, path: str) -> int:
        """As Tree.size."""
        inode = self._inode(path)
        if inode.kind != stat.S_IFREG:
            raise OSError(errno.ENOENT, "is not a regular file", path)
        return inode.size


class _SquashFile(io.RawIOBase):
    def __init__(self, image: "SquashImage", inode: "Inode") -> None:
        self._image, self._inode, self._at = image, inode, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._inode.size}[whence]
        if base + offset < 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self._at = base + offset
        return self._at

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer).cast("B")  # type: ignore[arg-type]
        data = self._image.read(self._inode, self._at, len(view)) if self._at < self._inode.size else b""
        view[: len(data)] = data
        self._at += len(data)
        return len(data)


def _walked(path: str, probe: Callable[[str], tuple[str, str]]) -> Target:
    """Follow a path step by step; `probe` says what is at a path without links, FileNotFoundError for nothing.

    What is missing is taken for names to be made, as mkdir -p would; ELOOP after MAX_LINKS links, ENOTDIR below a file.
    """
    done: list[str] = []
    parts = [(part, False) for part in path.split("/") if part][::-1]
    links = 0
    kind = "dir"
    dangling = False
    while parts:
        part, of_link = parts.pop()
        if part == ".":
            continue
        if part == "..":
            done, kind = done[:-1], "dir"
            continue
        if kind not in {"dir", ""}:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
        here = "/" + "/".join([*done, part])
        try:
            # below something missing nothing can be
            found, text = probe(here) if kind else ("", "")
        except FileNotFoundError:
            found, text = "", ""
        if found != "link":
            done.append(part)
            kind = found
            dangling = dangling or (of_link and not found)
            continue
        links += 1
        if links > MAX_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
        if text.startswith("/"):
            done, kind = [], "dir"
        parts += [(step, True) for step in text.split("/") if step][::-1]
    return Target("/" + "/".join(done), kind, dangling and not kind)
