"""Tables of a TOML file by their description: checked with the key path in every error, and as JSON schema.

One description serves `parse`, `squashmount-hooks check` and module.schema.json, so that they cannot disagree.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from squashmount.errors import UsageError

_WORDS = {
    "string": "a string",
    "boolean": "true or false",
    "strings": "a list of strings",
    "map": "a table of strings",
    "table": "a table",
    "tables": "a list of tables ([[...]])",
    "integers": "a list of numbers",
}


@dataclass(frozen=True, slots=True)
class Key:
    """One key: its kind (a word of `_WORDS`), what it is for, what it may say, and for tables the keys inside.

    `pattern` is for texts, `names` for the names in a map.
    """

    kind: str
    help: str
    choices: tuple[str, ...] = ()
    pattern: str = ""
    names: str = ""
    required: bool = False
    keys: Mapping[str, "Key"] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Complaint:
    """One thing wrong: the key path, what, and what is allowed instead."""

    path: str
    what: str
    hint: str = ""

    def __str__(self) -> str:
        return f"{self.path}: {self.what}" + (f" ({self.hint})" if self.hint else "")


def complaints(value: Mapping[str, Any], keys: Mapping[str, Key], path: str = "") -> Iterator[Complaint]:
    """Yield all that is wrong with a table, in the order of its keys."""
    for name, one in value.items():
        here = f"{path}.{name}" if path else name
        if name not in keys:
            yield Complaint(here, "unknown key", _near(name, keys))
            continue
        yield from _value(one, keys[name], here)
    for name, key in keys.items():
        if key.required and name not in value:
            yield Complaint(f"{path}.{name}" if path else name, "is missing", key.help)


def _near(name: str, keys: Mapping[str, Key]) -> str:
    import difflib  # noqa: PLC0415 - only for a mistake

    near = difflib.get_close_matches(name.lower().replace("-", "_"), keys, n=1, cutoff=0.6)
    return f"did you mean {near[0]}?" if near else "known here: " + ", ".join(keys)


def _value(value: Any, key: Key, path: str) -> Iterator[Complaint]:
    wrong = Complaint(path, f"must be {_WORDS[key.kind]}", key.help)
    match key.kind, value:
        case "string", str():
            yield from _text(value, key, path)
        case "boolean", bool():
            pass
        case "strings", list():
            for at, item in enumerate(value):
                if isinstance(item, str):
                    yield from _text(item, key, f"{path}[{at}]")
                else:
                    yield Complaint(f"{path}[{at}]", "must be a string", key.help)
        case "integers", list():
            if not all(isinstance(item, int) and not isinstance(item, bool) and item >= 0 for item in value):
                yield wrong
        case "map", dict():
            for name, item in value.items():
                if key.names and not re.fullmatch(key.names, name):
                    yield Complaint(f"{path}.{name!r}", "is not the name of a variable", key.help)
                elif isinstance(item, str):
                    yield from _text(item, key, f"{path}.{name}")
                else:
                    yield Complaint(f"{path}.{name}", "must be a string", key.help)
        case "table", dict():
            yield from complaints(value, key.keys, path)
        case "tables", list():
            for at, item in enumerate(value):
                if isinstance(item, dict):
                    yield from complaints(item, key.keys, f"{path}[{at}]")
                else:
                    yield wrong
        case _:
            yield wrong


def _text(value: str, key: Key, path: str) -> Iterator[Complaint]:
    if "\0" in value:
        yield Complaint(path, "contains a null byte")
    elif key.choices and value not in key.choices:
        yield Complaint(path, f"{value!r} is not allowed", "one of " + ", ".join(key.choices))
    elif key.pattern and not re.fullmatch(key.pattern, value):
        yield Complaint(path, f"{value!r} is not allowed", key.help)


def check(value: Mapping[str, Any], keys: Mapping[str, Key], *, where: str) -> None:
    """Raise UsageError with everything that is wrong with the table read from the file `where`."""
    found = list(complaints(value, keys))
    if found:
        first, *others = map(str, found)
        raise UsageError(f"{where}: {first}.", details="\n".join(f"also {each}" for each in others))


def read_toml(path: str) -> dict[str, Any]:
    """Read a TOML file; UsageError names it when it cannot be read or parsed."""
    import tomllib  # noqa: PLC0415 - 10 ms; the hook reads the compiled form instead

    try:
        with open(path, "rb") as file:
            return tomllib.load(file)
    except OSError as err:
        raise UsageError(
            f"Cannot read {path}.", details=str(err), hint="is the name right, and may you read it?"
        ) from err
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as err:
        raise UsageError(
            f"{path} is not valid TOML.", details=str(err), hint=f"mend it, then: squashmount-hooks check {path}"
        ) from err


def json_schema(keys: Mapping[str, Key], *, title: str) -> dict[str, Any]:
    """Return the JSON schema (draft 2020-12) of a file with these keys."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": title, **_table_schema(keys)}


def _table_schema(keys: Mapping[str, Key]) -> dict[str, Any]:
    required = [name for name, key in keys.items() if key.required]
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": {name: {"description": key.help, **_schema(key)} for name, key in keys.items()},
        **({"required": required} if required else {}),
    }


def _schema(key: Key) -> dict[str, Any]:
    text: dict[str, Any] = {"type": "string"}
    if key.choices:
        text["enum"] = list(key.choices)
    if key.pattern:
        text["pattern"] = f"^(?:{key.pattern})$"
    named = {"propertyNames": {"pattern": f"^(?:{key.names})$"}} if key.names else {}
    return {
        "string": text,
        "boolean": {"type": "boolean"},
        "strings": {"type": "array", "items": text},
        "integers": {"type": "array", "items": {"type": "integer", "minimum": 0}},
        "map": {"type": "object", "additionalProperties": text, **named},
        "table": _table_schema(key.keys),
        "tables": {"type": "array", "items": _table_schema(key.keys)},
    }[key.kind]
