"""One run through a profile on a mount: look up, list, read ahead. Started by `prefetch`."""

import errno
import os
import stat
import time

from squashmount.lean import TYPE_CHECKING, suppress
from squashmount.profile import FILE, LINK, LIST, Need, Profile, squash_id

if TYPE_CHECKING:
    from .prefetch import Hot

_AHEAD = 24
"""Files that are being read at once: enough to keep a worker busy, too few to keep others waiting."""
_STEP = 128 << 10  # posix_fadvise reads no more than the read-ahead size of the mount at once (mm/readahead.c)
_LARGE = 1 << 20
_OPEN_DIRECTORIES = 256
_EVERY = 8
"""After so many needs it looks whether others want the processors."""
_PAUSE = 0.002
_PATIENCE = 0.5
"""Seconds: of one pause, and of all together. What the first container has read by then costs next to nothing."""
_GONE = frozenset({errno.ENOTCONN, errno.ECONNABORTED, errno.ENODEV})
_INSIDE = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
"""Never through a symbolic link, which would lead out of the image; a FIFO must not hold us."""


class Replay:
    """One run through a profile."""

    def __init__(self, hot: "Hot", budget: int) -> None:
        """Nothing is read."""
        self._hot = hot
        self._left = budget
        self._patience = _PATIENCE
        self._processors = os.cpu_count() or 1
        self._directories: dict[bytes, int] = {}
        self._reading: list[tuple[int, int]] = []
        self.counts = {"files": 0, "bytes": 0, "listings": 0, "names": 0, "missing": 0, "pauses": 0}

    def run(self, profile: Profile) -> None:
        """Meet the needs in their order. OSError when the mount is gone; what the image lacks is counted."""
        began = time.monotonic()
        try:
            if profile.squash == squash_id(self._hot.squash):
                self._read_extents(profile)
            self._meet_all(profile)
            self._wait(until=0)
        finally:
            # from here on the kernel knows better again, of large files for example
            os.posix_fadvise(self._hot.squash, 0, 0, os.POSIX_FADV_NORMAL)
        self.counts["milliseconds"] = round(1000 * (time.monotonic() - began))

    def _meet_all(self, profile: Profile) -> None:
        for number, need in enumerate(profile.needs):
            if self._left <= 0:
                break
            if number % _EVERY == 0:
                self._give_way()
            try:
                self._meet(self._directory(profile.directories[need.directory]), need)
            except OSError as err:
                if err.errno in _GONE:
                    raise
                self.counts["missing"] += 1

    def _give_way(self) -> None:
        """Pause while more is runnable than the machine has processors for."""
        while self._patience > 0:
            # proc(5), /proc/loadavg: the fourth field begins with the number of what is runnable now, us included
            with open("/proc/loadavg", "rb") as file:
                runnable = int(file.read(100).split()[3].partition(b"/")[0])
            if runnable <= self._processors + 2:
                return
            self._patience -= _PAUSE
            self.counts["pauses"] += 1
            time.sleep(_PAUSE)

    def _read_extents(self, profile: Profile) -> None:
        """Get the hot parts of the squash file into the page cache by few large requests."""
        # For the worker, too, which reads by the same open file: while this lasts it reads what is asked of it, and
        # the kernel's guesses would only add bytes.
        os.posix_fadvise(self._hot.squash, 0, 0, os.POSIX_FADV_RANDOM)
        # read(2), because posix_fadvise(WILLNEED) stops at the size of the read-ahead window (mm/readahead.c)
        left = min(self._left, os.fstat(self._hot.squash).st_size)  # whatever a damaged profile claims
        for position, size in profile.extents:
            for at in range(position, position + min(size, left), _LARGE):
                found = len(os.pread(self._hot.squash, min(_LARGE, position + size - at), at))
                left -= found
                if not found:
                    break

    def _meet(self, directory: int, need: Need) -> None:
        if need.kind == FILE:
            self._read_ahead(directory, need)
        elif need.kind == LIST:
            self._list(directory)
        elif need.kind == LINK:
            os.readlink(need.name, dir_fd=directory)
        else:
            with suppress(FileNotFoundError):
                os.stat(need.name, dir_fd=directory, follow_symlinks=False)
            self.counts["names"] += 1

    def _directory(self, path: bytes) -> int:
        """Return a descriptor of a directory, opened name by name: none of them may be a link."""
        if len(self._directories) > _OPEN_DIRECTORIES:
            for fd in self._directories.values():
                os.close(fd)
            self._directories.clear()
        at, fd = b"", self._hot.root
        if path in self._directories:
            return self._directories[path]
        for name in path.split(b"/") if path else ():
            at += b"/" + name if at else name
            known = self._directories.get(at)
            fd = os.open(name, os.O_PATH | os.O_DIRECTORY | _INSIDE, dir_fd=fd) if known is None else known
            self._directories[at] = fd
        return fd

    def _list(self, directory: int) -> None:
        fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
        try:
            self.counts["names"] += len(os.listdir(fd))
        finally:
            os.close(fd)
        self.counts["listings"] += 1

    def _read_ahead(self, directory: int, need: Need) -> None:
        """Let the kernel read the ranges of a file; wait for an older file if too many are being read."""
        fd = os.open(need.name, os.O_RDONLY | _INSIDE, dir_fd=directory)
        self._reading.append((fd, 0))
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        for start, end in zip(need.ranges[::2], need.ranges[1::2], strict=True):
            for at in range(start, min(end, info.st_size, start + self._left), _STEP):
                count = min(_STEP, end - at, info.st_size - at, self._left)
                os.posix_fadvise(fd, at, count, os.POSIX_FADV_WILLNEED)
                self._left -= count
                self.counts["bytes"] += count
                self._reading[-1] = (fd, at)
        self.counts["files"] += 1
        self._wait(until=_AHEAD)

    def _wait(self, until: int) -> None:
        while len(self._reading) > until:
            fd, last = self._reading.pop(0)
            with suppress(OSError):  # an error is the reader's business, not ours
                os.pread(fd, 1, last)
            os.close(fd)
