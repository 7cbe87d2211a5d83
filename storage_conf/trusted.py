"""Directories of OCI hooks: whoever can write there decides what runs at everybody's container starts."""

import json
import os
from collections.abc import Iterator

from squashmount.trust import Trust

from .finding import Finding, error


def hooks_findings(directory: str, trust: Trust) -> Iterator[Finding]:
    """Yield what is wrong with a directory of OCI hooks: not there, or somebody else could put a hook into it."""
    fix = "chown root, chmod go-w: the files, and every directory above"
    if not os.path.isdir(directory):
        yield error(
            f"hooks_dir {directory} does not exist here", "Podman refuses to start containers.", f"mkdir -p {directory}"
        )
        return
    files = sorted(entry.path for entry in os.scandir(directory) if entry.name.endswith(".json"))
    for path in (directory, *files, *filter(None, map(_program, files))):
        doubt = trust.doubt(os.path.abspath(path))
        if doubt:
            yield error(f"{path} is not trusted", f"A hook runs at every container start, and {doubt}.", fix)


def _program(path: str) -> str:
    """Return what a hook file starts; "" where that cannot be read."""
    try:
        with open(path, encoding="utf-8") as file:
            program = json.load(file)["hook"]["path"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ""
    return program if isinstance(program, str) and os.path.isabs(program) else ""
