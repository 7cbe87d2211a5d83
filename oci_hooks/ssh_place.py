"""Stage createContainer of the module ssh: its files, in a file system of the container's that dies with it."""

import os

from squashmount.errors import SquashmountError, UsageError
from squashmount.lean import Any, NamedTuple, suppress

from . import ssh_files
from .hostlist import expanded
from .leanjson import loads
from .tree import DirectoryTree

_BIG_ENOUGH = 4 << 20


class File(NamedTuple):
    """One file: `mine` belongs to the container's user and nobody else reads it."""

    name: str
    text: str
    mode: int = 0o644
    mine: bool = False


def place_files(arguments: list[str], state: dict[str, Any]) -> None:
    """Write everything for the container whose state the runtime tells. SquashmountError when it cannot be."""
    (path,) = arguments
    handed = _taken(path)
    try:
        _place(state, handed)
    except OSError as err:
        raise SquashmountError("The files for ssh cannot be written into the container.", details=str(err)) from err


def _place(status: dict[str, Any], handed: dict[str, Any]) -> None:
    bundle = status.get("bundle", "")
    if not os.path.isabs(bundle):
        raise UsageError(f"The container's state names no absolute bundle, but {bundle!r}.")
    with open(os.path.join(bundle, "config.json"), "rb") as file:
        config = loads(file.read(), where="config.json")
    with DirectoryTree(os.path.join(bundle, config["root"]["path"])) as root:
        _write(root, handed, config["process"].get("env") or [])


def _taken(path: str) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            handed: dict[str, Any] = loads(file.read(_BIG_ENOUGH), where=path)
        os.unlink(path)
    except OSError as err:
        raise SquashmountError("What precreate left for ssh cannot be read.", details=str(err)) from err
    return handed


def files(handed: dict[str, Any], env: list[str]) -> list[File]:
    """Return all files of one container."""
    identity, identity_public, host, host_public = handed["keys"]
    port, watched, programs = handed["port"], handed["watched"], handed["programs"].split()
    hosts: list[str] = []
    with suppress(ValueError):  # our settings hold for all hosts then
        hosts = expanded(handed["nodes"])
    if hosts:
        hosts = [*hosts, *(f"{name}.*" for name in hosts), "localhost", os.uname().nodename]
    return [
        File("start", ssh_files.start(env, port=port, strict=handed["strict"], watched=watched), 0o600, mine=True),
        *([File("watch", ssh_files.WATCH)] if watched else []),
        File("session", ssh_files.session(env), 0o600, mine=True),
        File("id", identity, 0o600, mine=True),
        File("host", host, 0o600, mine=True),
        File("authorized_keys", identity_public),
        File("known_hosts", ssh_files.known_hosts(host_public)),
        File("sshd_config", ssh_files.sshd_config(port, programs)),
        File("ssh_config", ssh_files.ssh_config(hosts, handed["first"])),
        File("image_ssh_config", handed["own_config"]),
        *(
            File(f"bin/{name}", ssh_files.wrapper(name, programs, named=bool(handed["argv0"])), 0o755)
            for name in programs
            if name != "env"
        ),
    ]


def _write(root: DirectoryTree, handed: dict[str, Any], env: list[str]) -> None:
    uid, gid = handed["owner"]
    top = root.open_fd(handed["place"], os.O_RDONLY | os.O_DIRECTORY)
    try:
        above = root.stat("/")
        if above is None or os.fstat(top).st_dev == above.st_dev:
            raise UsageError(f"Nothing is mounted on {handed['place']}: no key is written into the image.")
        os.mkdir("bin", 0o755, dir_fd=top)
        os.mkdir("run", 0o700, dir_fd=top)
        os.chown("run", uid, gid, dir_fd=top)
        for file in files(handed, env):
            fd = os.open(file.name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=top)
            try:
                with open(fd, "wb", closefd=False) as out:
                    out.write(file.text.encode("utf-8", "surrogateescape"))
                if file.mine:
                    os.fchown(fd, uid, gid)
                os.fchmod(fd, file.mode)
            finally:
                os.close(fd)
    finally:
        os.close(top)
