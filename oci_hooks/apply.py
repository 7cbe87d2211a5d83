"""Apply a plan: to the container's config.json (OCI runtime specification), and to its root file system.

Applying twice is the same as applying once: Podman runs the hook at every start of a container.
"""

import errno
import os

from squashmount.errors import SquashmountError
from squashmount.lean import TYPE_CHECKING, Any, suppress
from squashmount.runtime import outside_uid

from .log import LATER
from .plan import ANNOTATION, Copy, Device, Hook, Mount, Plan

if TYPE_CHECKING:
    from .tree import DirectoryTree

_CHUNK = 1 << 20
_NO_JOB: dict[str, str] = {}


def has_namespace(config: dict[str, Any], kind: str) -> bool:
    """Tell whether the container is in another namespace of a type than the host's."""
    return any(each.get("type") == kind for each in (config.get("linux") or {}).get("namespaces") or [])


def unmet(config: dict[str, Any], plan: Plan) -> list[str]:
    """Return the sentences for what the plan needs of the host and this container has not."""
    user = ((config.get("process") or {}).get("user") or {}).get("uid", 0)
    return [
        text
        for need, text in plan.needs.items()
        if (user != outside_uid() if need == "user" else has_namespace(config, need))
    ]


def edit(config: dict[str, Any], plan: Plan, *, rootless: bool, program: str, job: dict[str, str] = _NO_JOB) -> str:
    """Change the configuration as the plan says and return the plan's hash.

    `program` is the hook's own, for what must happen later; `job` are the variables such hooks ask for.

    In a user namespace no device node can be made (mknod(2), EPERM): nodes are bind mounts there, as Podman's own.
    """
    process = config.setdefault("process", {})
    process["env"] = _environment(process.get("env") or [], plan)
    mounts = config["mounts"] = config.get("mounts") or []
    for mount in sorted(plan.mounts, key=lambda one: one.target.count("/")):
        _add_once(mounts, _bind(mount))
    for device in plan.devices:
        if rootless:
            _add_once(mounts, _device_mount(device))
        else:
            _add_device(config.setdefault("linux", {}), device)
    hooks = config["hooks"] = config.get("hooks") or {}
    renew = [Hook("createContainer", "", ("ldconfig",), LATER)] if plan.ldconfig else []
    for hook in [*sorted(plan.hooks, key=lambda one: one.order), *renew]:
        own = [] if hook.path else [program]
        made: dict[str, Any] = {"path": hook.path or program, "args": [*own, *hook.args]}
        env = [entry if "=" in entry else f"{entry}={job[entry]}" for entry in hook.env if "=" in entry or entry in job]
        if env:
            made["env"] = env
        _add_once(hooks.setdefault(hook.stage, []), made)
    if not hooks:
        del config["hooks"]
    digest = plan.hash
    config["annotations"] = {**(config.get("annotations") or {}), ANNOTATION: digest}
    return digest


def _add_once(items: list[Any], item: Any) -> None:
    if item not in items:
        items.append(item)


def _bind(mount: Mount) -> dict[str, Any]:
    options = list(mount.options)
    if not {"bind", "rbind"} & set(options):
        options.insert(0, "rbind")
    if not any(option.endswith(("private", "slave", "shared")) for option in options):
        options.append("rprivate")
    return {"destination": mount.target, "type": "bind", "source": mount.source, "options": options}


def _device_mount(device: Device) -> dict[str, Any]:
    access = "rw" if "w" in device.permissions else "ro"
    options = ["bind", "nosuid", "noexec", access, "rprivate"]
    return {"destination": device.path, "type": "bind", "source": device.path, "options": options}


def _add_device(linux: dict[str, Any], device: Device) -> None:
    status = os.stat(device.path)
    kind = "b" if status.st_mode & 0o170000 == 0o060000 else "c"
    number = {"major": os.major(status.st_rdev), "minor": os.minor(status.st_rdev)}
    node = {"path": device.path, "type": kind, **number, "fileMode": status.st_mode & 0o7777}
    node |= {"uid": status.st_uid, "gid": status.st_gid}
    devices = linux["devices"] = linux.get("devices") or []
    if not any(one.get("path") == device.path for one in devices):
        devices.append(node)
    resources = linux["resources"] = linux.get("resources") or {}
    allowed = resources["devices"] = resources.get("devices") or []
    _add_once(allowed, {"allow": True, "type": kind, **number, "access": device.permissions})


def _environment(entries: list[str], plan: Plan) -> list[str]:
    values = dict(entry.partition("=")[::2] for entry in entries)
    for name in plan.env_unset:
        values.pop(name, None)
    values |= plan.env_set
    for name, text in plan.env_prepend.items():
        before = values.get(name, "")
        if f"{before}:".startswith(f"{text}:"):
            continue
        values[name] = f"{text}:{before}" if before else text
    for name, text in plan.env_append.items():
        before = values.get(name, "")
        if f":{before}".endswith(f":{text}"):
            continue
        values[name] = f"{before}:{text}" if before else text
    return [f"{name}={value}" for name, value in values.items()]


def root_owner(config: dict[str, Any]) -> tuple[int, int]:
    """Return the uid and gid, as seen by the hook, that are 0 inside the container (`--userns=keep-id` shifts them)."""
    linux = config.get("linux") or {}
    return _outside(linux.get("uidMappings") or []), _outside(linux.get("gidMappings") or [])


def _outside(mappings: list[dict[str, int]]) -> int:
    for one in mappings:
        if one.get("containerID", 0) == 0 and one.get("size", 0) > 0:
            return one.get("hostID", 0)
    return 0


def copy_files(plan: Plan, root: "DirectoryTree", owner: tuple[int, int] = (0, 0)) -> None:
    """Write the plan's files into the container's root file system. SquashmountError names the one that fails."""
    for copy in plan.copies:
        try:
            _copy(copy, root, owner)
        except OSError as err:
            raise SquashmountError(
                f"{copy.source!r} cannot be copied to {copy.target!r} in the container.", details=str(err)
            ) from err


def _copy(copy: Copy, root: "DirectoryTree", owner: tuple[int, int]) -> None:
    parent, name = os.path.split(copy.target)
    directory = _made_directory(root, parent)
    temporary = f".squashmount-{os.getpid()}"
    try:
        # a new file takes the old one's place: what lies there may be a FIFO, or have another name elsewhere
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=directory)
        try:
            with open(copy.source, "rb") as source:
                while chunk := source.read(_CHUNK):
                    rest = memoryview(chunk)
                    while rest:
                        rest = rest[os.write(fd, rest) :]
            if owner != (0, 0):
                os.fchown(fd, *owner)
            os.fchmod(fd, int(copy.mode, 8))
        finally:
            os.close(fd)
        os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=directory)
        raise
    finally:
        os.close(directory)


def _made_directory(root: "DirectoryTree", path: str) -> int:
    """Open a directory inside, made with its parents where missing."""
    try:
        return root.open_fd(path, os.O_PATH | os.O_DIRECTORY)
    except OSError as err:
        if err.errno != errno.ENOENT or path == "/":
            raise
    parent = _made_directory(root, os.path.dirname(path))
    try:
        os.mkdir(os.path.basename(path), 0o755, dir_fd=parent)
    finally:
        os.close(parent)
    return root.open_fd(path, os.O_PATH | os.O_DIRECTORY)
