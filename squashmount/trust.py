"""Which files of the host may be believed: modules, hooks, policies, the site's configuration."""

import os
import stat

from .errors import UsageError

_OVERFLOW_UID = 65534
_MAX_LINKS = 40  # as many as the kernel follows (path_resolution(7))


class Trust:
    """Which files of the host nobody but root and the named owners could have changed.

    A file is trusted when it, and every directory on the way to it (links followed), has such an owner and cannot be
    written by group or others. A directory with the sticky bit is passed: nobody can replace another's file there
    (unlink(2), EPERM). Inside a user namespace all owners without a mapping look the same (user_namespaces(7)): root
    cannot be told from other users of the host, so there the check covers modes and the user's own files.
    """

    def __init__(self, owners: tuple[int, ...] = (), *, group_writable: bool = False) -> None:
        """Remember who is trusted besides root (uids); answers are remembered per directory."""
        self._owners = {0, *owners}
        if in_user_namespace():
            self._owners.add(_overflow_uid())
        self._mask = 0o002 if group_writable else 0o022
        self._known: dict[str, str] = {}

    def doubt(self, path: str) -> str:
        """Return why a path cannot be trusted, in a few words; "" when it can. A path that is not there can."""
        real = os.path.realpath(path)
        return self._doubt_of(real) or (self._links(path) if real != path else "")

    def _doubt_of(self, path: str) -> str:
        known = self._known.get(path)
        if known is None:
            parent = os.path.dirname(path)
            known = (self._doubt_of(parent) if parent != path else "") or self._own_doubt(path)
            self._known[path] = known
        return known

    def _links(self, path: str) -> str:
        # whoever owns a link, or can replace it in its directory, decides where it leads: for each that is followed
        left = os.path.join(os.getcwd(), path).split("/")[::-1]
        here, followed = "/", 0
        while left and followed < _MAX_LINKS:
            name = left.pop()
            step = (
                os.path.dirname(here) if name == ".." else os.path.join(here, name) if name not in {"", "."} else here
            )
            try:
                target = os.readlink(step)
                owner = os.lstat(step).st_uid
            except OSError:
                here = step
                continue
            followed += 1
            doubt = self._doubt_of(here) or ("" if owner in self._owners else f"{step!r} belongs to uid {owner}")
            if doubt:
                return doubt
            here = "/" if target.startswith("/") else here
            left += target.split("/")[::-1]
        return ""

    def _own_doubt(self, path: str) -> str:
        try:
            status = os.stat(path)
        except OSError:
            return ""
        if status.st_uid not in self._owners:
            return f"{path!r} belongs to uid {status.st_uid}"
        if stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
            return ""
        sticky = stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX
        if status.st_mode & self._mask and not sticky:
            who = "everybody" if status.st_mode & 0o002 else "its group"
            return f"{path!r} can be written by {who}"
        return ""


def in_user_namespace() -> bool:
    """Tell whether the ids seen here are not the host's (user_namespaces(7))."""
    with open("/proc/self/uid_map", "rb") as file:
        return file.read().split() != [b"0", b"0", b"4294967295"]


def _overflow_uid() -> int:
    try:
        with open("/proc/sys/kernel/overflowuid", "rb") as file:
            return int(file.read())
    except OSError:
        return _OVERFLOW_UID


def require_trusted(trust: Trust, path: str, what: str) -> None:
    """Raise UsageError when a file that steers what runs here could have been changed by others."""
    doubt = trust.doubt(path)
    if doubt:
        raise UsageError(
            f"The {what} {path} is not trusted.",
            details=doubt,
            hint="owner root (or a configured one); group and others must not write it, nor any directory above",
        )
