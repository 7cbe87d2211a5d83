"""The module ssh at precreate: the job's keys, and what the container's configuration must say besides the plan.

The keys are read here, where the hook still is the user for the shared file system: in the namespace of a container
with `--userns=keep-id` it is another one. They go to the next stage in a file of this node that the reader removes.
"""

import errno
import os
import socket

from squashmount.errors import HostError, SquashmountError, UsageError
from squashmount.lean import TYPE_CHECKING, Any, NamedTuple, suppress

from . import log, ssh_passwd
from .apply import has_namespace
from .leanjson import dumps
from .policy import Policy
from .ssh_keys import first_port, index_on_node, job_keys, job_name
from .ssh_places import CONFIG, PLACE, PORT_VARIABLE, SHELL, WORD

if TYPE_CHECKING:
    from .tree import DirectoryTree

_NEEDED = ("CAP_SETUID", "CAP_SETGID", "CAP_SYS_CHROOT")
_BIGGEST_CONFIG = 1 << 18
_FORGOTTEN = 3600  # seconds until a hand-over that nobody took is removed


class Start(NamedTuple):
    """One container that is to have an sshd; `told` is what the planner found."""

    config: dict[str, Any]
    told: dict[str, str]
    container: str


def prepare(start: Start, root: "DirectoryTree", policy: Policy, environ: dict[str, str], state: str) -> list[str]:
    """Return lines for the log; the configuration is changed by `edit`, and a file with the keys waits in `state`.

    SquashmountError says why there can be no sshd in this container.
    """
    annotations = start.config.get("annotations") or {}
    job = job_name(environ, annotations)
    first = first_port(job, policy.ssh_ports)
    port = first + index_on_node(environ, annotations)
    process = start.config["process"]
    user = process.get("user") or {}
    owner = (user.get("uid", 0), user.get("gid", 0))
    if root.target(PLACE).path != PLACE:
        raise UsageError(f"{PLACE} in the image leads to another place.")
    _check_port(start.config, port)
    lines = _check_user(start, root, owner[0])
    env = process["env"] = process.get("env") or []
    env.append(f"{PORT_VARIABLE}={first}")
    keys = job_keys(_expanded(policy.ssh_directory, environ), job)
    handed = {
        "place": PLACE,
        "port": port,
        "first": first,
        "owner": list(owner),
        "strict": policy.missing_required == "error",
        "watched": not has_namespace(start.config, "pid"),
        "programs": start.told["programs"],
        "argv0": start.told["argv0"],
        "nodes": environ.get("SLURM_JOB_NODELIST") or environ.get("SLURM_NODELIST") or "",
        "keys": list(keys),
        "own_config": _own_config(root),
    }
    _hand_over(_handed(state, start.container), handed)
    return [*lines, f"done: ssh: job {job}, port {port} of the job's {first} and following"]


def edit(start: Start, program: str, job: dict[str, str]) -> None:
    """Change the configuration: a file system for the files, the stage that writes them, and the command around it.

    `job` holds what hooks of later stages are told (`log.LATER`).
    """
    config = start.config
    mounts = config["mounts"] = config.get("mounts") or []
    options = ["nosuid", "nodev", "mode=0755", "size=16m"]
    # before what is mounted below
    _insert(mounts, {"destination": PLACE, "type": "tmpfs", "source": "tmpfs", "options": options})
    if not (config["process"].get("user") or {}).get("uid", 0):
        # root's sshd wants an empty directory of root's (sshd.c, "Missing privilege separation directory")
        options = ["ro", "nosuid", "nodev", "noexec", "mode=0755", "size=4k"]
        _insert(mounts, {"destination": start.told["chroot"], "type": "tmpfs", "source": "tmpfs", "options": options})
    hooks = config["hooks"] = config.get("hooks") or {}
    made = {"path": program, "args": [program, WORD, _handed(job[log.STATE], start.container)]}
    made["env"] = [f"{name}={job[name]}" for name in log.LATER if name in job]
    stage = hooks.setdefault("createContainer", [])
    if made not in stage:
        stage.append(made)
    command = config["process"]["args"]
    if command[:2] != [SHELL, f"{PLACE}/start"]:
        config["process"]["args"] = [SHELL, f"{PLACE}/start", *command]


