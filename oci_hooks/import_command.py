"""`squashmount-hooks import`: write the modules that a peer's configuration translates to."""

import json
import os

from squashmount import atomic
from squashmount.errors import SpaceError, UsageError

from .importers import Translated
from .module import load_table


def write(result: Translated, directory: str, *, force: bool) -> dict[str, str]:
    """Write and check the modules; return module name to path."""
    paths = {name: os.path.join(directory, f"{name}.toml") for name in result.modules}
    there = [path for path in paths.values() if os.path.lexists(path)]
    if there and not force:
        raise UsageError(
            "Modules of these names are there already.", details="\n".join(there), hint="another DIR, or --force"
        )
    try:
        os.makedirs(directory, exist_ok=True)
        for name, path in paths.items():
            atomic.replace_text(path, result.modules[name])
    except OSError as err:
        raise SpaceError(f"Cannot write to {directory}.", details=str(err)) from err
    for path in paths.values():
        load_table(path)
    return paths


def as_text(result: Translated, written: dict[str, str]) -> str:
    """Return what was written, or the modules themselves, and what has no translation."""
    lines = [written.get(name) or f"### {name}.toml\n{text}" for name, text in result.modules.items()]
    lines += [f"not translated: {one}" for one in result.untranslated]
    return "\n".join([*lines, f"{len(result.modules)} modules, {len(result.untranslated)} things not translated"])


def as_json(result: Translated, written: dict[str, str]) -> str:
    """Return the same as one JSON object."""
    untranslated = [
        {"file": one.file, "line": one.line, "what": one.what, "why": one.why} for one in result.untranslated
    ]
    return json.dumps({"modules": result.modules, "written": written, "untranslated": untranslated}, indent=2)
