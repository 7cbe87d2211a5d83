"""One log per container, which the user can read: Podman shows nothing of what a hook says.

    <state>/hooks/<container id>.log

A container's starts follow each other in its file. The oldest files go when there are more than KEPT.
"""

import os
import time

from squashmount.config import Config, load_config
from squashmount.errors import AmbiguousImageError, HostError, ImageNotFoundError, SquashmountError
from squashmount.runtime import state_dir

KEPT = 500
STATE, PODMAN = LATER = ("SQUASHMOUNT_HOOK_STATE", "SQUASHMOUNT_HOOK_PODMAN")
"""The variables that tell hooks of later stages, whose environment is empty otherwise, where the logs lie, and who is
Podman (pid and start time)."""

_LIMIT = 1 << 20  # bytes of one log; it is emptied then


def state(environ: dict[str, str]) -> str:
    """Return the state directory of this user. HostError when there is none."""
    try:
        return state_dir(Config(), environ)
    except HostError:
        # the configuration may name another place, but reading TOML costs more than the whole hook may
        return state_dir(load_config(environ), environ)


def directory(state: str) -> str:
    """Return where the logs lie."""
    return os.path.join(state, "hooks")


def write(state: str, container: str, lines: list[str]) -> None:
    """Append lines. A full disk never stops a container."""
    stamp = _stamp(time.time_ns())
    text = "".join(f"{stamp} {_one_line(line)}\n" for line in lines)
    folder = directory(state)
    path = os.path.join(folder, f"{container}.log")
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            if os.fstat(fd).st_size > _LIMIT:
                os.ftruncate(fd, 0)
            os.write(fd, text.encode(errors="backslashreplace"))
        finally:
            os.close(fd)
        _prune(folder)
    except OSError:
        return


def _stamp(now: int) -> str:
    """Return local time to the microsecond; `now` in ns."""
    seconds, rest = divmod(now, 10**9)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.localtime(seconds))}.{rest // 1000:06}"


def refused(error: SquashmountError) -> list[str]:
    """Return the lines that say why a container does not start."""
    return [f"refused: {line.strip()}" for line in str(error).splitlines()]


def _one_line(text: str) -> str:
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def _prune(folder: str) -> None:
    names = os.listdir(folder)
    if len(names) <= KEPT:
        return
    paths = [os.path.join(folder, name) for name in names]
    for path in sorted(paths, key=lambda path: os.lstat(path).st_mtime_ns)[: KEPT // 4]:
        os.unlink(path)


def read(state: str, container: str) -> str:
    """Return the log of a container given by its ID or the first digits of it.

    Raises ImageNotFoundError (exit code 3) when there is none, AmbiguousImageError (4) when several fit.
    """
    try:
        names = [name for name in os.listdir(directory(state)) if name.startswith(container) and name.endswith(".log")]
    except FileNotFoundError:
        names = []
    if not names or not container:
        raise ImageNotFoundError(
            f"There is no log of a container {container}.",
            details="the hook writes one when it finds something to do, or to refuse",
            hint="is the hook installed (squashmount-hooks list), and was an annotation given?",
        )
    if len(names) > 1:
        raise AmbiguousImageError(f"Several containers begin with {container}.", details="\n".join(sorted(names)))
    with open(os.path.join(directory(state), names[0]), encoding="utf-8", errors="replace") as file:
        return file.read()
