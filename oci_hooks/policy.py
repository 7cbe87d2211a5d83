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

from squashmount.lean import Any, NamedTuple
from squashmount.trust import Trust

POLICY_FILE = "/etc/squashmount/hooks.toml"
MODULES_DIR = "/etc/squashmount/modules.d"
SHIPPED_DIR = os.path.join(os.path.dirname(os.path.abspath(__file__)), "modules")


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


def trust_of(policy: Policy) -> Trust:
    """Return which files of the host the policy lets us believe."""
    return Trust((*policy.trusted_owners, os.geteuid()), group_writable=policy.group_writable)
