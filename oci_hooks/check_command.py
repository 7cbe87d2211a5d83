"""`squashmount-hooks check`: what is wrong with module files and policies, and what would not work on this host."""

import difflib
import os
from collections.abc import Iterable, Iterator
from typing import Any

from squashmount.errors import UsageError

from . import policy
from .module import load_table
from .planners import PLANNERS, READS
from .policy import Policy, trust_of

Table = dict[str, Any]


def check(files: list[str], *, policy_file: str, environ: dict[str, str]) -> Iterator[tuple[str, bool]]:
    """Yield a text for each file, and whether it is right; remarks do not make it wrong.

    Modules are judged by `policy_file`, or else by the policy among the files, or else by the site's. UsageError for a
    `policy_file` that is wrong.
    """
    tables: dict[str, Table | UsageError] = {path: _read(path) for path in files}
    rules = _rules(policy_file, tables)
    good = {path: table for path, table in tables.items() if not isinstance(table, UsageError)}
    names = {str(table["name"]) for path, table in good.items() if not _is_policy(path)}
    known = names | _installed(rules, environ)
    for path, table in tables.items():
        if isinstance(table, UsageError):
            yield str(table), False
            continue
        wrong = "" if _is_policy(path) else _planner(table)
        if wrong:
            yield f"{path}: {wrong}.", False
            continue
        what = "policy" if _is_policy(path) else f"module {table['name']}"
        remarks = [*_unknown(table, known), *([] if _is_policy(path) else _unnamed(table)), *_doubt(path, rules)]
        yield f"{path}: {what}: fine" + (", but " if remarks else "") + ", and ".join(remarks), True


def _is_policy(path: str) -> bool:
    return os.path.basename(path) == os.path.basename(policy.POLICY_FILE)


def _read(path: str) -> Table | UsageError:
    try:
        return policy.load_table(path) if _is_policy(path) else load_table(path)
    except UsageError as err:
        return err


def _rules(policy_file: str, tables: dict[str, Table | UsageError]) -> Policy:
    if policy_file:
        return policy.built(policy.load_table(policy_file))
    for path, table in tables.items():
        if _is_policy(path) and not isinstance(table, UsageError):
            return policy.built(table)
    site = _read(policy.POLICY_FILE)  # not there, or wrong: its own check says so
    return Policy() if isinstance(site, UsageError) else policy.built(site)


def _installed(rules: Policy, environ: dict[str, str]) -> set[str]:
    """Return the names of the modules that containers of this host can have, as far as they can be read."""
    own = policy.user_dir(environ) if rules.user_modules != "no" else ""
    names = set()
    for folder in [*policy.module_dirs(rules), *([own] if own else [])]:
        try:
            files = [os.path.join(folder, name) for name in os.listdir(folder) if name.endswith(".toml")]
        except OSError:
            continue
        tables = {path: _read(path) for path in files if not os.path.basename(path).startswith(".")}
        names |= {str(table["name"]) for table in tables.values() if not isinstance(table, UsageError)}
    return names


def _planner(table: Table) -> str:
    name = table.get("planner", "")
    if not name or name in PLANNERS:
        return ""
    return f"planner: {name!r} does not exist ({_near(name, PLANNERS) or 'one of ' + ', '.join(sorted(PLANNERS))})"


def _near(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, sorted(known), n=1)
    return f"did you mean {near[0]}?" if near else ""


def _unknown(table: Table, known: set[str]) -> Iterator[str]:
    """Yield remarks about names of modules that nobody has."""
    for key in ("requires", "conflicts", "on", "off"):
        for name in table.get(key, ()):
            if name not in known:
                near = _near(name, known)
                there = "is neither among these files nor on this host"
                yield f"{key} names the module {name}, which {there}" + (f" ({near})" if near else "")


def _unnamed(table: Table) -> Iterator[str]:
    """Yield a remark about what a planner asks of the container's environment where the module says nothing of it."""
    planner = table.get("planner") or ("libraries" if table.get("libraries") else "")
    if "image_env" not in table and planner in READS:
        yield f"without image_env it is told nothing of the container's {', '.join(READS[planner])}"


def _doubt(path: str, rules: Policy) -> Iterator[str]:
    # nobody can make his own policy trusted by what it says
    doubt = trust_of(Policy() if _is_policy(path) else rules).doubt(path)
    if doubt:
        yield f"the hook would not trust it: {doubt}"
