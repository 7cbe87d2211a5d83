"""What a site wants for all its nodes: /etc/squashmount/site.toml, one file with the settings of `squashmount.config`.

Keys besides those settings (TOML)::

    mount_program = "/opt/squashmount/bin/squashmount-mount"
    ignore_chown_errors = true       # default: true
    forbidden = ["/home", "/scratch"]    # graphroot and runroot may not lie there
    trusted_owners = []              # uids besides root whose hooks and modules are believed
    hooks_dirs = []                  # directories of OCI hooks for containers.conf
    [scratch]                        # node-local; Podman fills in $UID, $USER, $SLURM_JOB_ID
    graphroot = "/local/$UID/containers"
    runroot = "/run/user/$UID/containers"
    [[stores]]                       # made by migrate2scratch; for all, or for users and groups by name
    path = "/scratch/images"
    all = true
    [[stores]]
    path = "/scratch/physics/images"
    groups = ["physics"]
    users = ["dave"]
    [modules.hpc.containers]         # podman --module hpc: tables of containers.conf
    ipcns = "host"
"""

import difflib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from squashmount.config import SITE_FILE, SITE_ONLY, Config, merged, read_table
from squashmount.errors import UsageError
from squashmount.trust import Trust

from .finding import Finding, error, warning
from .podman import Machine, expand

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@-]*")
"""A user, group or module: it goes into a shell script, or is the name of a file."""

_PATH = re.compile(r"/[^\0\n\"\\]*")
_PLAIN = re.compile(r"[\w/.+@=,:-]+")
_KEYS: dict[str, type] = {
    "mount_program": str,
    "ignore_chown_errors": bool,
    "forbidden": list,
    "trusted_owners": list,
    "hooks_dirs": list,
    "scratch": dict,
    "stores": list,
    "modules": dict,
}
_STORE: dict[str, type] = {"path": str, "all": bool, "users": list, "groups": list}
_SCRATCH: dict[str, type] = {"graphroot": str, "runroot": str}
_WORDS = {str: "a string", bool: "true or false", list: "a list", dict: "a table", int: "a number", float: "a number"}


@dataclass(frozen=True)
class Store:
    """One store and who sees it."""

    path: str
    everybody: bool = False
    users: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()


@dataclass(frozen=True)
class Site:
    """All that only site.toml says; None where it says nothing."""

    stores: tuple[Store, ...] = ()
    graphroot: str | None = None
    runroot: str | None = None
    mount_program: str | None = None
    ignore_chown_errors: bool | None = None
    forbidden: tuple[str, ...] = ()
    trusted_owners: tuple[int, ...] = ()
    hooks_dirs: tuple[str, ...] = ()
    modules: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def stores_of(self, user: str, groups: Iterable[str]) -> tuple[str, ...]:
        """Return the stores of one user, what is nearest to him first: Podman takes the first that has the image."""
        mine = set(groups)
        order = [
            *(store.path for store in self.stores if user in store.users),
            *(store.path for store in self.stores if mine.intersection(store.groups)),
            *(store.path for store in self.stores if store.everybody),
        ]
        return tuple(dict.fromkeys(order))

    def forbids(self, path: str, machine: Machine) -> str:
        """Return the forbidden place a configured path lies on, links followed; "" where it may be."""
        meant = expand(path, machine)
        ways = {meant, os.path.realpath(meant)}
        for place in self.forbidden:
            places = {place, os.path.realpath(place)}
            if any(way == one or way.startswith(one.rstrip("/") + "/") for way in ways for one in places):
                return place
        return ""

    @property
    def trust(self) -> Trust:
        """Return which files are believed here."""
        return Trust(self.trusted_owners)


