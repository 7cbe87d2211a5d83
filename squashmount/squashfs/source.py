"""The bytes of a squash file: checked reads, and the one way to say that they are wrong."""

import os
import stat

from squashmount.errors import DamagedError

from .generations import Generations

HINT = "compare its sha256 with the one in capsule.json; if they differ, run `migrate2scratch mig` for the image again"


WINDOW = 128 << 10
"""Bytes read at once where small pieces lie close together: a request to a parallel file system costs as much as 1 MiB
of its bandwidth, and an image of 16,000 files has two such windows of metadata."""
_CACHED_WINDOWS = 8


class Source:
    """Positioned reads within the first `limit` bytes of a descriptor; safe for threads (pread only)."""

    __slots__ = ("_fd", "_windows", "limit", "name")

    def __init__(self, fd: int, name: str) -> None:
        """Use `fd`, which stays the caller's; the limit starts as the size of the file (or block device)."""
        self._fd = fd
        self.name = name
        self._windows: Generations[int, bytes] = Generations(_CACHED_WINDOWS)
        info = os.fstat(fd)
        self.limit = info.st_size if stat.S_ISREG(info.st_mode) else os.lseek(fd, 0, os.SEEK_END)

    def read(self, offset: int, size: int) -> bytes:
        """Return exactly `size` bytes; DamagedError when the file does not have them, OSError when reading fails."""
        if offset < 0 or offset + size > self.limit:
            raise self.damaged(f"{size} bytes at {offset} lie outside of its {self.limit} bytes")
        data = os.pread(self._fd, size, offset)
        while len(data) < size:
            more = os.pread(self._fd, size - len(data), offset + len(data))
            if not more:
                raise self.damaged(f"it ends at {offset + len(data)}, {self.limit} bytes were expected")
            data += more
        return data

    def read_near(self, offset: int, size: int) -> bytes:
        """As read, for small pieces whose neighbours will be wanted, too: one request reads a whole window of the file.

        At most 2 x 8 windows of 128 KiB are kept.
        """
        if offset < 0 or size < 1 or offset + size > self.limit:
            return self.read(offset, size)
        try:
            windows = [self._window(number) for number in range(offset // WINDOW, (offset + size - 1) // WINDOW + 1)]
        except OSError:
            return self.read(offset, size)  # perhaps only a neighbour cannot be read
        within = offset % WINDOW
        data = (windows[0] if len(windows) == 1 else b"".join(windows))[within : within + size]
        return data if len(data) == size else self.read(offset, size)

    def _window(self, number: int) -> bytes:
        found = self._windows.get(number)
        if found is None:
            found = os.pread(self._fd, WINDOW, number * WINDOW)
            if len(found) == WINDOW or number == self.limit // WINDOW:  # a short read is worth another try
                self._windows.put(number, found)
        return found

    def damaged(self, details: str) -> DamagedError:
        """Return (not raise) the error for a file whose bytes contradict the format."""
        return DamagedError(f"The squash file {self.name} is damaged.", details=details, hint=HINT)
