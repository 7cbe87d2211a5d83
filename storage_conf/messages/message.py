"""A known message, and how it is found in what a user pastes: a line, or a log of any length.

A message is the literal text of a program with `{names}` where it differs. It is found by looking for its literal pieces
one after the other in a line, not by a regular expression: a log cannot make that slow.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

LINE_BYTES = 16384
"""A longer line is looked at in parts of this size."""

_WRAPPED_CHARS = 8192
_BATCH_CHARS = 1 << 18
_NAME = re.compile(r"\{(\w+)\}")
_PLAIN = re.compile(r"[\w@%+=:,./-]{1,200}")


@dataclass(frozen=True)
class Message:
    """One message: `text` and `also` (other spellings of it), a verbatim example, the cause, what to type.

    `ids` are the checks of `squashmount-conf doctor` that look at the cause.
    """

    text: str
    example: str
    cause: str
    fix: str
    ids: tuple[str, ...] = ()
    also: tuple[str, ...] = ()

    @cached_property
    def spellings(self) -> tuple["Spelling", ...]:
        """Return every spelling, ready to be looked for."""
        return tuple(Spelling.of(text) for text in (self.text, *self.also))


@dataclass(frozen=True)
class Spelling:
    """The literal pieces of a text, and the names of what stands between them (and behind the last)."""

    pieces: tuple[str, ...]
    names: tuple[str, ...]

    @classmethod
    def of(cls, text: str) -> "Spelling":
        """Take a text apart; it begins with a literal piece."""
        parts = _NAME.split(text)
        return cls(tuple(part for part in parts[::2] if part), tuple(parts[1::2]))

    @property
    def weight(self) -> int:
        """Return how many characters are literal: the more, the more a match says."""
        return sum(map(len, self.pieces))

    def may_be_in(self, text: str) -> bool:
        """Tell whether all pieces are in a text of many lines, wherever."""
        return all(piece in text for piece in self.pieces)

    def find(self, line: str) -> tuple[int, int, dict[str, str]] | None:
        """Return where it is in a line, and what stands for its names."""
        first = at = line.find(self.pieces[0])
        if first < 0:
            return None
        values = []
        end = at + len(self.pieces[0])
        for piece in self.pieces[1:]:
            at = line.find(piece, end)
            if at < 0:
                return None
            values.append(line[end:at])
            end = at + len(piece)
        if len(values) < len(self.names):
            values.append(line[end:].strip().rstrip(".)"))
        return first, end, dict(zip(self.names, values, strict=True))


@dataclass(frozen=True)
class Match:
    """A message that was found: in which line, with which values, and how much of it is literal."""

    message: Message
    line: str
    values: dict[str, str]
    weight: int

    @property
    def cause(self) -> str:
        """Return the cause with what the line says."""
        return filled(self.message.cause, self.values)

    @property
    def fix(self) -> str:
        """Return what to type, with what the line says."""
        return filled(self.message.fix, self.values)


def filled(text: str, values: dict[str, str]) -> str:
    """Return a text with its names replaced; by capitals where a value is not plain: it may end up in a shell."""

    def value(found: re.Match[str]) -> str:
        given = values.get(found[1], "")
        return given if _PLAIN.fullmatch(given) else found[1].upper()

    return _NAME.sub(value, text)


def explained(lines: Iterable[str], messages: Sequence[Message]) -> list[Match]:
    """Return each message that is in the lines, once, the most specific first; memory does not grow with the lines."""
    found: dict[Message, Match] = {}
    some: list[str] | None = []
    for batch in _batches(lines):
        plain = [_plain(line) for line in batch]
        # most of a log is no message: whole pieces of it are looked at before its lines
        text = "\n".join(plain)
        possible = [one for one in messages if any(spelling.may_be_in(text) for spelling in one.spellings)]
        for line in plain if possible else ():
            for match in _in_line(line, possible):
                found.setdefault(match.message, match)
        if some is not None:
            some += [line.rstrip("\n") for line in batch]
            if sum(map(len, some)) > _WRAPPED_CHARS:
                some = None
    if not found and some and len(some) > 1:
        # pasted from a terminal that broke the line
        joined = (_plain(glue.join(some)) for glue in (" ", ""))
        found = {match.message: match for line in joined for match in _in_line(line, messages)}
    return sorted(found.values(), key=lambda match: -match.weight)


def _batches(lines: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for line in lines:
        batch.append(line)
        size += len(line)
        if size > _BATCH_CHARS:
            yield batch
            batch, size = [], 0
    yield batch


def _plain(line: str) -> str:
    """Return a line as the program meant it: logs escape quotes, terminals add colours and spaces."""
    line = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", line)
    line = line.replace('\\"', '"').replace("\\n", " ").replace("\\t", " ")
    # Go quotes a text that has quotes again
    line = line.replace('\\"', '"').replace("\\\\", "\\")
    return " ".join(line.split())


def _in_line(line: str, messages: Sequence[Message]) -> list[Match]:
    """Return the matches of a line; of two that lie in each other the one with more literal text."""
    taken: list[tuple[int, int]] = []
    kept = []
    for weight, begin, end, message, values in sorted(_all(line, messages), key=lambda found: -found[0]):
        if all(end <= start or begin >= stop for start, stop in taken):
            taken.append((begin, end))
            kept.append(Match(message, line[:LINE_BYTES], values, weight))
    return kept


def _all(line: str, messages: Sequence[Message]) -> Iterator[tuple[int, int, int, Message, dict[str, str]]]:
    for message in messages:
        found = [(one.weight, one.find(line)) for one in message.spellings]
        best = max(((weight, *place) for weight, place in found if place), key=lambda one: one[0], default=None)
        if best:
            weight, begin, end, values = best
            yield weight, begin, end, message, values
