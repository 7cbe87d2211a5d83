"""The loader's configuration in a tree: /etc/ld.so.conf and what it includes, ldconfig(8)."""

import os

from squashmount.lean import TYPE_CHECKING, NamedTuple

from .listing import matches

if TYPE_CHECKING:
    from .tree import Tree

PATH = "/etc/ld.so.conf"

_MOST = 200
_BYTES = 1 << 16


class LoaderConf(NamedTuple):
    """The directories it names; what it includes that is neither file nor directory; what could not be read."""

    directories: tuple[str, ...]
    odd: tuple[str, ...]
    problems: tuple[str, ...]


def read(tree: "Tree") -> LoaderConf:
    """Read the configuration, within bounds."""
    found: list[str] = []
    odd: list[str] = []
    problems: list[str] = []
    waiting, done = [PATH], set[str]()
    while waiting and len(done) < _MOST:
        current = waiting.pop(0)
        kind = "" if current in done else tree.kind(current)
        if kind == "other":
            odd.append(current)
        if kind != "file":
            continue
        done.add(current)
        for line in _lines(tree, current, problems):
            words = line.split("#", 1)[0].split()
            if len(words) > 1 and words[0] == "include":
                waiting += [name for word in words[1:] for name in matches(tree, os.path.join("/etc", word))]
            elif len(words) == 1 and words[0].startswith("/"):
                found.append(words[0])
    return LoaderConf(tuple(found), tuple(dict.fromkeys(odd)), tuple(problems))


def _lines(tree: "Tree", path: str, problems: list[str]) -> list[str]:
    try:
        with tree.open(path) as file:
            return file.read(_BYTES).decode("utf-8", "surrogateescape").splitlines()
    except OSError as error:
        problems.append(f"{path!r}: {error}")
        return []
