"""Foreign JSON is parsed once, at the edge, into types; an error names the path to the bad value."""

import json

from .errors import StoreError
from .lean import Any

JsonObject = dict[str, Any]


def load_object(text: str | bytes, *, where: str) -> JsonObject:
    """Parse one JSON object; StoreError names `where` when the text is torn or is something else."""
    value = _load(text, where=where)
    if not isinstance(value, dict):
        raise StoreError(f"{where} is not a JSON object.")
    return value


def load_objects(text: str | bytes, *, where: str) -> list[JsonObject]:
    """Parse a JSON array of objects; an empty text is an empty list, as containers-storage reads it."""
    if not text.strip():
        return []
    value = _load(text, where=where)
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise StoreError(f"{where} is not a JSON list of objects.")
    return value


def _load(text: str | bytes, *, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as err:
        raise StoreError(f"{where} is not valid JSON.", details=str(err)) from err


def get_str(obj: JsonObject, key: str, default: str | None = None, *, where: str = "") -> str:
    """Return a string member; StoreError when it is missing (without default) or of another type."""
    value = obj.get(key, default)
    if not isinstance(value, str):
        raise _wrong(where, key, "a string", value)
    return value


def get_int(obj: JsonObject, key: str, default: int | None = None, *, where: str = "") -> int:
    """Return an integer member; true and false are not integers."""
    value = obj.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool):
        raise _wrong(where, key, "an integer", value)
    return value


def get_strs(obj: JsonObject, key: str, *, where: str = "") -> tuple[str, ...]:
    """Return a list of strings; a missing or null member is an empty list (Go writes null for an empty slice)."""
    value = obj.get(key) or []
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise _wrong(where, key, "a list of strings", value)
    return tuple(value)


def get_object(obj: JsonObject, key: str, *, where: str = "") -> JsonObject:
    """Return an object member; a missing or null member is an empty object."""
    value = obj.get(key) or {}
    if not isinstance(value, dict):
        raise _wrong(where, key, "an object", value)
    return value


def _wrong(where: str, key: str, expected: str, value: object) -> StoreError:
    path = f"{where}.{key}" if where else key
    return StoreError(f"{path} must be {expected}, not {type(value).__name__}.")
