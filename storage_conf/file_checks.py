"""What is wrong with one file, storage.conf, containers.conf or site.toml, line by line."""

import os
import shlex
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from squashmount.config import SITE_ONLY, Config
from squashmount.errors import UsageError
from squashmount.mountinfo import read_mounts
from squashmount.trust import Trust

from . import containers_schema, facts, schema
from .checks import RUNROOT_LIMIT
from .conf import GRAPHROOT, RUNROOT
from .containers_schema import CHOICES, GONE
from .finding import Finding, error, info, warning
from .generate import SITE_STORAGE
from .lines import Lines, line_of_error
from .podman import Machine, expand, unset_variables
from .site import Problem, load_site, problems, settings_problems, site_of, template_findings
from .store_checks import content_findings
from .trusted import hooks_findings

_IGNORED = "Podman ignores it; version 6 does not even say so."
_REFUSED = "Podman refuses the whole file."
_OURS = {"site.toml", "squashmount.toml"}


@dataclass(frozen=True)
class Checked:
    """One file: what it was taken for, and the findings with their lines (0: the file as a whole)."""

    path: str
    kind: str
    findings: tuple[tuple[int, Finding], ...]


def check_file(path: str, machine: Machine) -> Checked:
    """Look at one file as this Podman does. UsageError when it cannot be read."""
    try:
        with facts.open_conf(path) as file:
            raw = file.read(16 << 20)
    except OSError as err:
        raise UsageError(f"{path} cannot be read.", details=str(err)) from err
    kind = _kind_by_name(path)
    try:
        text = raw.decode().replace("\r\n", "\n")
        data = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as err:
        line = raw.count(b"\n", 0, err.start) + 1 if isinstance(err, UnicodeDecodeError) else line_of_error(err)
        why = "Podman stops, or goes on with its defaults."
        why = "squashmount and migrate2scratch stop." if kind in _OURS else why
        found = error("the file is no TOML", why, f"repair line {line}" if line else "repair it", evidence=str(err))
        return Checked(path, kind or "storage.conf", ((line, _at(found, path, line)),))
    kind = kind or _kind_by_content(data)
    yielded = [*_of_kind(kind, data, path, machine), *_trusted(kind, path)]
    lines = Lines(text)
    placed = sorted(((lines.of(*where), finding) for where, finding in yielded), key=lambda one: one[0])
    return Checked(path, kind, tuple((line, _at(finding, path, line)) for line, finding in placed))


def _at(finding: Finding, path: str, line: int) -> Finding:
    where = f"{path}:{line}" if line else path
    return replace(finding, what=f"{where}: {finding.what}")


def _kind_by_name(path: str) -> str:
    whole = os.path.abspath(path)
    name = os.path.basename(whole)
    if name in _OURS:
        return name
    if name.startswith("storage") or "/storage." in whole:
        return "storage.conf"
    return "containers.conf" if name.startswith("containers") or "/containers.conf." in whole else ""


def _kind_by_content(data: dict[str, Any]) -> str:
    if "storage" in data:
        return "storage.conf"
    return "site.toml" if data.keys() & (SITE_ONLY | set(Config._fields)) - {"stores"} else "containers.conf"


def _of_kind(kind: str, data: dict[str, Any], path: str, machine: Machine) -> Iterator[Problem]:
    if kind == "storage.conf":
        yield from _schema(data, schema.TABLES)
        yield from _storage(data, path, machine)
    elif kind == "containers.conf":
        yield from containers(data, machine)
    elif kind == "squashmount.toml":
        yield from settings_problems(data, path, Config._fields)
    else:
        wrong = list(problems(data, path))
        yield from wrong
        if not any(finding.severity.value == "error" for _, finding in wrong):
            yield from _site(data, machine)


def _schema(data: dict[str, Any], tables: schema.Tables) -> Iterator[Problem]:
    for key, meant in schema.unknown_keys(data, tables):
        path = tuple(key.split("."))
        wrong_section = meant.rpartition(".")[2] == path[-1]
        what = f"{path[-1]} does not belong into [{'.'.join(path[:-1])}]" if wrong_section else f"unknown key {key}"
        fix = (
            f"write {path[-1]} in [{meant.rpartition('.')[0]}]"
            if wrong_section
            else f"write {meant}"
            if meant
            else f"remove {key}"
        )
        yield path, warning(what, _IGNORED, fix)
    for key, wanted in schema.wrong_types(data, tables):
        yield (
            tuple(key.split(".")),
            error(f"{key} must be {wanted}", _REFUSED, f"write {key.rpartition('.')[2]} as {wanted}"),
        )