def load_site(named: str | None = None) -> Site:
    """Read a site.toml; the default one need not exist. UsageError: not TOML, not trusted, or wrong."""
    path = named or SITE_FILE
    if path == SITE_FILE and not os.path.lexists(path):
        return Site()
    table = read_table(path)
    wrong = [finding for _, finding in problems(table, path) if finding.severity.value == "error"]
    if wrong:
        details = "\n".join(finding.what for finding in wrong[1:])
        raise UsageError(f"{path}: {wrong[0].what}", details=details, hint=f"squashmount-conf check {path}")
    return site_of(table)


def site_of(table: Mapping[str, Any]) -> Site:
    """Make the site of a table without errors."""
    scratch = table.get("scratch", {})
    stores = tuple(
        Store(one["path"], one.get("all", False), tuple(one.get("users", ())), tuple(one.get("groups", ())))
        for one in table.get("stores", ())
    )
    return Site(
        stores=stores,
        graphroot=scratch.get("graphroot"),
        runroot=scratch.get("runroot"),
        mount_program=table.get("mount_program"),
        ignore_chown_errors=table.get("ignore_chown_errors"),
        forbidden=tuple(os.path.normpath(one) for one in table.get("forbidden", ())),
        trusted_owners=tuple(table.get("trusted_owners", ())),
        hooks_dirs=tuple(table.get("hooks_dirs", ())),
        modules=table.get("modules", {}),
    )


Problem = tuple[tuple[str | int, ...], Finding]
"""Where in the file, and what."""


def problems(table: Mapping[str, Any], where: str) -> Iterator[Problem]:
    """Yield what is wrong with the table of a site.toml."""
    settings = {key: value for key, value in table.items() if key not in SITE_ONLY}
    yield from settings_problems(settings, where, [*Config._fields, *_KEYS])
    yield from _typed(table, _KEYS, ())
    yield from _scratch(table.get("scratch"))
    yield from _stores(table.get("stores"))
    for key in ("forbidden", "hooks_dirs"):
        yield from _paths(table.get(key), (key,))
    if not all(type(one) is int and one >= 0 for one in _list(table.get("trusted_owners"))):
        yield (
            ("trusted_owners",),
            error("trusted_owners must be a list of uids", "Names differ between nodes.", "write numbers"),
        )
    program = table.get("mount_program")
    if isinstance(program, str) and not _PATH.fullmatch(program):
        yield (
            ("mount_program",),
            error(
                f"mount_program {program!r} is no absolute path", "Podman starts it by its path.", "an absolute path"
            ),
        )
    for name, module in _dict(table.get("modules")).items():
        if not NAME.fullmatch(name) or not isinstance(module, dict):
            yield (
                ("modules", name),
                error(
                    f"module {name!r} cannot be a file",
                    "It becomes containers.conf.modules/NAME.",
                    "[modules.NAME.containers]",
                ),
            )


def settings_problems(settings: Mapping[str, Any], where: str, known: Iterable[str]) -> Iterator[Problem]:
    """Yield what is wrong with settings of squashmount; `known` are the keys to name where one is unknown."""
    for key, value in settings.items():
        if key not in Config._fields:
            why = "A word that nobody knows must not pass for a choice."
            why = "It belongs into /etc/squashmount/site.toml." if key in SITE_ONLY else why
            yield (key,), error(f"unknown key {key}", why, near(key, known))
            continue
        try:
            merged(Config(), {key: value}, where=where)
        except UsageError as err:
            yield (key,), error(f"{key} = {value!r} is not allowed", "No setting has this value.", err.hint)


def near(key: str, known: Iterable[str]) -> str:
    """Return which known word was probably meant."""
    names = list(known)
    found = difflib.get_close_matches(key.lower().replace("-", "_"), names, n=1, cutoff=0.7)
    return f"write {found[0]}" if found else f"remove it; known here: {', '.join(names)}"


