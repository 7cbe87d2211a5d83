"""Settings → text of storage.conf and containers.conf. Pure: no file is read or written here.

A present document is edited, not replaced: comments, order and keys that are not ours stay as they are
(tomlkit), and a second run changes nothing.
"""

import tomllib
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

import tomlkit
from tomlkit.exceptions import TOMLKitError
from tomlkit.items import Array, InlineTable

from squashmount.errors import UsageError

from .site import Site

GRAPHROOT = "/tmp/containers-$UID/storage"  # noqa: S108 - node-local on every machine; Podman makes it 0700
RUNROOT = "/tmp/containers-$UID/run"  # noqa: S108 - the same; short, because runroot is limited to 50 characters


class Content(Enum):
    """What a file is for; it decides which keys belong in it."""

    STORAGE = "all storage keys, for a file that rootless Podman reads whole"
    SYSTEM = "/etc/containers/storage.conf of Podman <= 5: only the keys that reach rootless users"
    CONTAINERS = "containers.conf: engine and namespaces"


@dataclass(frozen=True)
class StorageSettings:
    """What is asked for; None means: keep what the file says, else the default."""

    stores: tuple[str, ...] = ()
    mount_program: str = "/usr/bin/squashmount"
    graphroot: str | None = None
    runroot: str | None = None
    ignore_chown_errors: bool | None = None
    chown_default: bool = True
    podman: int = 5
    site: Site = field(default_factory=Site)


@dataclass(frozen=True)
class Entry:
    """One key; `keep` leaves a value that is already there, `whole` no item of a list that is not ours."""

    table: tuple[str, ...]
    key: str
    value: str | list[str]
    why: str
    keep: bool = False
    whole: bool = False


HEADER: Final = {
    Content.STORAGE: "containers-storage.conf(5) for rootless Podman, written by `squashmount-conf generate`.",
    Content.SYSTEM: "containers-storage.conf(5), written by `squashmount-conf generate --site`.",
    Content.CONTAINERS: "containers.conf(5), written by `squashmount-conf generate`.",
}


def merged(text: str, settings: StorageSettings, content: Content) -> str:
    """Return `text` (empty for a new file) with our keys in it.

    Raises UsageError when `text` is not TOML, or is TOML of a shape that cannot be edited without loss.
    """
    try:
        document = tomlkit.parse(text) if text.strip() else _new(content)
        entries = tuple(_entries(settings, content, tomllib.loads(text)))
        for entry in entries:
            _put(document, entry)
        result = tomlkit.dumps(document)
        _verify(text, result, entries)
    except (TOMLKitError, tomllib.TOMLDecodeError, TypeError, ValueError, AttributeError) as err:
        # tomlkit raises the last three where a table is expected and the file has a value
        raise UsageError("The present file cannot be edited.", details=str(err), hint="repair or move it away") from err
    return result


def _present_root(data: dict[str, Any], content: Content) -> str:
    """Return where rootless images are by the present file: moving them away by default would hide them."""
    storage = data.get("storage", {})
    root = storage.get("rootless_storage_path", GRAPHROOT)
    return str(root if content is Content.SYSTEM else storage.get("graphroot", root))


def _entries(settings: StorageSettings, content: Content, present: dict[str, Any]) -> Iterator[Entry]:
    if content is Content.CONTAINERS:
        yield from _ENGINE
        if settings.site.hooks_dirs:
            yield Entry(("engine",), "hooks_dir", list(settings.site.hooks_dirs), _HOOKS)
        return
    storage, options, overlay = ("storage",), ("storage", "options"), ("storage", "options", "overlay")
    graphroot = settings.graphroot or _present_root(present, content)
    # root's images would vanish with another driver: in the system file the admin's choice stays
    yield Entry(storage, "driver", "overlay", _DRIVER, keep=content is Content.SYSTEM)
    if content is Content.SYSTEM:
        yield Entry(storage, "graphroot", "/var/lib/containers/storage", "Storage of root alone.", keep=True)
        yield Entry(storage, "runroot", "/run/containers/storage", "State of root alone.", keep=True)
    else:
        yield Entry(storage, "graphroot", graphroot, _GRAPHROOT, keep=settings.graphroot is None)
        yield Entry(storage, "runroot", settings.runroot or RUNROOT, _RUNROOT, keep=settings.runroot is None)
    if settings.podman < 6:
        yield Entry(storage, "rootless_storage_path", graphroot, _ROOTLESS, keep=settings.graphroot is None)
    if content is Content.STORAGE:
        by_audience = any(not store.everybody for store in settings.site.stores)
        named = "additionalimagestores" in present.get("storage", {}).get("options", {})
        # one that site.toml took from its list, or gave to a group, must not stay for all
        whole = bool(settings.site.stores) and settings.stores == settings.site.stores_of("", ())
        if settings.stores or (by_audience and (settings.podman < 6 or named)):
            yield Entry(options, "additionalimagestores", list(settings.stores), _STORES, whole=whole)
        yield Entry(overlay, "mount_program", settings.mount_program, _PROGRAM)
    ignore = settings.chown_default if settings.ignore_chown_errors is None else settings.ignore_chown_errors
    yield Entry(
        overlay,
        "ignore_chown_errors",
        "true" if ignore else "false",
        _CHOWN,
        keep=settings.ignore_chown_errors is None,
    )


