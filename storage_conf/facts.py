"""Everything the checks judge, gathered once: files, effective values, places, program, stores."""

import errno
import os
import stat
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from squashmount.mountinfo import Mount

from .history import History, read_history
from .podman import Machine, engine_files, expand, storage_files, system_file
from .program import Program, read_program
from .store_facts import StoreFacts, read_store

_PARALLEL = frozenset({"lustre", "gpfs", "beegfs", "beegfs_nodev", "ceph", "panfs", "wekafs", "pvfs2", "orangefs"})
NETWORK = _PARALLEL | {"nfs", "nfs4", "9p", "cifs", "smb3", "afs", "glusterfs", "ocfs2", "gfs2"}
"""File system types that several nodes see (statfs names of /proc/self/mountinfo)."""

_LOCAL_FUSE = frozenset({"fuse.fuse-overlayfs", "fuse.squashfuse", "fuse.squashfuse_ll", "fuse.lxcfs", "fuseblk"})


@dataclass(frozen=True)
class ConfFile:
    """One file Podman reads; `problem` says why it has no data."""

    path: str
    data: dict[str, Any] = field(default_factory=dict)
    problem: str = ""
    owner: int = -1


@dataclass(frozen=True)
class Place:
    """A directory as configured (`raw`, empty: Podman's default), as Podman reads it, and what it lies on."""

    raw: str
    origin: str
    path: str
    fstype: str = ""
    target: str = ""
    flags: frozenset[str] = frozenset()
    writable: bool = True

    @property
    def shared(self) -> bool:
        """Tell whether several nodes see it, as far as the type of the file system says."""
        return self.fstype in NETWORK or (self.fstype.startswith("fuse.") and self.fstype not in _LOCAL_FUSE)


@dataclass(frozen=True)
class Facts:
    """All of it."""

    machine: Machine
    files: tuple[ConfFile, ...]
    system: ConfFile | None
    engine_files: tuple[ConfFile, ...]
    storage: dict[str, Any]
    engine: dict[str, Any]
    graphroot: Place
    runroot: Place
    history: History
    program: Program
    stores: tuple[StoreFacts, ...]
    runtime_dir: str  # ok, or what is wrong with XDG_RUNTIME_DIR


def gather(machine: Machine, mounts: Sequence[Mount], *, stores: bool = True) -> Facts:
    """Read what Podman would read for this user; what is in additional stores only with `stores`: they may hang."""
    files = tuple(read_conf(path) for path in storage_files(machine))
    system_path = system_file(machine)
    system = read_conf(system_path) if system_path else None
    inherited = system if system and _inherits(machine, files) else None
    storage = _inherited(inherited) if inherited else table(_merged(files), "storage")
    engine = tuple(read_conf(path) for path in engine_files(machine))
    origins = files or ((inherited,) if inherited else ())
    graphroot = place(machine, mounts, *_graphroot(machine, storage), origins)
    options = table(storage, "options")
    overlay = table(options, "overlay")
    program = str(overlay.get("mount_program") or options.get("mount_program") or "")
    named = options.get("additionalimagestores") if stores else None
    return Facts(
        machine=machine,
        files=files,
        system=system,
        engine_files=engine,
        storage=storage,
        engine=_merged(engine),
        graphroot=graphroot,
        runroot=place(machine, mounts, *_runroot(machine, storage), origins),
        history=read_history(graphroot.path),
        program=read_program(program),
        stores=tuple(read_store(item) for item in named if isinstance(item, str)) if isinstance(named, list) else (),
        runtime_dir=_runtime_dir(machine),
    )


def _runtime_dir(machine: Machine) -> str:
    if machine.example:
        return "ok"
    try:
        status = os.stat(machine.runtime_dir)
    except OSError as err:
        return f"cannot be used: {os.strerror(err.errno or 0)}" if machine.runtime_dir else "is not set"
    return "ok" if status.st_uid == machine.uid else "belongs to somebody else"


def read_conf(path: str) -> ConfFile:
    """Parse one file; whatever is wrong with it becomes `problem`."""
    try:
        with open_conf(path) as file:
            return ConfFile(path, tomllib.load(file), owner=os.fstat(file.fileno()).st_uid)
    except OSError as err:
        return ConfFile(path, problem=err.strerror or str(err))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as err:
        return ConfFile(path, problem=str(err))


def open_conf(path: str) -> BinaryIO:
    """Open a file for reading without waiting for the writer of a FIFO. OSError, also where it is no regular file."""
    number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    status = os.fstat(number)
    if not stat.S_ISREG(status.st_mode) and status.st_rdev != os.stat(os.devnull).st_rdev:  # that is a usual "none"
        os.close(number)
        raise OSError(errno.EINVAL, "it is not a regular file", path)
    return os.fdopen(number, "rb")


def _inherits(machine: Machine, files: tuple[ConfFile, ...]) -> bool:
    return machine.podman < 6 and machine.rootless and not files


