"""Container Device Interface, version 0.5.0: read what a vendor's tool wrote, or make the same from the host's files.

https://github.com/cncf-tags/container-device-interface/blob/v0.5.0/SPEC.md. Podman applies such files itself with
`--device KIND=NAME`; here they are one source of a plan, so that what is injected can be chosen by the job and shown.
"""

from squashmount import jsonio
from squashmount.errors import SquashmountError
from squashmount.lean import TYPE_CHECKING, Any, Iterable, Iterator, NamedTuple

from .libraries import Library
from .listing import names_in
from .plan import Contribution, Device, Hook, Mount

if TYPE_CHECKING:
    from .tree import Tree

KIND = "nvidia.com/gpu"
# the order of the specification: a later directory wins
DIRECTORIES = ("/etc/cdi", "/run/cdi")
_STAGES = ("prestart", "createRuntime", "createContainer", "poststart", "poststop")
_MOST_FILES = 4096
# containerEdits: what must be a text in each entry; entries of `env` are texts themselves
_EDITS: dict[str, tuple[str, ...]] = {
    "deviceNodes": ("path",),
    "mounts": ("hostPath", "containerPath"),
    "hooks": ("hookName", "path"),
    "env": (),
}


class Entry(NamedTuple):
    """One device of a CDI file: the names it is asked for by, and its nodes."""

    names: tuple[str, ...]
    nodes: tuple[str, ...]


def generate(
    kind: str,
    entries: Iterable[Entry],
    *,
    nodes: Iterable[str] = (),
    libraries: Iterable[Library] = (),
    files: Iterable[str] = (),
    folder: str = "",
    env: tuple[str, ...] = (),
    hooks: tuple[Hook, ...] = (),
) -> dict[str, Any]:
    """Return a CDI file as JSON has it, with a device `all` besides.

    Libraries are shown under the names that programs ask for (SONAME, and libX.so for dlopen) in `folder`; without
    `folder`, where they are on the host.
    """
    every = list(entries)
    devices = [
        {"name": name, "containerEdits": {"deviceNodes": _nodes(one.nodes)}} for one in every for name in one.names
    ]
    together = dict.fromkeys(node for one in every for node in one.nodes)
    devices.append({"name": "all", "containerEdits": {"deviceNodes": _nodes(together)}})
    mounts = [_mount(library.real, place) for library in libraries for place in _places(library, folder)]
    mounts += [_mount(path, path) for path in files]
    edits = {"deviceNodes": _nodes(nodes), "mounts": mounts, "env": list(env), "hooks": [_hook(hook) for hook in hooks]}
    filled = {name: value for name, value in edits.items() if value}
    return {"cdiVersion": "0.5.0", "kind": kind, "devices": devices, "containerEdits": filled}


def _hook(hook: Hook) -> dict[str, Any]:
    made: dict[str, Any] = {"hookName": hook.stage, "path": hook.path, "args": list(hook.args)}
    return {**made, "env": list(hook.env)} if hook.env else made


def _nodes(paths: Iterable[str]) -> list[dict[str, str]]:
    return [{"path": path, "permissions": "rw"} for path in paths]


def _mount(source: str, target: str) -> dict[str, Any]:
    return {"hostPath": source, "containerPath": target, "options": ["ro", "nosuid", "nodev", "bind"]}


def _places(library: Library, folder: str) -> list[str]:
    directory, _, name = library.path.rpartition("/")
    soname = library.elf.soname or name
    names = dict.fromkeys((soname, soname.partition(".so")[0] + ".so"))
    return [f"{folder or directory}/{each}" for each in names]


