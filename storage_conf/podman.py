"""Which configuration files a given Podman reads for a given user, in which order, and how it reads paths in them.

Sources: containers/storage types/options.go and utils.go (storage <= 1.5x: Podman 4 and 5), container-libs
storage/pkg/configfile/parse.go (Podman 6); what 4.3.1 and 5.4.2 do was tried on
Debian 12 and 13.
"""

import functools
import os
import pwd
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from squashmount.errors import ToolError, UsageError
from squashmount.process import run

SUPPORTED = (4, 5, 6)
OVERRIDE = "CONTAINERS_STORAGE_CONF_OVERRIDE"
"""Names a file that is read last, by Podman 6 and by what reads its files likewise (parse.go)."""
DROP_IN = "50-squashmount.conf"
"""The same name in a later directory replaces the file of an earlier one (parse.go, readDropIns)."""


@dataclass(frozen=True)
class Machine:
    """Whose view it is, and where the machine keeps things (tests point it into a temporary directory)."""

    environ: Mapping[str, str]
    uid: int
    podman: int
    etc: str = "/etc/containers"
    vendor: str = "/usr/share/containers"
    storage_conf: str = ""  # looked at as if it were the user's own storage.conf
    example: bool = False  # a made-up user: nothing is known of his session

    @property
    def rootless(self) -> bool:
        """Tell whether Podman uses the user's own storage."""
        return self.uid != 0

    @property
    def named_by_variable(self) -> bool:
        """Tell whether CONTAINERS_STORAGE_CONF names the file that counts."""
        return bool(self.environ.get("CONTAINERS_STORAGE_CONF")) and not self.storage_conf

    @property
    def user_dir(self) -> str:
        """Return the user's directory of containers configuration (homedir.GetConfigHome)."""
        return os.path.join(self.environ.get("XDG_CONFIG_HOME") or os.path.join(self.home, ".config"), "containers")

    @property
    def home(self) -> str:
        """Return $HOME, or without one what passwd(5) says (homedir.Get)."""
        if home := self.environ.get("HOME"):
            return home
        try:
            return pwd.getpwuid(self.uid).pw_dir
        except KeyError:
            return "/"

    @property
    def runtime_dir(self) -> str:
        """Return $XDG_RUNTIME_DIR as it is set; empty when it is not."""
        return self.environ.get("XDG_RUNTIME_DIR", "")


@dataclass(frozen=True)
class Installed:
    """The podman that is here: what it calls itself ("5.8.6"), and as which of SUPPORTED it reads its files."""

    version: str
    dialect: int

    @property
    def major(self) -> int:
        """Return the first number of the version."""
        return int(self.version.partition(".")[0])


def installed(environ: Mapping[str, str], *, program: str = "podman", timeout: float = 20.0) -> Installed:
    """Ask podman for its version and how it reads its files; `timeout` in seconds. ToolError: missing, or no answer.

    Debian's 5.8 reads them as 6 does (seen with 5.8.6): a 5 is asked whether it knows a variable that came with it.
    """
    good = _file_in_memory(b'[storage]\ndriver = "overlay"\ngraphroot = "/nonexistent"\nrunroot = "/nonexistent"\n')
    broken = _file_in_memory(b"[")
    # podman reads its files even for --version and fails on a broken one, which is what `check` is asked to explain
    asked = functools.partial(run, program, "--version", timeout=timeout, pass_fds=(good, broken))
    try:
        with _session_of_its_own(environ) as session:
            env = session | {"CONTAINERS_STORAGE_CONF": f"/proc/self/fd/{good}", "CONTAINERS_CONF": os.devnull}
            env.pop(OVERRIDE, None)
            said = asked(env=env, hint="install podman, or name the version: --podman 4|5|6").strip()
            found = re.search(r"\d+(?:\.\d+)+\S*", said)
            if not found:
                raise ToolError(f"This is no Podman: {said}.")
            this = Installed(found[0], min(int(found[0].partition(".")[0]), SUPPORTED[-1]))
            if this.major != 5 or asked(env=env | {OVERRIDE: f"/proc/self/fd/{broken}"}, ok=(0, 1, 125)):
                return this
            return Installed(this.version, 6)
    finally:
        os.close(good)
        os.close(broken)


