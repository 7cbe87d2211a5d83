"""`migrate2scratch images`: what is in the store, as a table or as JSON."""

import json
import time
from datetime import datetime

from squashmount import jsonio

from .capsule import Capsule
from .store import Store

_NONE = "<none>"


def rows(store: Store) -> list[jsonio.JsonObject]:
    """Return one row per name, or one per image without a name. Sizes in bytes; `health` is `ok` or what is wrong."""
    names = store.names()
    found: list[jsonio.JsonObject] = []
    for one, trouble, _ in store.all_capsules():
        if one is None:
            found.append({"id": "", "repository": _NONE, "tag": _NONE, "health": trouble})
            continue
        mine = sorted(name for name, owner in names.items() if owner == one.image)
        for name in mine or [""]:
            repository, tag = _split(name)
            found.append({"repository": repository, "tag": tag, "name": name, **_row(one), "health": trouble or "ok"})
    return found


def _row(one: Capsule) -> jsonio.JsonObject:
    return {
        "id": one.image,
        "digest": one.record.get("digest", ""),
        "size": one.size,
        "unpacked": one.tree_bytes,
        "files": one.entries,
        "compression": one.compression,
        "block": one.block,
        "created": one.created,
        "squashed": one.squashed,
        "squashed_by": one.made_by,
    }


def _split(name: str) -> tuple[str, str]:
    """Split a name as `podman images` shows it; a digest is no tag."""
    if not name:
        return _NONE, _NONE
    if "@" in name:
        return name.partition("@")[0], _NONE
    repository, colon, tag = name.rpartition(":")
    return (repository, tag) if colon and "/" not in tag else (name, _NONE)


def as_json(store: Store) -> str:
    """Return the rows as JSON."""
    return json.dumps(rows(store), indent=1)


def as_table(store: Store, now: float | None = None) -> str:
    """Return the rows as a table; its lines are not wrapped, so that scripts and narrow terminals get whole rows."""
    head = ("REPOSITORY", "TAG", "IMAGE ID", "ON DISK", "COMPRESSION", "CREATED", "SQUASHED", "HEALTH")
    moment = time.time() if now is None else now
    lines = [head, *(_cells(row, moment) for row in rows(store))]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def _cells(row: jsonio.JsonObject, now: float) -> tuple[str, ...]:
    health = str(row["health"]).splitlines()[0]
    if not row["id"]:
        return (_NONE, _NONE, "?", "?", "?", "?", "?", health)
    ages = (ago(str(row["created"]), now), ago(str(row["squashed"]), now))
    return (row["repository"], row["tag"], row["id"][:12], human(row["size"]), row["compression"], *ages, health)


def human(size: int) -> str:
    """Return a size with a decimal unit and three digits, as `podman images` prints it."""
    value, unit = float(size), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            break
        value /= 1000
    return f"{value:.3g} {unit}"


def ago(stamp: str, now: float) -> str:
    """Return how long ago an RFC 3339 time was, in the largest unit that fits."""
    try:
        seconds = now - datetime.fromisoformat(stamp[:19] + "+00:00").timestamp()
    except ValueError:
        return stamp
    for name, length in (("year", 31_536_000), ("month", 2_592_000), ("week", 604_800), ("day", 86_400)):
        if seconds >= 2 * length:
            return f"{int(seconds // length)} {name}s ago"
    for name, length in (("hour", 3600), ("minute", 60)):
        if seconds >= 2 * length:
            return f"{int(seconds // length)} {name}s ago"
    return f"{max(0, int(seconds))} seconds ago"