def specs(host: "Tree", kind: str, problems: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Give the CDI files of one kind with their paths, the one that wins first; `problems` gets what cannot be used."""
    for folder in reversed(DIRECTORIES):
        for name in names_in(host, folder):
            path = f"{folder}/{name}"
            if not name.endswith((".json", ".yaml", ".yml")):
                continue
            spec = _read(host, path, problems)
            if spec is None or spec.get("kind") != kind:
                continue
            gone = next((source for source in _sources(spec) if not host.kind(source)), "")
            if gone:
                problems.append(f"{path} is not of this driver: {gone} does not exist")
            else:
                yield path, spec


def _read(host: "Tree", path: str, problems: list[str]) -> dict[str, Any] | None:
    try:
        with host.open(path) as file:
            data = file.read(16 << 20)
        spec = jsonio.load_object(data, where=path) if path.endswith(".json") else _yaml(data)
    except (OSError, ValueError, SquashmountError) as err:
        problems.append(f"{path} cannot be used: {err}".replace("\n", " "))
        return None
    if not isinstance(spec, dict) or not _well_formed(spec):
        problems.append(f"{path} is not a CDI file")
        return None
    return spec


def _well_formed(spec: dict[str, Any]) -> bool:
    """Tell whether everything that will be read is of its type. Absent and null are the same (Go writes null)."""
    devices = spec["devices"] = spec.get("devices") or []
    if not isinstance(devices, list) or not all(isinstance(device, dict) for device in devices):
        return False
    for part in (spec, *devices):
        edits = part["containerEdits"] = part.get("containerEdits") or {}
        if not isinstance(edits, dict):
            return False
        for key, names in _EDITS.items():
            rules = edits[key] = edits.get(key) or []
            if not isinstance(rules, list) or not all(_has_texts(rule, names) for rule in rules):
                return False
    return True


def _has_texts(rule: Any, names: tuple[str, ...]) -> bool:
    if not names:
        return isinstance(rule, str)
    lists = (rule.get(name) or [] for name in ("options", "args", "env")) if isinstance(rule, dict) else ()
    return (
        isinstance(rule, dict)
        and all(isinstance(rule.get(name), str) for name in names)
        and all(isinstance(each, list) and all(isinstance(one, str) for one in each) for each in lists)
    )


def _yaml(data: bytes) -> Any:
    try:
        import yaml  # noqa: PLC0415 - optional
    except ModuleNotFoundError as err:
        raise ValueError("PyYAML is not installed (pip install 'squashmount[import]')") from err
    try:
        # the one in C reads a vendor's file of 60 kB in 20 ms, the other in 300
        return yaml.load(data, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506 - both are safe
    except yaml.YAMLError as err:
        raise ValueError(str(err)) from err


def _sources(spec: dict[str, Any]) -> Iterator[str]:
    for edits in (spec.get("containerEdits", {}), *(one.get("containerEdits", {}) for one in spec.get("devices", []))):
        yield from (str(mount.get("hostPath", "")) for mount in edits.get("mounts", []))


def contribution(spec: dict[str, Any], names: Iterable[str], *, host: "Tree", image: "Tree") -> Contribution:
    """Return the edits of a CDI file for the named devices. What does not fit into the image is left out, with why.

    So are sockets (of persistenced, of the fabric manager): no computation needs them, and they belong to daemons,
    which the check of who could have written a file would refuse.
    """
    wanted = set(names)
    devices = [device for device in spec.get("devices", []) if device.get("name") in wanted]
    edits = [spec.get("containerEdits", {}), *(device.get("containerEdits", {}) for device in devices)]
    mounts, rejected = _mounts(edits, host, image)
    nodes = [node for edit in edits for node in edit.get("deviceNodes", [])]
    env = dict(text.partition("=")[::2] for edit in edits for text in edit.get("env", []))
    hooks, refused = _hooks(edits)
    return Contribution(
        mounts=mounts,
        devices=tuple(dict.fromkeys(Device(node["path"], str(node.get("permissions") or "rw")) for node in nodes)),
        env_set=env,
        hooks=hooks,
        rejected=(*rejected, *refused),
    )


def _mounts(edits: list[dict[str, Any]], host: "Tree", image: "Tree") -> tuple[tuple[Mount, ...], list[str]]:
    found: dict[str, Mount] = {}
    rejected = []
    for rule in [rule for edit in edits for rule in edit.get("mounts", [])][:_MOST_FILES]:
        source, target = str(rule["hostPath"]), str(rule["containerPath"])
        why = "it is a socket" if host.kind(source) == "other" else _unfit(image, target)
        if why:
            rejected.append(f"{source} is left out: {why}")
        else:
            options = tuple(option for option in rule.get("options") or () if option not in {"bind", "rbind"})
            found.setdefault(target, Mount(source, target, options or ("ro", "nosuid", "nodev")))
    return tuple(found.values()), rejected


def _unfit(image: "Tree", target: str) -> str:
    try:
        return f"{target} in the image is a link to nothing" if image.target(target).dangling else ""
    except OSError as err:
        return f"{target} in the image cannot be resolved ({err.strerror})"


def _hooks(edits: list[dict[str, Any]]) -> tuple[tuple[Hook, ...], list[str]]:
    found, rejected = [], []
    for rule in [rule for edit in edits for rule in edit.get("hooks", [])]:
        if rule.get("hookName") in _STAGES:
            args = tuple(rule.get("args") or (rule["path"],))
            found.append(Hook(rule["hookName"], rule["path"], args, tuple(rule.get("env") or ())))
        else:
            rejected.append(f"the hook {rule.get('path')} at {rule.get('hookName')}: no path of the host exists there")
    return tuple(dict.fromkeys(found)), rejected
