"""All modules of this host and the policy: read from TOML when a file changed, otherwise from their compiled form.

TOML costs 50 ms and more; the hook has 20. The compiled form lies in the state directory (of the user, or of root), and
is taken only if the files it was made from are the same to the nanosecond.
"""

import os
import sys

from squashmount.errors import SquashmountError, UsageError
from squashmount.lean import Any, NamedTuple
from squashmount.trust import Trust, require_trusted

from . import module, policy
from .leanjson import dumps, loads

FORMAT = 3
COMPILED = "hook-modules.json"


class Catalogue(NamedTuple):
    """What was found; `digest` changes when any file does."""

    policy: policy.Policy
    modules: dict[str, module.Module]
    digest: str
    trust: Trust


def read(environ: dict[str, str], *, policy_file: str = "", state: str = "") -> Catalogue:
    """Return the policy and the modules. UsageError for a file that is wrong or not trusted.

    `policy_file` instead of the site's; `state` is the directory for the compiled form, "" to do without. A broken
    module is an error for all containers: nobody can say which of them it was meant for.
    """
    compiled = os.path.join(state, COMPILED) if state else ""
    known = _compiled(compiled, environ, policy_file) if compiled else None
    if known is None:
        known = _from_files(environ, policy_file)
        if compiled:
            _keep(compiled, known)
    rules = policy.built(known["policy"])
    trust = policy.trust_of(rules)
    for path in known["dirs"]:
        require_trusted(trust, path, "module directory")
    modules = {table["name"]: module.built(table, origin) for origin, table in known["modules"]}
    return Catalogue(rules, modules, repr(known["files"]), trust)


def _compiled(path: str, environ: dict[str, str], policy_file: str) -> dict[str, Any] | None:
    try:
        with open(path, "rb") as file:
            known = loads(file.read(), where=path)
        if known["format"] != FORMAT or known["asked"] != _asked(environ, policy_file):
            return None
        same = known["files"] == _stamps([stamp[0] for stamp in known["files"]])
    except (OSError, UsageError, KeyError, TypeError, IndexError):
        return None
    return known if same else None


def _asked(environ: dict[str, str], policy_file: str) -> list[str]:
    # an upgrade of this package brings other shipped modules, and perhaps other keys
    return [policy_file, policy.user_dir(environ), policy.SHIPPED_DIR, sys.version]


def _keep(path: str, known: dict[str, Any]) -> None:
    from squashmount import atomic  # noqa: PLC0415 - only after a change

    try:
        atomic.replace_text(path, dumps(known).decode(), mode=0o600)
    except OSError:
        return  # without it the next start takes longer, no more


def _from_files(environ: dict[str, str], policy_file: str) -> dict[str, Any]:
    place = policy_file or policy.POLICY_FILE
    table: dict[str, Any] = {}
    if policy_file or os.path.exists(place):
        table = policy.load_table(place)
    rules = policy.built(table)
    trust = policy.trust_of(rules)
    if table:
        require_trusted(policy.trust_of(policy.Policy()), place, "policy")
    own = policy.user_dir(environ) if rules.user_modules != "no" else ""
    dirs = policy.module_dirs(rules) + ([own] if own else [])
    stamped = [place, *dirs]
    found: dict[str, list[Any]] = {}
    for directory in dirs:
        for name in _listed(directory):
            path = os.path.join(directory, name)
            stamped.append(path)
            require_trusted(trust, path, "module")
            one = module.load_table(path)
            before = found.get(one["name"])
            if before and directory == own and rules.user_modules != "override":
                raise UsageError(
                    f"Your module {path} has the name of the site's {before[0]}.",
                    hint="give it another name; the policy does not let users replace modules",
                )
            found[one["name"]] = [path, one]
    return {
        "format": FORMAT,
        "asked": _asked(environ, policy_file),
        "files": _stamps(stamped),
        "dirs": [path for path in dirs if os.path.isdir(path)],
        "policy": table,
        "modules": list(found.values()),
    }


def _listed(directory: str) -> list[str]:
    try:
        return sorted(name for name in os.listdir(directory) if name.endswith(".toml") and not name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as err:
        raise SquashmountError(
            f"The modules in {directory} cannot be read.",
            details=str(err),
            hint="everybody must be able to read it, or the policy (modules = [...]) must not name it",
        ) from err


def _stamps(paths: list[str]) -> list[list[Any]]:
    stamps: list[list[Any]] = []
    for path in paths:
        try:
            status = os.stat(path)
        except OSError:
            stamps.append([path])
            continue
        stamps.append([path, status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino])
    return stamps
