"""Names in a tree: what a directory holds, and what a pattern means."""

import os

from squashmount.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from .tree import Tree


def names_in(tree: "Tree", path: str) -> list[str]:
    """Return the names in a directory; none where it cannot be read."""
    try:
        return tree.listdir(path)
    except OSError:
        return []


def is_pattern(text: str) -> bool:
    """Tell whether a path or a step of one is a shell pattern."""
    return any(char in text for char in "*?[")


def matches(tree: "Tree", pattern: str) -> list[str]:
    """Return the paths an absolute shell pattern means, sorted; names with a leading dot only when asked for."""
    if not is_pattern(pattern):
        return [pattern] if tree.kind(pattern) else []
    from fnmatch import fnmatchcase  # noqa: PLC0415 - loads `re`

    found = ["/"]
    for step in filter(None, pattern.split("/")):
        if not is_pattern(step):
            found = [path for path in (os.path.join(base, step) for base in found) if tree.kind(path)]
            continue
        found = [
            os.path.join(base, name)
            for base in found
            for name in names_in(tree, base)
            if fnmatchcase(name, step) and (step[0] == "." or name[0] != ".")
        ]
    return found