def _storage(data: dict[str, Any], path: str, machine: Machine) -> Iterator[Problem]:
    storage = facts.table(data, "storage")
    options = facts.table(storage, "options")
    overlay = facts.table(options, "overlay")
    yield from _driver(storage, options, overlay)
    for key in ("graphroot", "runroot", "rootless_storage_path"):
        value = storage.get(key)
        if isinstance(value, str) and value:
            for finding in _place(key, value, path, machine):
                yield ("storage", key), finding
    yield from _stores(options, machine)
    yield from _program(options, overlay, machine)
    yield from _reach(storage, options, overlay, path, machine)


def _driver(storage: dict[str, Any], options: dict[str, Any], overlay: dict[str, Any]) -> Iterator[Problem]:
    driver = storage.get("driver", "")
    uses = options.get("additionalimagestores") or overlay
    if driver not in {"overlay", "overlay2"} and (driver or uses):
        what = f"the driver is {driver}" if driver else "no driver is set"
        why = "Stores, mount_program and ignore_chown_errors belong to overlay, and unset may mean vfs."
        yield ("storage", "driver"), error(what, why, 'in [storage]: driver = "overlay"')
    for table, where in ((options, ("storage", "options")), (overlay, ("storage", "options", "overlay"))):
        value = table.get("ignore_chown_errors")
        if isinstance(value, str) and value not in {"true", "false"}:
            yield (
                (*where, "ignore_chown_errors"),
                error(f"ignore_chown_errors is {value!r}", _REFUSED, 'write "true" or "false"'),
            )


def _place(key: str, value: str, path: str, machine: Machine) -> Iterator[Finding]:
    local = RUNROOT if key == "runroot" else GRAPHROOT
    if "${" in value:
        why = "Podman fills in $UID, but ${UID} becomes nothing: two users may meet in one directory."
        yield error(f"{key} {value} has braces", why, "write $UID without braces")
    elif not value.startswith(("/", "$")):
        yield error(
            f"{key} {value} is no absolute path", "Podman takes it from where it is started.", f'{key} = "{local}"'
        )
    here = facts.place(machine, read_mounts(), value, value, ())
    if here.shared:
        why = f"{here.target} is {here.fstype}: owners and locks are missing, and nodes damage each other's containers."
        yield error(f"{key} {here.path} is on a network file system", why, f'{key} = "{local}"')
    if key == "runroot" and len(here.path) > RUNROOT_LIMIT:
        why = f"It has {len(here.path)} characters, and Podman allows {RUNROOT_LIMIT}."
        yield error(f"runroot {here.path} is too long", why, f'runroot = "{RUNROOT}"')
    for variable in unset_variables(value, machine):
        if variable not in {"UID", "SLURM_JOB_ID"}:
            why = f"Where it is empty Podman reads {here.path}, and two users may meet in one directory."
            yield warning(f"{key} {value}: the variable {variable} is empty here", why, "use $UID, which always works")
    if "$SLURM_JOB_ID" in value and "SLURM_JOB_ID" not in machine.environ:
        yield from template_findings(key, value)
    yield from _everybodys(key, value, path, machine)


def _everybodys(key: str, value: str, path: str, machine: Machine) -> Iterator[Finding]:
    """Report one directory for all users. In the system's main file graphroot is root's, up to Podman 5."""
    for_all = key == "rootless_storage_path" or "rootless" in path or path.endswith(SITE_STORAGE)
    main = os.path.abspath(path) in {"/etc/containers/storage.conf", "/usr/share/containers/storage.conf"}
    if "$" in value or not (for_all or main):
        return
    if for_all:
        yield error(
            f"{key} {value} is the same for every user",
            "All users would use this one directory.",
            f"{key} with $UID in it",
        )
    elif machine.podman >= 6:
        why = "Since Podman 6 the system's graphroot applies to rootless users too, who cannot write there."
        fix = "squashmount-conf generate --site --podman 6 writes storage.rootless.conf.d, which sets another"
        if not any(os.path.isdir(f"{folder}/storage.rootless.conf.d") for folder in (machine.etc, machine.vendor)):
            yield error(f"{key} {value} is that of rootless users, too", why, fix)


def _site_trust() -> Trust:
    """Return whom the site trusts besides root; what is wrong with its file is told where that is looked at."""
    try:
        return load_site().trust
    except UsageError:
        return Trust()


