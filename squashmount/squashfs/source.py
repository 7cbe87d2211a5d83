"""The bytes of a squash file: checked reads, and the one way to say that they are wrong."""

import os
import stat

from squashmount.errors import DamagedError

HINT = "compare its sha256 with the one in capsule.json; if they differ, run `migrate2scratch mig` for the image again"


class Source:
    """Positioned reads within the first `limit` bytes of a descriptor; safe for threads (pread only)."""

    __slots__ = ("_fd", "limit", "name")

    def __init__(self, fd: int, name: str) -> None:
        """Use `fd`, which stays the caller's; the limit starts as the size of the file (or block device)."""
        self._fd = fd
        self.name = name
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

    def read_some(self, offset: int, size: int, end: int) -> bytes:
        """Return up to `size` bytes, fewer only before `end`."""
        return self.read(offset, max(0, min(size, end - offset)))

    def damaged(self, details: str) -> DamagedError:
        """Return (not raise) the error for a file whose bytes contradict the format."""
        return DamagedError(f"The squash file {self.name} is damaged.", details=details, hint=HINT)
