"""The host libraries a module lists ([[libraries]]), by path, pattern or SONAME."""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .libraries import Libraries, Library

if TYPE_CHECKING:
    from .module import LibraryRule
    from .planners import Question

_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})", re.ASCII)


@dataclass(frozen=True)
class Listed:
    """What the rules come to: `others` are dependencies and providers; `missing` says what is not on the host."""

    primaries: tuple[Library, ...]
    others: tuple[Library, ...]
    missing: tuple[str, ...]


def host_libraries(question: "Question", host: Libraries) -> Listed:
    """Follow the rules of a module. Of the job's environment only what the module allows is read."""
    primaries: list[Library] = []
    others: list[Library] = []
    missing: list[str] = []
    for rule in question.module.libraries:
        found = _follow(rule, question, host)
        if not found and not rule.optional:
            missing.append(f"The library {rule.path or rule.soname} of the module is not on this host.")
        (primaries if rule.role == "primary" else others).extend(found)
    return Listed(tuple(primaries), tuple(others), tuple(missing))


def _follow(rule: "LibraryRule", question: "Question", host: Libraries) -> list[Library]:
    if not rule.path:
        return host.named(rule.soname)[:1]
    lacking = False

    def value(match: re.Match[str]) -> str:
        nonlocal lacking
        name = match[1] or match[2]
        text = question.environ.get(name, "") if name in question.module.allow_env else ""
        lacking = lacking or not text
        # what the job says is a path, never a pattern
        return re.sub(r"[*?[]", r"[\g<0>]", text)

    pattern = _VARIABLE.sub(value, rule.path)
    if lacking or not pattern.startswith("/") or ".." in pattern.split("/"):
        return []
    return [library for path in host.matches(pattern) if (library := host.load(path))]


def host_glibc(question: "Question") -> bool:
    """Return whether the host's C library is put into the container as well."""
    return "glibc" in question.planners