@contextmanager
def _session_of_its_own(environ: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """Give the environment with a runtime directory that is gone afterwards; unchanged where none can be made.

    Even for --version Podman makes TMPDIR/containers-user-UID without XDG_RUNTIME_DIR (tried: 4.3.1), and Podman 5
    fails where it cannot write there.
    """
    runtime = environ.get("XDG_RUNTIME_DIR", "")
    try:
        own = tempfile.TemporaryDirectory(
            prefix="dr", dir=runtime if os.access(runtime, os.W_OK | os.X_OK) else None, ignore_cleanup_errors=True
        )
    except OSError:
        yield dict(environ)
        return
    with own as base:
        yield dict(environ) | {"XDG_RUNTIME_DIR": base, "TMPDIR": base}


def _file_in_memory(content: bytes) -> int:
    file = os.memfd_create("podman.conf")
    os.write(file, content)
    return file


def podman_major(program: str = "podman") -> int:
    """Ask the installed Podman how it reads its files: as 4, 5 or 6. ToolError when it is missing or older than 4."""
    found = installed(os.environ, program=program)
    if found.dialect < SUPPORTED[0]:
        raise ToolError(f"This Podman is not supported: {found.version}.", hint="Podman 4, 5 or 6 is needed")
    return found.dialect


def storage_files(machine: Machine) -> tuple[str, ...]:
    """Return the storage.conf files whose keys count, weakest first; only existing ones.

    Podman <= 5 reads one file whole. A rootless user without one gets little of the system file, see `system_file`.
    """
    named = machine.storage_conf or machine.environ.get("CONTAINERS_STORAGE_CONF")
    last = (machine.environ[OVERRIDE],) if machine.podman >= 6 and machine.environ.get(OVERRIDE) else ()
    if named:
        return (named, *last)
    if machine.podman >= 6:
        return (*_read_6(machine, "storage"), *last)
    if machine.rootless:
        return _existing(os.path.join(machine.user_dir, "storage.conf"))
    return tuple(filter(None, (system_file(machine),)))


def system_file(machine: Machine) -> str | None:
    """Return the system's storage.conf.

    Of it a rootless user of Podman <= 5 gets driver, rootless_storage_path, ignore_chown_errors and pull_options
    and nothing else (getRootlessStorageOpts), and with a file of his own nothing at all.
    """
    files = _existing(os.path.join(machine.etc, "storage.conf"), os.path.join(machine.vendor, "storage.conf"))
    return files[0] if files else None


def engine_files(machine: Machine) -> tuple[str, ...]:
    """Return the containers.conf files, weakest first (containers.conf(5)); only existing ones."""
    named = machine.environ.get("CONTAINERS_CONF")
    if named:
        return (named,)
    if machine.podman >= 6:
        return _read_6(machine, "containers")
    places = [os.path.join(folder, "containers.conf") for folder in (machine.vendor, machine.etc)]
    if machine.rootless:
        places.append(os.path.join(machine.user_dir, "containers.conf"))
    found: list[str] = []
    for main in places:
        found += _existing(main) + _drop_ins(main + ".d")
    return tuple(found)


def _read_6(machine: Machine, name: str) -> tuple[str, ...]:
    main = f"{name}.conf"
    folders = (machine.user_dir, machine.etc, machine.vendor)
    chosen = _existing(*(os.path.join(folder, main) for folder in folders))[:1]
    special = f"{name}.{'rootless' if machine.rootless else 'rootful'}.conf.d"
    by_name: dict[str, str] = {}
    places: list[str] = []
    for folder in (machine.vendor, machine.etc):
        places += [os.path.join(folder, main + ".d"), os.path.join(folder, special)]
        if machine.rootless:
            places.append(os.path.join(folder, special, str(machine.uid)))
    for place in [*places, os.path.join(machine.user_dir, main + ".d")]:
        by_name |= {os.path.basename(path): path for path in _drop_ins(place)}
    return chosen + tuple(by_name[key] for key in sorted(by_name))


def _existing(*paths: str) -> tuple[str, ...]:
    return tuple(path for path in paths if os.path.lexists(path))


def _drop_ins(folder: str) -> tuple[str, ...]:
    try:
        names = sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return ()
    return tuple(os.path.join(folder, name) for name in names if name.endswith(".conf"))


def expand(path: str, machine: Machine) -> str:
    """Return a path of storage.conf as Podman understands it (expandEnvPath; the same in Podman 4, 5 and 6).

    `$UID` is the user's id; every other variable comes from the environment and is *empty* when it is not there.
    That includes `${UID}`, which shells do not export.
    """
    text = path.replace("$UID", str(machine.uid))
    text = re.sub(r"\$(?:\{(\w+)\}|(\w+))", lambda found: machine.environ.get(found[1] or found[2], ""), text)
    return os.path.normpath(text) if text else ""


def unset_variables(path: str, machine: Machine) -> tuple[str, ...]:
    """Return the variables in a path that would expand to nothing."""
    text = path.replace("$UID", "")
    names = [first or second for first, second in re.findall(r"\$(?:\{(\w+)\}|(\w+))", text)]
    return tuple(name for name in names if not machine.environ.get(name))


def checked_major(number: int | None) -> int:
    """Return the asked-for version, or the installed one."""
    if number is None:
        return podman_major()
    if number not in SUPPORTED:
        raise UsageError(f"Podman {number} is not known here.", hint="--podman 4, 5 or 6")
    return number
