"""Which files to write for whom, and writing them. The texts come from `conf`."""

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass

from squashmount.atomic import replace_text
from squashmount.errors import SpaceError, StoreError, UsageError

from .conf import GRAPHROOT, RUNROOT, Content, StorageSettings, merged, module_text
from .finding import Severity
from .podman import DROP_IN, Machine
from .profile_script import script
from .trusted import hooks_findings

SITE_STORAGE = "squashmount/storage.conf"
"""Below /etc/containers: the file that Podman <= 5 reads because PROFILE exports its name."""

PROFILE = "/etc/profile.d/squashmount.sh"
KEPT_SUFFIX = ".before-squashmount"
MODULES_DIR = "containers.conf.modules"
"""Below /etc/containers: what `podman --module NAME` (4.8 and newer) reads."""


@dataclass(frozen=True)
class Change:
    """One file: what it says now (None: it does not exist) and what it shall say."""

    path: str
    before: str | None
    after: str

    @property
    def kind(self) -> str:
        """Return created, changed or unchanged."""
        if self.before is None:
            return "created"
        return "unchanged" if self.before == self.after else "changed"

    @property
    def kept(self) -> str:
        """Return where the file of before the first run is kept."""
        return self.path + KEPT_SUFFIX


def plan_user(settings: StorageSettings, machine: Machine) -> tuple[Change, ...]:
    """Return the two files of one user; Podman 6 gets drop-ins, which a main file of the admin cannot hide."""
    drop_ins = settings.podman >= 6
    storage = f"storage.conf.d/{DROP_IN}" if drop_ins else "storage.conf"
    engine = f"containers.conf.d/{DROP_IN}" if drop_ins else "containers.conf"
    named = machine.environ.get("CONTAINERS_STORAGE_CONF")
    return (
        _change(named or os.path.join(machine.user_dir, storage), settings, Content.STORAGE),
        _change(os.path.join(machine.user_dir, engine), settings, Content.CONTAINERS),
    )


def plan_site(settings: StorageSettings, prefix: str = "") -> tuple[Change, ...]:
    """Return the files of a whole node. They speak to rootless users; root's own storage stays as it is."""
    etc = prefix.rstrip("/") + "/etc/containers"
    more = [Change(path, _read(path), text) for path, text in _texts(settings, prefix.rstrip("/"), etc)]
    if settings.podman >= 6:
        return (
            _change(f"{etc}/storage.rootless.conf.d/{DROP_IN}", settings, Content.STORAGE),
            _change(f"{etc}/containers.rootless.conf.d/{DROP_IN}", settings, Content.CONTAINERS),
            *more,
        )
    return (
        _change(f"{etc}/{SITE_STORAGE}", settings, Content.STORAGE),
        _change(f"{etc}/storage.conf", settings, Content.SYSTEM),
        _change(f"{etc}/containers.conf.d/{DROP_IN}", settings, Content.CONTAINERS),
        *more,
    )


def _texts(settings: StorageSettings, prefix: str, etc: str) -> Iterator[tuple[str, str]]:
    """Yield the files that are ours as a whole: the script for login shells, and modules."""
    base = f"/etc/containers/{SITE_STORAGE}"
    text = script(settings.site.stores, settings.stores, podman=settings.podman, base=base)
    if text:
        yield prefix + PROFILE, text
    for name, tables in sorted(settings.site.modules.items()):
        yield f"{etc}/{MODULES_DIR}/{name}", module_text(name, tables)


def require_allowed(settings: StorageSettings, machine: Machine) -> None:
    """Refuse what site.toml forbids, and hooks that others could change: UsageError."""
    for key, value in (("graphroot", settings.graphroot or GRAPHROOT), ("runroot", settings.runroot or RUNROOT)):
        place = settings.site.forbids(value, machine)
        if place:
            hint = f"--{key} on a local disk, or [scratch] in site.toml"
            raise UsageError(f"{key} {value} is on {place}, which the site forbids.", hint=hint)
    for directory in settings.site.hooks_dirs:
        wrong = (one for one in hooks_findings(directory, settings.site.trust) if one.severity is Severity.ERROR)
        for finding in wrong:
            raise UsageError(f"{finding.what}.", details=finding.why, hint=finding.fix)


def _change(path: str, settings: StorageSettings, content: Content) -> Change:
    before = _read(path)
    try:
        return Change(path, before, merged(before or "", settings, content))
    except UsageError as err:
        raise UsageError(f"{path} cannot be edited.", details=err.details, hint=err.hint) from err


def _read(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8", newline="") as file:
            return file.read()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as err:
        raise UsageError(f"{path} cannot be read.", details=str(err)) from err


def require_stores(stores: tuple[str, ...]) -> None:
    """Refuse a directory that Podman would refuse: StoreError ("can't stat imageStore dir", overlay.go)."""
    for store in stores:
        if not os.path.isdir(store):
            raise StoreError(
                f"The store {store} does not exist.",
                details="With it in storage.conf every podman command of this user would fail.",
                hint=f"make it first: migrate2scratch init {store}",
            )


def install(changes: tuple[Change, ...], *, for_all: bool = False) -> None:
    """Write what differs; the file of before the first run is kept beside. SpaceError when a place refuses.

    `for_all`: new directories are open to everybody, whatever the umask. Podman refuses every command of a user who
    cannot reach the file that a variable names.
    """
    for change in changes:
        if change.kind == "unchanged":
            continue
        try:
            # the target of a symbolic link is replaced: dotfile managers link ~/.config into a repository
            path = os.path.realpath(change.path)
            _make_directories(os.path.dirname(path), for_all=for_all)
            if change.before is not None and not os.path.lexists(change.kept):
                with suppress(FileNotFoundError):
                    replace_text(change.kept, change.before)
            replace_text(path, change.after, mode=_mode(path))
        except OSError as err:
            raise SpaceError(
                f"{change.path} cannot be written.",
                details=str(err),
                hint="without --write the text is printed; unset CONTAINERS_STORAGE_CONF to write your own file",
            ) from err


def _make_directories(path: str, *, for_all: bool) -> None:
    missing = []
    while not os.path.isdir(path):
        missing.append(path)
        path = os.path.dirname(path)
    for one in reversed(missing):
        os.makedirs(one, exist_ok=True)
        if for_all:
            os.chmod(one, 0o755)  # noqa: S103 - everybody reads the site's files


def _mode(path: str) -> int:
    try:
        return os.stat(path).st_mode & 0o777
    except FileNotFoundError:
        return 0o644


def left_behind(changes: tuple[Change, ...], environ: Mapping[str, str]) -> str | None:
    """Return the default graphroot when it has images and the new file leads somewhere else."""
    home = environ.get("XDG_DATA_HOME") or os.path.join(environ.get("HOME", "/"), ".local/share")
    default = os.path.join(home, "containers/storage")
    new = changes[0].before is None and GRAPHROOT in changes[0].after
    return default if new and os.path.isdir(os.path.join(default, "overlay-images")) else None
