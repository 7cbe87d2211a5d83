"""`squashmount-conf doctor --explain`: a message, or a log with messages in it, → causes and what to type."""

import io
import json
import os
import sys
from collections.abc import Iterator
from typing import IO, Any

from squashmount.command_line import say
from squashmount.errors import SquashmountError

from ..messages.catalogue import MESSAGES, markdown
from ..messages.message import LINE_BYTES, Match, explained

_UNKNOWN = (
    "squashmount-conf doctor looks for causes on this node; squashmount-conf check reads the configuration. "
    "Paste the whole output, from its first line on: the cause stands often before the last"
)


def explain(text: str, *, as_json: bool = False) -> int:
    """Print what is known of a message, or (`-`) of a log on standard input. SquashmountError where nothing is."""
    given = sys.stdin.buffer if text == "-" else io.BytesIO(os.fsencode(text))
    matches = explained(_lines(given), MESSAGES)
    if as_json:
        say(json.dumps({"format": 1, "messages": [_as_json(match) for match in matches]}, indent=2))
        return 0 if matches else SquashmountError.exit_code
    if not matches:
        raise SquashmountError("No message in this is known.", hint=_UNKNOWN)
    say("\n\n".join(map(_as_text, matches)))
    return 0


def print_catalogue() -> int:
    """Print docs/errors.md."""
    sys.stdout.write(markdown())
    return 0


def _lines(given: IO[bytes]) -> Iterator[str]:
    """Yield lines, long ones in parts: a log may be one line of any length."""
    while line := given.readline(LINE_BYTES):
        yield line.decode("utf-8", "replace")


def _as_text(match: Match) -> str:
    shown = "".join(char if char.isprintable() else "?" for char in match.line)
    lines = [shown if len(shown) <= 500 else shown[:500] + " ...", f"  cause: {match.cause}", f"  fix: {match.fix}"]
    if match.message.ids:
        ids = ",".join(match.message.ids)
        lines.append(f"  checks: {ids}")
    return "\n".join(lines)


def _as_json(match: Match) -> dict[str, Any]:
    return {
        "message": match.message.text,
        "line": match.line,
        "cause": match.cause,
        "fix": match.fix,
        "ids": list(match.message.ids),
    }