def _stores(options: dict[str, Any], machine: Machine) -> Iterator[Problem]:
    where = ("storage", "options", "additionalimagestores")
    stores = options.get("additionalimagestores")
    seen: set[str] = set()
    for one in stores if isinstance(stores, list) else ():
        if isinstance(one, dict) and machine.podman >= 6 and one == {"append": True}:
            continue
        if not isinstance(one, str):
            yield where, error(f"additionalimagestores holds {one!r}", _REFUSED, 'paths in quotes: ["/scratch/images"]')
        elif not expand(one, machine).startswith("/"):
            yield (
                where,
                error(
                    f"the store {one} is no absolute path",
                    "Podman takes it from where it is started.",
                    "an absolute path",
                ),
            )
        elif one in seen:
            yield where, warning(f"the store {one} is there twice", "Podman reads and locks it twice.", "take one out")
        elif not os.path.isdir(one):
            why = "Podman then refuses every command (can't stat imageStore dir)."
            fix = f"mount it, or: migrate2scratch init {shlex.quote(one)}"
            yield where, error(f"the store {one} does not exist here", why, fix)
        else:
            yield from ((where, finding) for finding in content_findings(one))
        seen.add(str(one))


def _program(options: dict[str, Any], overlay: dict[str, Any], machine: Machine) -> Iterator[Problem]:
    for table, where in ((overlay, ("storage", "options", "overlay")), (options, ("storage", "options"))):
        program = table.get("mount_program")
        if not isinstance(program, str) or not program:
            continue
        here = (*where, "mount_program")
        if not os.path.isabs(program) or not os.access(program, os.X_OK):
            why = "Podman then refuses every command (can't stat program)."
            yield (
                here,
                error(
                    f"mount_program {program} cannot be executed here",
                    why,
                    "an absolute path that exists on every node",
                ),
            )
        elif machine.podman >= 6 and os.path.basename(program) in {"fuse-overlayfs-wrap", "parallax-mount-program.sh"}:
            why = (
                "It looks for l/LINK.squash, and Podman 6 names <layer>/diff: containers see an empty root file system."
            )
            yield (
                here,
                error(f"mount_program {program} does not know Podman 6", why, "squashmount-conf generate --write DIR"),
            )
    stores = options.get("additionalimagestores")
    for one in stores if isinstance(stores, list) else ():
        squashed = isinstance(one, str) and os.path.isdir(f"{one}/squashmount")
        if squashed and not (overlay.get("mount_program") or options.get("mount_program")):
            why = "The layers in it are empty directories: containers would see an empty root file system."
            yield (
                ("storage", "options"),
                error(f"{one} has squashed images, but no mount_program is set", why, "squashmount-conf generate"),
            )


def _reach(
    storage: dict[str, Any], options: dict[str, Any], overlay: dict[str, Any], path: str, machine: Machine
) -> Iterator[Problem]:
    main = os.path.abspath(path) in {"/etc/containers/storage.conf", "/usr/share/containers/storage.conf"}
    if main and machine.podman < 6:
        for table, key, where in (
            (options, "additionalimagestores", ("storage", "options")),
            (overlay, "mount_program", ("storage", "options", "overlay")),
        ):
            if table.get(key):
                why = f"Podman {machine.podman} gives rootless users few keys of this file, and not {key}."
                yield (
                    (*where, key),
                    warning(f"{key} does not reach rootless users", why, "squashmount-conf generate --site"),
                )
    old = storage.get("rootless_storage_path")
    if old is not None and machine.podman >= 6 and old != storage.get("graphroot"):
        ignored = "is ignored: graphroot is set too" if "graphroot" in storage else "is deprecated in Podman 6"
        fix = "graphroot in /etc/containers/storage.rootless.conf.d: squashmount-conf generate --podman 6"
        yield (
            ("storage", "rootless_storage_path"),
            warning(f"rootless_storage_path {ignored}", "Podman 6 reads graphroot.", fix),
        )
    named = path.endswith(SITE_STORAGE) or machine.environ.get("CONTAINERS_STORAGE_CONF") == os.path.abspath(path)
    if named and machine.podman < 6 and storage.get("graphroot") and old != storage["graphroot"]:
        why = "Podman 4 and 5 take only rootless_storage_path from a file named in CONTAINERS_STORAGE_CONF."
        fix = f'add rootless_storage_path = "{storage["graphroot"]}"'
        yield ("storage", "graphroot"), error(f"graphroot {storage['graphroot']} is not used", why, fix)