_DRIVER = "Without it rootless Podman may choose vfs: a full copy per container."
_GRAPHROOT = "Pulled images and containers. Node-local: never NFS, Lustre, GPFS. Podman fills in $UID (not ${UID})."
_RUNROOT = "State that must not outlive a reboot. Node-local, at most 50 characters."
_ROOTLESS = "The same for rootless users where Podman 4 and 5 do not look at graphroot."
_STORES = "Read-only stores made by migrate2scratch. Each must exist on every node, or Podman refuses every command."
_PROGRAM = "Mounts the squash of an image; hands everything else to fuse-overlayfs."
_HOOKS = "OCI hooks. Each directory must exist on every node, or no container starts."
_CHOWN = 'Pull with a small or missing subuid range; squashes keep the true owners. A string: "true" or "false".'

_ENGINE = (
    Entry(("containers",), "cgroupns", "host", "With cgroup_manager: container processes stay in the job's cgroup."),
    Entry(("engine",), "cgroup_manager", "cgroupfs", "Batch jobs have no systemd user session to ask for a cgroup."),
    Entry(("engine",), "events_logger", "file", "No journald needed; `podman events` works in a job."),
)


def module_text(name: str, tables: Mapping[str, Any]) -> str:
    """Return the containers.conf module of that name."""
    head = f"# containers.conf(5), written by `squashmount-conf generate --site`: podman --module {name} run ...\n"
    return head + tomlkit.dumps(tables)


def _new(content: Content) -> tomlkit.TOMLDocument:
    document = tomlkit.document()
    document.add(tomlkit.comment(HEADER[content]))
    document.add(tomlkit.comment("Edit it as you like: another run changes only its own keys and keeps the rest."))
    document.add(tomlkit.nl())
    return document


def _put(document: tomlkit.TOMLDocument, entry: Entry) -> None:
    table: MutableMapping[str, Any] = document
    for name in entry.table:
        if name not in table:
            table[name] = tomlkit.inline_table() if isinstance(table, InlineTable) else tomlkit.table()
        table = table[name]
    if entry.key in table:
        if not entry.keep:
            _change(table, entry.key, entry.value, whole=entry.whole)
        return
    item = tomlkit.item(entry.value)
    if not isinstance(table, InlineTable):
        # a comment line of its own: tomlkit can only append comments, which would land behind the sub-tables
        item.trivia.indent = f"# {entry.why}\n"
    table[entry.key] = item


def _change(table: MutableMapping[str, Any], key: str, value: str | list[str], *, whole: bool) -> None:
    present = table[key]
    if whole:
        if list(present) != value:
            table[key] = value
    elif isinstance(value, list) and isinstance(present, Array):
        # the admin's other stores stay, after ours: Podman takes the first that has the layer
        for place, item in enumerate(item for item in value if item not in present):
            present.insert(place, item)
    elif present != value:
        table[key] = value


def _verify(before: str, after: str, entries: tuple[Entry, ...]) -> None:
    """Check with the other TOML parser that our keys arrived and nothing else changed."""
    old, new = tomllib.loads(before), tomllib.loads(after)
    for entry in entries:
        value = _pop(new, (*entry.table, entry.key))
        _pop(old, (*entry.table, entry.key))
        if not entry.keep and not _is_set(value, entry.value):
            raise TypeError(f"{'.'.join(entry.table)}.{entry.key} could not be set")
    if _pruned(old) != _pruned(new):
        raise TypeError("another key would change")


def _is_set(value: object, wanted: str | list[str]) -> bool:
    if isinstance(value, list) and isinstance(wanted, list):
        return all(item in value for item in wanted)
    return value == wanted


def _pop(data: dict[str, Any], path: tuple[str, ...]) -> Any:
    for name in path[:-1]:
        data = data.get(name, {})
    return data.pop(path[-1], None)


def _pruned(data: dict[str, Any]) -> dict[str, Any]:
    items = {key: _pruned(value) if isinstance(value, dict) else value for key, value in data.items()}
    return {key: value for key, value in items.items() if value != {}}