def _inherited(system: ConfFile) -> dict[str, Any]:
    """Return what a rootless user of Podman <= 5 gets of the system file (getRootlessStorageOpts)."""
    storage = table(system.data, "storage")
    overlay = table(storage, "options", "overlay")
    got = {key: storage[key] for key in ("driver", "rootless_storage_path") if key in storage}
    chown = {key: overlay[key] for key in ("ignore_chown_errors",) if key in overlay}
    return got | ({"options": {"overlay": chown}} if chown else {})


def _merged(files: tuple[ConfFile, ...]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for file in files:
        merged = _overlaid(merged, file.data)
    return merged


def _overlaid(low: dict[str, Any], high: dict[str, Any]) -> dict[str, Any]:
    result = dict(low)
    for key, value in high.items():
        present = result.get(key)
        if isinstance(value, dict) and isinstance(present, dict):
            result[key] = _overlaid(present, value)
        elif isinstance(value, list) and isinstance(present, list) and {"append": True} in value:
            result[key] = present + [item for item in value if item != {"append": True}]  # configfile.Slice
        else:
            result[key] = value
    return result


def table(data: dict[str, Any], *keys: str) -> dict[str, Any]:
    """Return a table inside of tables; empty where there is none, or something else has its name."""
    for key in keys:
        value = data.get(key)
        data = value if isinstance(value, dict) else {}
    return data


def _graphroot(machine: Machine, storage: dict[str, Any]) -> tuple[str, str]:
    """Return the configured value and Podman's default."""
    home = machine.environ.get("XDG_DATA_HOME") or os.path.join(machine.home, ".local/share")
    if not machine.rootless:
        return str(storage.get("graphroot", "")), "/var/lib/containers/storage"
    # from a file named in CONTAINERS_STORAGE_CONF they take rootless_storage_path, not graphroot (tried: 4.3.1, 5.4.2)
    first = "" if machine.named_by_variable and machine.podman < 6 else storage.get("graphroot", "")
    return str(first or storage.get("rootless_storage_path", "")), os.path.join(home, "containers/storage")


def _runroot(machine: Machine, storage: dict[str, Any]) -> tuple[str, str]:
    if not machine.rootless:
        return str(storage.get("runroot", "")), "/run/containers/storage"
    default = session_dir(machine)
    named = machine.named_by_variable and machine.podman < 6  # ignored there, like graphroot
    return "" if named else str(storage.get("runroot", "")), os.path.join(default, "containers")


def session_dir(machine: Machine) -> str:
    """Return where Podman keeps a session's state (homedir.GetRuntimeDir; Podman 4: tried, also without systemd)."""
    if os.path.isdir(machine.runtime_dir):
        return machine.runtime_dir
    session = f"/run/user/{machine.uid}"
    before_5_needs_systemd = bool(storage_files(machine)) and not machine.named_by_variable
    if _owner(session) == machine.uid and (machine.podman >= 5 or not before_5_needs_systemd or _is_systemd()):
        return session
    name = "storage-run" if machine.podman >= 5 else "containers-user"
    return f"{machine.environ.get('TMPDIR') or '/tmp'}/{name}-{machine.uid}"  # noqa: S108 - Podman's own choice


def _owner(path: str) -> int:
    try:
        return os.stat(path).st_uid
    except OSError:
        return -1


def _is_systemd() -> bool:
    try:
        with open("/proc/1/comm", encoding="ascii") as file:
            return file.read().strip() == "systemd"
    except OSError:
        return False


def place(machine: Machine, mounts: Sequence[Mount], raw: str, default: str, files: tuple[ConfFile, ...]) -> Place:
    """Find out what a configured path means and lies on; it need not exist yet."""
    path = expand(raw, machine) if raw else default
    origin = next((file.path for file in reversed(files) if raw and raw in table(file.data, "storage").values()), "")
    real = _nearest(path)
    under = [mount for mount in mounts if _inside(real, mount.target)]
    mount = max(under, key=lambda item: len(item.target.rstrip("/")), default=None)
    if mount:  # the last one mounted on a point covers the others
        mount = [item for item in under if item.target == mount.target][-1]
    return Place(
        raw,
        origin,
        path,
        fstype=mount.fstype if mount else "",
        target=mount.target if mount else "",
        flags=_flags(real),
        writable=os.access(real, os.W_OK | os.X_OK) if machine.uid == os.geteuid() else True,
    )


def _nearest(path: str) -> str:
    real = os.path.realpath(path)
    while not os.path.isdir(real) and real != "/":
        real = os.path.dirname(real)
    return real


def _inside(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _flags(path: str) -> frozenset[str]:
    try:
        flags = os.statvfs(path).f_flag
    except OSError:
        return frozenset()
    bits = {"noexec": os.ST_NOEXEC, "nosuid": os.ST_NOSUID, "nodev": os.ST_NODEV, "ro": os.ST_RDONLY}
    return frozenset(name for name, bit in bits.items() if flags & bit)