def containers(data: dict[str, Any], machine: Machine, above: tuple[str, ...] = ()) -> Iterator[Problem]:
    """Yield what is wrong with the tables of a containers.conf."""
    for where, finding in _schema(data, containers_schema.TABLES):
        yield (*above, *where), finding
    for (table, key), allowed in CHOICES.items():
        value = facts.table(data, table).get(key)
        if isinstance(value, str) and (value.lower() if key == "pull_policy" else value) not in allowed:
            names = ", ".join(name for name in allowed if name)
            yield (
                (*above, table, key),
                error(f"{key} = {value!r} is not allowed", "Podman refuses it.", f"one of {names}"),
            )
    for (table, key, gone), (since, instead) in GONE.items():
        # netns may have options behind: slirp4netns:port_handler=...
        if str(facts.table(data, table).get(key)).split(":", 1)[0] == gone and machine.podman >= since:
            what = f"{key} = {gone!r} does not exist in Podman {machine.podman}"
            yield (*above, table, key), error(what, f"It is gone since Podman {since}.", f'{key} = "{instead}"')
    engine = facts.table(data, "engine")
    hooks = engine.get("hooks_dir")
    for one in hooks if isinstance(hooks, list) else ():
        if isinstance(one, str):
            yield from (((*above, "engine", "hooks_dir"), finding) for finding in hooks_findings(one, _site_trust()))
    if engine.get("cgroup_manager") == "systemd" and "SLURM_JOB_ID" in machine.environ:
        why = "In a job there is no systemd session to ask for a cgroup; containers fail or leave the job's cgroup."
        yield (
            (*above, "engine", "cgroup_manager"),
            warning("cgroup_manager is systemd inside a job", why, 'cgroup_manager = "cgroupfs"'),
        )


def _site(data: dict[str, Any], machine: Machine) -> Iterator[Problem]:
    site = site_of(data)
    for key, value in (("graphroot", site.graphroot), ("runroot", site.runroot)):
        where = ("scratch", key)
        if value:
            forbidden = site.forbids(value, machine)
            if forbidden:
                yield (
                    where,
                    error(
                        f"{key} {value} is on {forbidden}, which is forbidden",
                        "The site says so.",
                        "a place on a local disk",
                    ),
                )
            here = facts.place(machine, read_mounts(), value, value, ())
            if here.shared:
                yield (
                    where,
                    error(
                        f"{key} {here.path} is on a network file system",
                        f"{here.target} is {here.fstype}.",
                        f'{key} = "{GRAPHROOT}"',
                    ),
                )
            if key == "runroot" and len(here.path) > RUNROOT_LIMIT:
                yield (
                    where,
                    error(
                        f"runroot {here.path} is too long",
                        f"Podman allows {RUNROOT_LIMIT} characters.",
                        f'runroot = "{RUNROOT}"',
                    ),
                )
    if site.mount_program and not os.access(site.mount_program, os.X_OK):
        why = "Where it is missing, Podman refuses every command."
        yield (
            ("mount_program",),
            warning(f"mount_program {site.mount_program} cannot be executed here", why, "install it on every node"),
        )
    for directory in site.hooks_dirs:
        yield from ((("hooks_dirs",), finding) for finding in hooks_findings(directory, site.trust))
    for name, module in site.modules.items():
        yield from containers(dict(module), machine, ("modules", name))
    if not site.stores:
        yield (
            (),
            info(
                "no store is named", "Images squashed by migrate2scratch are found only through stores.", "[[stores]]"
            ),
        )


def _trusted(kind: str, path: str) -> Iterator[Problem]:
    """Report a file for everybody (below /etc or /usr) that others could change."""
    real = os.path.abspath(path)
    if not (real.startswith(("/etc/", "/usr/")) or kind == "site.toml"):
        return
    doubt = Trust().doubt(real)
    if doubt:
        why = f"Whoever can write it decides what runs as other users, and {doubt}."
        yield (), error("the file is not trusted", why, "chown root, chmod go-w: the file, and every directory above")
    closed = _closed(os.path.realpath(real)) if real.startswith(("/etc/", "/usr/")) else ""
    if closed:
        why = "For users it is as if there were none, or Podman stops."
        right = "x" if os.path.isdir(closed) else "r"
        yield (), warning(f"users cannot read the file: {closed}", why, f"chmod a+{right} {shlex.quote(closed)}")


def _closed(path: str) -> str:
    """Return what on the way to a file, or the file, is closed to others; "" when they can read it."""
    parts = path.split("/")
    for above in ("/".join(parts[:count]) for count in range(2, len(parts))):
        if not os.stat(above).st_mode & 0o001:
            return above
    return "" if os.stat(path).st_mode & 0o004 else path
