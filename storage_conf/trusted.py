"""Directories of OCI hooks: whoever can write there decides what runs at everybody's container starts."""

import json
import os
from collections.abc import Iterator
from typing import Any

from squashmount.trust import Trust

from .finding import Finding, error, warning


def hooks_findings(directory: str, trust: Trust) -> Iterator[Finding]:
    """Yield what is wrong with a directory of OCI hooks: not there, or somebody else could put a hook into it."""
    fix = "chown root, chmod go-w: the files, and every directory above"
    if not os.path.isdir(directory):
        yield error(
            f"hooks_dir {directory} does not exist here", "Podman refuses to start containers.", f"mkdir -p {directory}"
        )
        return
    files = sorted(entry.path for entry in os.scandir(directory) if entry.name.endswith(".json"))
    for path in files:
        yield from _content(path)
    for path in (directory, *files, *filter(None, map(_program, files))):
        doubt = trust.doubt(os.path.abspath(path))
        if doubt:
            yield error(f"{path} is not trusted", f"A hook runs at every container start, and {doubt}.", fix)


def _content(path: str) -> Iterator[Finding]:
    """Judge a hook file itself (oci-hooks(5))."""
    hook = _read(path)
    if not isinstance(hook, dict) or not isinstance(hook.get("hook"), dict):
        yield error(
            f"{path} is no hook",
            "Podman then starts no container at all (`setting up OCI Hooks: parsing hook`).",
            "mend it, or take it away",
        )
    elif "prestart" in (stages if isinstance(stages := hook.get("stages"), list) else []):
        yield warning(
            f"{path} is for the stage prestart",
            "The OCI runtime specification gave it up, and with some user namespaces crun gives it a wrong bundle.",
            "createRuntime, or precreate, which Podman itself runs",
        )


def _read(path: str) -> Any:
    """Return what a JSON file holds; None where it is none, or not readable."""
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except (OSError, ValueError, RecursionError):
        return None


def _program(path: str) -> str:
    """Return what a hook file starts; "" where that cannot be read."""
    try:
        program = _read(path)["hook"]["path"]
    except (KeyError, TypeError):
        return ""
    return program if isinstance(program, str) and os.path.isabs(program) else ""
