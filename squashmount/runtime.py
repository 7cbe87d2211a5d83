"""Where the servers of this user keep their state on this node, and the log.

    <state>/log, log.1                 what was mounted and why; bounded
    <state>/whiteouts/<hash>           remembered answers of `has_whiteout_files` for immutable layers
    <state>/<key>/                     one server
        lock                           flock: shared while a container is being mounted, exclusive to start or end it
        alive                          flock held by the server as long as it lives
        m/                             the mount point
        empty/                         second lower for read-only kernel overlays
        leases/<hash>                  one per mounted target; contains the target's path
        info.json, stats.json          for `squashmount ps`

The state is node-local (flock and FUSE need it); nothing predictable in /tmp.
"""

import os
import time

from .config import Config
from .errors import HostError
from .idmap import read_id_map, to_outside
from .lean import NamedTuple, fnv1a, json_text, suppress

LOG_BYTES = 1 << 20
_LEVELS = {"error": 0, "info": 1, "debug": 2}


def state_dir(config: Config, environ: dict[str, str]) -> str:
    """Return the state directory, made with mode 0700 if missing.

    The configured one, else below XDG_RUNTIME_DIR (Podman passes it on), else below /run for root. Raises HostError
    when there is none or when it belongs to somebody else.
    """
    path = config.runtime_dir.replace("$UID", str(outside_uid())) or _default(environ)
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
        info = os.stat(path)
    except OSError as err:
        raise HostError(
            f"Cannot use {path} for the state of the servers.",
            details=str(err),
            hint="set XDG_RUNTIME_DIR (or runtime_dir in the configuration) to a directory of yours on this node",
        ) from err
    if info.st_uid != os.geteuid() or info.st_mode & 0o022:
        raise HostError(
            f"{path} belongs to somebody else or can be written by others.",
            hint=f"remove it, or set runtime_dir in the configuration; expected owner {outside_uid()}, mode 0700",
        )
    return path


def _default(environ: dict[str, str]) -> str:
    runtime = environ.get("XDG_RUNTIME_DIR")
    # Podman's rootful service may inherit a user's variable through sudo: trust it only if it is ours
    if runtime and os.path.isabs(runtime) and _is_ours(runtime):
        return os.path.join(runtime, "squashmount")
    outside = environ.get("_CONTAINERS_ROOTLESS_UID")
    if outside and outside.isdigit() and _is_ours(f"/run/user/{outside}"):
        return f"/run/user/{outside}/squashmount"
    return "/run/squashmount"


def outside_uid() -> int:
    """Return the user's id as the machine knows it."""
    # inside Podman's namespace everybody is 0; the map says who that is outside (user_namespaces(7))
    outside = to_outside(read_id_map("/proc/self/uid_map"), os.geteuid())
    return os.geteuid() if outside is None else outside


def _is_ours(path: str) -> bool:
    try:
        return os.stat(path).st_uid == os.geteuid()
    except OSError:
        return False


class Log:
    """Appends lines to the log at `path`; when it passes LOG_BYTES it is kept as log.1."""

    def __init__(self, state: str, level: str) -> None:
        """Remember where; the file is opened per line, so that a rename by another process is seen."""
        self.path = os.path.join(state, "log")
        self._level = _LEVELS[level]

    def __call__(self, line: str, *, level: str = "info") -> None:
        """Write one line. A full disk or a vanished directory never stops a mount."""
        if _LEVELS[level] > self._level:
            return
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S")
        text = f"{stamp} {level} {os.getpid()} {line}".replace("\n", "\n    ") + "\n"
        try:
            fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                os.write(fd, text.encode(errors="backslashreplace"))
                if os.fstat(fd).st_size > LOG_BYTES:
                    os.rename(self.path, f"{self.path}.1")
            finally:
                os.close(fd)
        except OSError:
            return

    def detail(self, line: str) -> None:
        """Write one line if the level is debug."""
        self(line, level="debug")

    def fail(self, line: str) -> None:
        """Write one line at every level."""
        self(line, level="error")


def remembered_whiteouts(state: str, path: str) -> bool:
    """`has_whiteout_files`, remembered per layer directory: image layers never change once Podman has made them."""
    from .lowers import has_whiteout_files  # noqa: PLC0415 - only builds on top of a squash come here

    info = os.stat(path)
    name = fnv1a(os.fsencode(f"{path}\0{info.st_dev}\0{info.st_ino}\0{info.st_mtime_ns}"))
    answer = os.path.join(state, "whiteouts", name)
    try:
        with open(answer, encoding="utf-8") as file:
            return file.read(1) != "0"
    except FileNotFoundError:
        found = has_whiteout_files(path)
    os.makedirs(os.path.dirname(answer), mode=0o700, exist_ok=True)
    with open(answer, "w", encoding="utf-8") as file:
        file.write("1" if found else "0")
    return found


class Report(NamedTuple):
    """A file in a server's directory that others read: counters, written anew as a whole.

    By descriptor: the path may be another server's by then, when this one only waits for its last container.
    """

    directory: int
    name: str

    @classmethod
    def of(cls, path: str) -> "Report":
        """Open the directory that `path` is in, for ever. OSError as open(2)."""
        where, name = os.path.split(path)
        return cls(os.open(where, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), name)

    def write(self, counts: dict[str, int]) -> None:
        """Replace the content; a server whose directory is gone has nobody who asks."""
        temp = f"{self.name}.new"
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        with suppress(OSError):
            with open(os.open(temp, flags, 0o600, dir_fd=self.directory), "w", encoding="utf-8") as file:
                file.write(json_text(counts))
            os.rename(temp, self.name, src_dir_fd=self.directory, dst_dir_fd=self.directory)