def _check_port(config: dict[str, Any], port: int) -> None:
    """Raise HostError when somebody listens there. Known only in the host's network; else `start` finds out."""
    if has_namespace(config, "network") or _free(port):
        return
    raise HostError(
        f"Port {port}, where the sshd of this container would listen, is in use on this node.",
        details="by another container of the job, or by another job",
        hint="several containers started by one task: --annotation squashmount.ssh.index=1, 2, …",
    )


def _free(port: int) -> bool:
    for family, address in ((socket.AF_INET6, "::"), (socket.AF_INET, "0.0.0.0")):  # noqa: S104 - as sshd will
        try:
            with socket.socket(family, socket.SOCK_STREAM) as sock:
                # as sshd: connections that are ending do not count
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                sock.bind((address, port))
        except OSError as err:
            if err.errno == errno.EADDRINUSE:
                return False
            if family == socket.AF_INET:
                raise
    return True


def _insert(mounts: list[Any], mount: dict[str, Any]) -> None:
    place = mount["destination"]
    if any(one.get("destination") == place for one in mounts):
        return
    below = (at for at, one in enumerate(mounts) if str(one.get("destination", "")).startswith(f"{place}/"))
    mounts.insert(next(below, len(mounts)), mount)


def _check_user(start: Start, root: "DirectoryTree", uid: int) -> list[str]:
    """See to it that sshd knows the container's user, and root's sshd the one it speaks with strangers as."""
    lines = []
    if uid == 0:
        _check_root(start.config)
        lines = ssh_passwd.for_root(start.config, root)
    ssh_passwd.check_shell(start.config, root, uid)
    return lines


def _check_root(config: dict[str, Any]) -> None:
    hint = "run it as yourself: --userns=keep-id"
    # Podman leaves the list out when it is empty
    capabilities = (config.get("process") or {}).get("capabilities")
    allowed = _NEEDED if capabilities is None else capabilities.get("bounding") or ()
    lacking = [name for name in _NEEDED if name not in allowed]
    if lacking:
        raise UsageError(
            "sshd cannot run as root in this container.", details=f"without {', '.join(lacking)}", hint=hint
        )
    with open("/proc/self/uid_map", "rb") as file:
        ids = sum(int(line.split()[2]) for line in file)
    if ids < 2:
        raise HostError(
            "sshd cannot run as root in a container with a single id.",
            hint="it needs subordinate ids of yours (/etc/subuid, /etc/subgid)",
        )


def _own_config(root: "DirectoryTree") -> str:
    """Return the image's settings for ssh, over which ours are mounted."""
    try:
        with root.open(CONFIG) as file:
            return file.read(_BIGGEST_CONFIG).decode("utf-8", "surrogateescape")
    except OSError:
        return ""


def _expanded(directory: str, environ: dict[str, str]) -> str:
    """Return a path that may begin with, or hold, $NAME of the job; UsageError when it is not absolute then."""
    steps = directory.split("/")
    lacking = [step for step in steps if step.startswith("$") and not environ.get(step[1:])]
    path = "/".join(environ.get(step[1:], "") if step.startswith("$") else step for step in steps)
    if lacking or not path.startswith("/") or ".." in path.split("/"):
        raise UsageError(
            f"ssh_directory {directory} is no absolute path.",
            details=f"not set: {' '.join(lacking)}" if lacking else f"it becomes {path!r}",
        )
    return path


def _handed(state: str, container: str) -> str:
    return os.path.join(state, "ssh", f"{container}.json")


def _hand_over(path: str, table: dict[str, Any]) -> None:
    folder = os.path.dirname(path)
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        _forget(folder)
        with suppress(FileNotFoundError):
            os.unlink(path)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with open(fd, "wb") as file:
            file.write(dumps(table))
    except OSError as err:
        raise SquashmountError("The keys for ssh cannot be handed to the container.", details=str(err)) from err


def _forget(folder: str) -> None:
    import time  # noqa: PLC0415 - with the rest of this module

    for name in os.listdir(folder):
        path = os.path.join(folder, name)
        with suppress(OSError):
            if time.time() - os.lstat(path).st_mtime > _FORGOTTEN:
                os.unlink(path)
