"""The keys of storage.conf and their types (containers/storage pkg/config/config.go, types/options.go).

Podman ignores an unknown key (4 and 5 warn, 6 says it at debug level only) and refuses a file with a wrong type.
"""

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

_STORAGE: dict[str, type] = {
    "driver": str,
    "driver_priority": list,
    "runroot": str,
    "graphroot": str,
    "imagestore": str,
    "rootless_storage_path": str,
    "transient_store": bool,
    "options": dict,
}
_OPTIONS: dict[str, type] = {
    "additionalimagestores": list,
    "additionallayerstores": list,
    "auto-userns-max-size": int,
    "auto-userns-min-size": int,
    "disable-volatile": bool,
    "force_mask": int,
    "ignore_chown_errors": str,
    "imagestore": str,
    "mount_program": str,
    "mountopt": str,
    "pull_options": dict,
    "remap-gids": str,
    "remap-group": str,
    "remap-uids": str,
    "remap-user": str,
    "root-auto-userns-user": str,
    "size": str,
    "skip_mount_home": str,
    "strip_suid_sgid": bool,
    "use_composefs": str,
} | dict.fromkeys(("aufs", "btrfs", "overlay", "thinpool", "vfs", "zfs"), dict)
_OVERLAY: dict[str, type] = dict.fromkeys(
    (
        "force_mask",
        "ignore_chown_errors",
        "inodes",
        "mount_program",
        "mountopt",
        "size",
        "skip_mount_home",
        "sync",
        "use_composefs",
    ),
    str,
)
TABLES: dict[tuple[str, ...], dict[str, type]] = {
    (): {"storage": dict},
    ("storage",): _STORAGE,
    ("storage", "options"): _OPTIONS,
    ("storage", "options", "overlay"): _OVERLAY,
}
_NAMES = {str: "a string in quotes", bool: "true or false", int: "a number", list: "a list", dict: "a table"}


Tables = Mapping[tuple[str, ...], Mapping[str, type]]


def unknown_keys(data: dict[str, Any], tables: Tables = TABLES) -> Iterator[tuple[str, str]]:
    """Yield each key Podman would ignore, with what was probably meant (or empty)."""
    for path, table, known in _tables(data, tables):
        for key in table:
            if key not in known:
                yield ".".join((*path, key)), _meant(key, path, tables)


def wrong_types(data: dict[str, Any], tables: Tables = TABLES) -> Iterator[tuple[str, str]]:
    """Yield each key whose value Podman refuses, with what it wants."""
    for path, table, known in _tables(data, tables):
        for key, value in table.items():
            if known.get(key, object) not in {object, type(value)}:
                yield ".".join((*path, key)), _NAMES[known[key]]


def _tables(
    data: dict[str, Any], tables: Tables
) -> Iterator[tuple[tuple[str, ...], dict[str, Any], Mapping[str, type]]]:
    for path, known in tables.items():
        table: Any = data
        for name in path:
            table = table.get(name, {}) if isinstance(table, dict) else {}
        if isinstance(table, dict):
            yield path, table, known


def _meant(key: str, path: tuple[str, ...], tables: Tables) -> str:
    for other in (path, *tables):
        near = difflib.get_close_matches(key.lower(), tables[other], n=1, cutoff=0.8)
        if near:
            return ".".join((*other, near[0]))
    return ""
