"""What the site allows (/etc/squashmount/hooks.toml), and which files may be trusted.

Keys (TOML, top level)::

    modules = ["/etc/squashmount/modules.d"]   # directories, the last wins where two have a module of the same name
    shipped = true                             # the modules that come with squashmount can be used, too
    user_modules = "no"                        # no | add | override: modules in ~/.config/squashmount/modules.d
    on = []                                    # names of modules that are on for everybody
    off = []                                   # names of modules nobody can use
    forbidden = ["/proc", "/sys", "/dev", ...] # nothing is mounted or copied at, above or below these inside
    missing_required = "error"                 # error | warn: the host lacks what a module needs
    mpi_mismatch = "error"                     # error | warn: the host's MPI is older than the container's
    trusted_owners = []                        # uids besides root whose files may be injected
    group_writable = false                     # files and directories that their group can write are trusted
    ssh_directory = "$HOME/.local/state/squashmount/ssh"  # keys of jobs: shared by the nodes, the user's own
    ssh_ports = [20000, 31999]                 # first and last port of sshd in containers
"""

import os
import stat

from squashmount.errors import UsageError
from squashmount.lean import Any, NamedTuple

POLICY_FILE = "/etc/squashmount/hooks.toml"
MODULES_DIR = "/etc/squashmount/modules.d"
SHIPPED_DIR = os.path.join(os.path.dirname(os.path.abspath(__file__)), "modules")

_OVERFLOW_UID = 65534


class Policy(NamedTuple):
    """All settings, checked; the module docstring explains each."""

    modules: tuple[str, ...] = (MODULES_DIR,)
    shipped: bool = True
    user_modules: str = "no"
    on: tuple[str, ...] = ()
    off: tuple[str, ...] = ()
    forbidden: tuple[str, ...] = (
        *("/proc", "/sys", "/dev", "/etc/passwd", "/etc/group", "/etc/shadow", "/etc/gshadow", "/etc/sudoers"),
        *("/etc/ld.so.preload", "/run/.containerenv", "/run/secrets"),
    )
    missing_required: str = "error"
    mpi_mismatch: str = "error"
    trusted_owners: tuple[int, ...] = ()
    group_writable: bool = False
    ssh_directory: str = "$HOME/.local/state/squashmount/ssh"
    ssh_ports: tuple[int, ...] = (20000, 31999)

    def forbids(self, target: str) -> str:
        """Return the forbidden path a destination touches, which must be resolved; "" when it may be used.

        Above counts, too: a mount on /etc hides /etc/passwd.
        """
        if target == "/":
            return "/"
        for path in self.forbidden:
            if target == path or target.startswith(f"{path}/") or path.startswith(f"{target}/"):
                return path
        return ""


def built(table: dict[str, Any]) -> Policy:
    """Make the policy of a table that was checked before."""
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in table.items()}
    return Policy(**values)


def load_table(path: str) -> dict[str, Any]:
    """Read and check a policy file, as the table it is. UsageError names the file, the key and what is allowed."""
    from .keys import check, read_toml  # noqa: PLC0415 - not in the hook
    from .policy_keys import KEYS  # noqa: PLC0415 - the same

    table = read_toml(path)
    check(table, KEYS, where=path)
    return table


def module_dirs(policy: Policy) -> list[str]:
    """Return the directories of modules, the strongest last, the user's not among them."""
    return [*([SHIPPED_DIR] if policy.shipped else []), *policy.modules]


def user_dir(environ: dict[str, str]) -> str:
    """Return where a user's own modules lie; "" without a home."""
    home = environ.get("XDG_CONFIG_HOME") or (os.path.join(environ["HOME"], ".config") if environ.get("HOME") else "")
    return os.path.join(home, "squashmount", "modules.d") if os.path.isabs(home) else ""


class Trust:
    """Which files of the host nobody but root, the user and the site's trusted owners could have changed.

    A file is trusted when it, and every directory on the way to it (links followed), has such an owner and cannot be
    written by group or others. A directory with the sticky bit is passed: nobody can replace another's file there
    (unlink(2), EPERM). Inside a user namespace all owners without a mapping look the same (user_namespaces(7)): root
    cannot be told from other users of the host, so there the check covers modes and the user's own files.
    """

    def __init__(self, policy: Policy) -> None:
        """Remember who is trusted; answers are remembered per directory."""
        self._owners = {0, os.geteuid(), *policy.trusted_owners}
        if in_user_namespace():
            self._owners.add(_overflow_uid())
        self._mask = 0o002 if policy.group_writable else 0o022
        self._known: dict[str, str] = {}

    def doubt(self, path: str) -> str:
        """Return why a path cannot be trusted, in a few words; "" when it can. A path that is not there can."""
        real = os.path.realpath(path)
        return self._doubt_of(real) or (self._links(path) if real != path else "")

    def _doubt_of(self, path: str) -> str:
        known = self._known.get(path)
        if known is None:
            parent = os.path.dirname(path)
            known = (self._doubt_of(parent) if parent != path else "") or self._own_doubt(path)
            self._known[path] = known
        return known

    def _links(self, path: str) -> str:
        # the directories that hold the links decide where they lead
        parts = path.split("/")
        for count in range(2, len(parts) + 1):
            step = "/".join(parts[:count])
            if os.path.islink(step):
                doubt = self._doubt_of(os.path.realpath(os.path.dirname(step)))
                if doubt:
                    return doubt
        return ""

    def _own_doubt(self, path: str) -> str:
        try:
            status = os.stat(path)
        except OSError:
            return ""
        if status.st_uid not in self._owners:
            return f"{path!r} belongs to uid {status.st_uid}"
        if stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
            return ""
        sticky = stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX
        if status.st_mode & self._mask and not sticky:
            who = "everybody" if status.st_mode & 0o002 else "its group"
            return f"{path!r} can be written by {who}"
        return ""


def in_user_namespace() -> bool:
    """Tell whether the ids seen here are not the host's (user_namespaces(7))."""
    with open("/proc/self/uid_map", "rb") as file:
        return file.read().split() != [b"0", b"0", b"4294967295"]


def _overflow_uid() -> int:
    try:
        with open("/proc/sys/kernel/overflowuid", "rb") as file:
            return int(file.read())
    except OSError:
        return _OVERFLOW_UID


def require_trusted(trust: Trust, path: str, what: str) -> None:
    """Raise UsageError when a file that steers the hook could have been changed by others."""
    doubt = trust.doubt(path)
    if doubt:
        raise UsageError(
            f"The {what} {path} is not trusted.",
            details=doubt,
            hint="owner root (or you) and no write permission for group and others, in all directories above, too",
        )
