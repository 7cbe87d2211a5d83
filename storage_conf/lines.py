"""In which line of a TOML file a key is set: the parsers say that of mistakes only.

Statements are told apart here (strings and brackets may go over lines), and each is read by tomllib, so that quoted and
dotted keys need no second parser.
"""

import re
import tomllib
from collections.abc import Iterator
from typing import Any

Path = tuple[str | int, ...]
"""The names that lead to a value, and numbers in arrays of tables."""

_TOKEN = re.compile(
    r'"""(?:\\.|[^\\])*?"""|' + r"'''.*?'''|" + r'"(?:\\.|[^"\\\n])*"|' + r"'[^'\n]*'|#[^\n]*|[\[\]{}\n]", re.DOTALL
)
_ERROR_LINE = re.compile(r"\(at line (\d+),")


class Lines:
    """The lines (from 1) of all keys and tables of a text that is TOML."""

    def __init__(self, text: str) -> None:
        """Read the text; one that is no TOML has no lines."""
        self._lines: dict[Path, int] = {}
        counts: dict[Path, int] = {}
        table: Path = ()
        try:
            for line, statement in _statements(text):
                table = self._read(line, statement, table, counts)
        except tomllib.TOMLDecodeError:
            return

    def _read(self, line: int, statement: str, table: Path, counts: dict[Path, int]) -> Path:
        if not statement.startswith("["):
            for path in _paths(tomllib.loads(statement)):
                self._lines.setdefault((*table, *path), line)
            return table
        many = statement.startswith("[[")
        keys = _first_path(tomllib.loads(statement[1:-1] if many else statement))
        table = self._resolved(keys[:-1], counts)
        if many:
            here = (*table, keys[-1])
            self._lines.setdefault(here, line)
            counts[here] = counts.get(here, -1) + 1
            table = (*here, counts[here])
        else:
            table = self._resolved(keys, counts)
        for length in range(1, len(table) + 1):
            self._lines.setdefault(table[:length], line)
        return table

    @staticmethod
    def _resolved(keys: tuple[str, ...], counts: dict[Path, int]) -> Path:
        path: Path = ()
        for key in keys:
            path = (*path, key)
            if path in counts:
                path = (*path, counts[path])
        return path

    def of(self, *path: str | int) -> int:
        """Return the line of a key, or of the nearest table above it; 0 where there is none."""
        for length in range(len(path), 0, -1):
            if path[:length] in self._lines:
                return self._lines[path[:length]]
        return 0


def line_of_error(err: Exception) -> int:
    """Return the line a TOML error names, else 0."""
    found = _ERROR_LINE.search(str(err))
    return int(found[1]) if found else 0


def _statements(text: str) -> Iterator[tuple[int, str]]:
    """Yield each statement with the line it begins in, without comments."""
    depth, begin, line, kept, at = 0, 1, 1, "", 0
    for token in _TOKEN.finditer(text):
        word = token[0]
        kept += text[at : token.start()]
        at = token.end()
        if word == "\n" and depth == 0:
            if kept.strip():
                yield begin, kept.strip()
            kept, begin = "", line + 1
        elif not word.startswith("#"):
            depth += (word in "[{") - (word in "]}")
            kept += word
        line += word.count("\n")
    kept += text[at:]
    if kept.strip():
        yield begin, kept.strip()


def _paths(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if path:
        yield path
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _paths(item, (*path, key))


def _first_path(table: dict[str, Any]) -> tuple[str, ...]:
    keys: tuple[str, ...] = ()
    while table:
        key, table = next(iter(table.items()))
        keys += (key,)
    return keys
