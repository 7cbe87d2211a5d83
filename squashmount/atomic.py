"""Files are replaced, never edited: temp in the same directory, write, fsync, rename (rename(2) is atomic)."""

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO

TEMP_PREFIX = ".tmp-"
"""Unfinished files start with this; whoever owns a directory may delete them when it holds the lock."""


@contextmanager
def replacing(path: str, *, mode: int = 0o644) -> Iterator[BinaryIO]:
    """Yield a file that becomes `path` when the block ends without an exception, and vanishes otherwise.

    The new file has exactly `mode`, whatever the umask: other users and nodes must be able to read it.
    Raises OSError as open(2), fsync(2) and rename(2) do, and for a device or pipe: /dev/null must stay what it is.
    """
    _refuse_special(path)
    temp = os.path.join(os.path.dirname(path), f"{TEMP_PREFIX}{secrets.token_hex(8)}")
    try:
        with open(temp, "xb") as file:
            os.fchmod(file.fileno(), mode)
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.rename(temp, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temp)
        raise
    sync_directory(os.path.dirname(path))


def _refuse_special(path: str) -> None:
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode) or stat.S_ISDIR(mode)):
        raise OSError(errno.EINVAL, "it is a device, pipe or socket, not a file", path)


def replace_text(path: str, text: str, *, mode: int = 0o644) -> None:
    """Make `path` contain exactly `text`, in one step."""
    with replacing(path, mode=mode) as file:
        file.write(text.encode())


def sync_directory(path: str) -> None:
    """Make a rename in `path` durable (fsync(2), "Calling fsync() does not necessarily ensure that the entry…")."""
    fd = os.open(path or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
