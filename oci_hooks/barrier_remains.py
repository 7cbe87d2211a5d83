"""What a barrier leaves behind on a file system, and taking that away without touching anything else.

The directory of barriers may lie below one that users keep their data in. Therefore a directory is removed only when
its name is a barrier's, it belongs to us, and all that is in it is what `barrier` makes: empty files, and `state`.
"""

import errno
import os
import stat

from squashmount.lean import Callable, suppress

_KINDS = ("task", "node")
_WORD = 16  # hexadecimal digits of the random word
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def remove_old(top: int, now: float, age: float) -> None:
    """Remove from the directory `top` what is older than `age` seconds at the time `now`. OSError of listing it."""
    for name in os.listdir(top):
        if is_barrier(name):
            with suppress(OSError):
                if now - os.lstat(name, dir_fd=top).st_mtime > age:
                    remove(name, top)


def is_barrier(name: str) -> bool:
    """Tell whether a name is JOB.STEP.RESTART.KIND, or .JOB.STEP.RESTART.KIND.WORD of one that is not open."""
    parts = name.removeprefix(".").split(".")
    if name.startswith("."):
        word = parts.pop()
        if len(word) != _WORD or word.strip("0123456789abcdef"):
            return False
    return len(parts) == 4 and all(_is_number(part) for part in parts[:3]) and parts[3] in _KINDS


def remove(name: str, top: int) -> None:
    """Remove a barrier's directory from `top`, or nothing when anything in it is not a barrier's.

    What others remove meanwhile, or will not go, is passed over.
    """
    with suppress(OSError):
        fd = os.open(name, _DIRECTORY, dir_fd=top)
        try:
            _check(fd, stat.S_ISDIR)
            for path in _contents(fd):
                with suppress(OSError):
                    if path.endswith("/"):
                        os.rmdir(path, dir_fd=fd)
                    else:
                        os.unlink(path, dir_fd=fd)
        finally:
            os.close(fd)
        os.rmdir(name, dir_fd=top)


def _contents(fd: int) -> list[str]:
    """Return what to remove, in order; directories end with a slash. ENOTEMPTY for what no barrier has made."""
    found: list[str] = []
    names = os.listdir(fd)
    if names and "state" not in names:
        raise OSError(errno.ENOTEMPTY, "no state")
    for name in names:
        level, _, group = name.partition(".")
        if _is_number(level) and _is_number(group):
            found += [*_arrivals(fd, name), f"{name}/"]
        elif name == "end":
            _check_file(fd, name)
            found.append(name)
        elif name != "state":
            raise OSError(errno.ENOTEMPTY, "no barrier's", name)
    if names:
        _check_state(fd)
        # the last to go: without it what is left could not be told from others' any more
        found.append("state")
    return found


def _arrivals(above: int, folder: str) -> list[str]:
    try:
        fd = os.open(folder, _DIRECTORY, dir_fd=above)
    except FileNotFoundError:
        return []
    try:
        _check(fd, stat.S_ISDIR)
        names = os.listdir(fd)
        for name in names:
            if not _is_number(name.partition("@")[0]):
                raise OSError(errno.ENOTEMPTY, "no barrier's", name)
            _check_file(fd, name)
    finally:
        os.close(fd)
    return [f"{folder}/{name}" for name in names]


def _check_file(fd: int, name: str) -> None:
    with suppress(FileNotFoundError):
        found = os.lstat(name, dir_fd=fd)
        if not stat.S_ISREG(found.st_mode) or found.st_size or found.st_uid != os.geteuid():
            raise OSError(errno.ENOTEMPTY, "no barrier's", name)


def _check_state(above: int) -> None:
    try:
        # a FIFO must not hold us up
        fd = os.open("state", os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above)
    except FileNotFoundError:
        return
    with open(fd, "rb", buffering=0) as file:
        _check(fd, stat.S_ISREG)
        text = file.read(_WORD + 1)
    # empty: its maker died before writing
    if text and (len(text) != _WORD + 1 or text.strip(b"0123456789abcdef") != b"\n"):
        raise OSError(errno.ENOTEMPTY, "no barrier's", "state")


def _check(fd: int, is_kind: Callable[[int], bool]) -> None:
    found = os.fstat(fd)
    if not is_kind(found.st_mode) or found.st_uid != os.geteuid():
        raise OSError(errno.ENOTEMPTY, "no barrier's")


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal()