def _typed(table: Any, keys: Mapping[str, type], path: tuple[str | int, ...]) -> Iterator[Problem]:
    for key, value in _dict(table).items():
        name = ".".join(map(str, (*path, key)))
        if key in keys and type(value) is not keys[key]:
            yield (
                (*path, key),
                error(
                    f"{name} must be {_WORDS[keys[key]]}", "It has another type.", f"write {key} as {_WORDS[keys[key]]}"
                ),
            )
        elif path and key not in keys:
            yield (
                (*path, key),
                error(f"unknown key {name}", "A word that nobody knows must not pass for a choice.", near(key, keys)),
            )


def _scratch(table: Any) -> Iterator[Problem]:
    yield from _typed(table, _SCRATCH, ("scratch",))
    for key, value in _dict(table).items():
        if isinstance(value, str):
            for finding in template_findings(key, value):
                yield ("scratch", key), finding


def template_findings(key: str, value: str) -> Iterator[Finding]:
    """Yield what is wrong with a graphroot or runroot that all users share as a template."""
    if not _PATH.fullmatch(value):
        yield error(
            f"{key} {value!r} is no absolute path", "Podman takes it as it is.", "an absolute path, with $UID in it"
        )
    elif "${" in value:
        yield error(
            f"{key} {value} has braces",
            "Podman fills in $UID, but ${UID} becomes nothing.",
            "write $UID without braces",
        )
    elif "$UID" not in value and "$USER" not in value:
        why = "All users would use this one directory."
        if "$SLURM_JOB_ID" in value:
            why = "Outside of a job the variable is empty, and all users would use one directory."
        yield error(f"{key} {value} is the same for every user", why, f"{key} with $UID in it")
    elif "$SLURM_JOB_ID" in value:
        why = "Outside of a job (login nodes) the variable is empty, and Podman drops it from the path."
        yield warning(f"{key} {value} needs a job", why, "ship this site.toml to compute nodes only")


def _stores(stores: Any) -> Iterator[Problem]:
    seen: set[str] = set()
    for at, one in enumerate(_list(stores)):
        here = ("stores", at)
        if not isinstance(one, dict):
            yield here, error("stores must be tables", "Each has a path and an audience.", "[[stores]]")
            continue
        yield from _typed(one, _STORE, here)
        path = one.get("path")
        if not isinstance(path, str) or not _PATH.fullmatch(path):
            yield here, error(f"a store has no absolute path: {path!r}", "Podman takes it as it is.", 'path = "/..."')
            continue
        if path in seen:
            yield (
                here,
                error(f"the store {path} is there twice", "Which audience counts?", "one [[stores]] for each path"),
            )
        seen.add(path)
        if not os.path.isdir(path):
            yield (
                here,
                warning(
                    f"the store {path} does not exist here",
                    "Podman refuses every command where it is missing.",
                    f"mount it, or: migrate2scratch init {path}",
                ),
            )
        if not (one.get("all") or one.get("users") or one.get("groups")):
            yield (
                here,
                error(
                    f"nobody sees the store {path}",
                    "It has no audience.",
                    'all = true, or groups = ["..."], users = ["..."]',
                ),
            )
        if (one.get("users") or one.get("groups")) and not _PLAIN.fullmatch(path):
            why = "Stores of some users stand in a shell script."
            yield (
                here,
                error(f"the store {path} has characters that a shell reads", why, "another path, or a link to it"),
            )
        for key in ("users", "groups"):
            for name in _list(one.get(key)):
                if not isinstance(name, str) or not NAME.fullmatch(name):
                    yield (
                        (*here, key),
                        error(
                            f"{name!r} cannot be compared at login",
                            "It stands in a shell script.",
                            "a name without blanks, or the number as a string",
                        ),
                    )


def _paths(value: Any, path: tuple[str, ...]) -> Iterator[Problem]:
    for one in _list(value):
        if not isinstance(one, str) or not _PATH.fullmatch(one):
            yield (
                path,
                error(
                    f"{path[0]} holds {one!r}, which is no absolute path", "It is compared as it is.", "absolute paths"
                ),
            )


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
