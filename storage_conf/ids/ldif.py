"""Read LDIF (RFC 2849) as it comes, in bounded memory: dumps, and what ldapsearch prints.

Only entries are read, no changes. Values nobody asked for may be of any size, they are passed over. A reader that must
not give half an answer wants half a file to be an error: whatever is cut off, damaged or too large raises DamagedError
with the number of the line.
"""

import base64
import binascii
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import IO

from squashmount.errors import DamagedError

READ = 1 << 16
"""Bytes of a line that are looked at together."""

VALUE_LIMIT = 1 << 16
"""Bytes of one line of LDIF, joined, that somebody asked for: a DN or a number has a few hundred."""

VALUES_LIMIT = 1000
"""Values of one entry that somebody asked for."""

_NO_ENTRY = {b"version", b"search", b"result"}
"""What stands outside entries: the version, and what ldapsearch without -LLL says at its end."""

_ALWAYS = {b"dn", b"changetype", *_NO_ENTRY}


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry; the keys of `values` are attribute names in lower case, without options such as `;lang-de`."""

    dn: str
    line: int
    values: dict[str, list[bytes]]

    def texts(self, attribute: str) -> list[str]:
        """Return the values as text; bytes that are no UTF-8 become visible escapes."""
        return [value.decode(errors="backslashreplace") for value in self.values.get(attribute.lower(), ())]


@dataclass
class Ldif:
    """An LDIF that is being read; `references` counts other servers that were named instead of entries."""

    file: IO[bytes]
    name: str
    wanted: frozenset[bytes] = frozenset()
    references: int = 0
    line: int = 0
    _first: int = 0
    _begun: bool = False
    _dn: str | None = None
    _values: dict[str, list[bytes]] = field(default_factory=dict)
    _number_of_values: int = 0

    def entries(self) -> Iterator[Entry]:
        """Yield every entry with the wanted attributes of it. DamagedError for what is no whole LDIF."""
        for number, line in self._lines():
            if line:
                self._take(number, line)
            elif (entry := self._finished()) is not None:
                yield entry
        if (entry := self._finished()) is not None:
            yield entry

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        """Yield the joined lines that matter with the number of their first, and an empty one after each record."""
        parts: list[bytes] | None = None  # None: what is continued is passed over
        start = size = 0
        continued = False  # there is a line that can be continued
        for raw in self._raw():
            if raw[:1] == b" ":
                if not continued:
                    raise self._damaged("begins with a blank, but continues nothing")
                if parts is not None:
                    parts.append(raw[1:])
                    size += len(raw)
                    if size > VALUE_LIMIT:
                        raise self._damaged(f"makes a value larger than {VALUE_LIMIT} bytes")
                continue
            if parts is not None:
                yield start, b"".join(parts)
            parts, continued = None, bool(raw)
            if not raw:
                self._begun = False
                yield self.line, b""
            elif self._matters(raw):
                parts, start, size = [raw], self.line, len(raw)
        if parts is not None:
            yield start, b"".join(parts)

    def _raw(self) -> Iterator[bytes]:
        """Yield lines without their ends. Only the first `READ` bytes of one that does not matter are returned."""
        readline = self.file.readline
        while raw := readline(READ):
            self.line += 1
            if self.line == 1:
                raw = self._without_mark(raw)
            if not raw.endswith(b"\n"):
                if len(raw) >= READ - 3 and (raw[:1] in b" #" or not self._matters(raw)):
                    while (rest := readline(READ)) and not rest.endswith(b"\n"):
                        pass
                    raw = raw + b"\n" if rest else raw
                elif len(raw) >= READ - 3:
                    raise self._damaged(f"is longer than {READ} bytes")
                if not raw.endswith(b"\n"):
                    raise self._damaged("has no end: the file was cut off")
            yield raw.rstrip(b"\r\n")

    def _without_mark(self, raw: bytes) -> bytes:
        if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise self._damaged("is UTF-16; write the file again as UTF-8")
        return raw.removeprefix(b"\xef\xbb\xbf")

    def _matters(self, raw: bytes) -> bool:
        if raw.startswith(b"#"):
            if raw.startswith((b"# refldap", b"# search reference")):
                self.references += 1
            return False
        head, colon, _ = raw.partition(b":")
        if not colon:
            self._begun = True
            return True  # its colon may be in the line that continues it; if not, it is an error
        name = _name(head)
        if name == b"dn":
            self._begun = True
        if not name or name in self.wanted or name in _ALWAYS:
            return True
        if not self._begun:
            raise self._damaged("belongs to no entry: there is no dn before it")
        return False

    def _take(self, number: int, line: bytes) -> None:
        head, colon, value = line.partition(b":")
        name = _name(head)
        if not colon or not name:
            raise self._damaged("is no `attribute: value`", number)
        if name in _NO_ENTRY and self._dn is None:
            self._say_result(number, name, value)
        elif name == b"dn":
            if self._dn is not None:
                raise self._damaged("begins an entry inside another one", number)
            self._begin(number, self._decoded(number, value))
        elif self._dn is None:
            raise self._damaged("belongs to no entry: there is no dn before it", number)
        elif name == b"changetype":
            raise self._damaged("says that this is a list of changes, not of entries", number)
        else:
            self._number_of_values += 1
            if self._number_of_values > VALUES_LIMIT:
                raise self._damaged(f"is more than value {VALUES_LIMIT} of one entry", number)
            self._values.setdefault(name.decode(), []).append(self._decoded(number, value))

    def _begin(self, number: int, dn: bytes) -> None:
        try:
            self._dn, self._first = dn.decode(), number
        except UnicodeDecodeError:
            raise self._damaged("has a dn that is not UTF-8", number) from None

    def _finished(self) -> Entry | None:
        if self._dn is None:
            return None
        entry = Entry(self._dn, self._first, self._values)
        self._dn, self._values, self._number_of_values = None, {}, 0
        return entry

    def _say_result(self, number: int, name: bytes, value: bytes) -> None:
        """Refuse an answer that ldapsearch itself calls incomplete: `result: 4 Size limit exceeded`."""
        text = value.strip().decode(errors="backslashreplace")
        if name == b"result" and text.split(" ")[0] != "0":
            raise self._damaged(f"says that the search failed ({text[:100]}): entries are missing", number)

    def _decoded(self, number: int, value: bytes) -> bytes:
        if value.startswith(b":"):
            try:
                return base64.b64decode(value[1:].strip(), validate=True)
            except binascii.Error:
                raise self._damaged("has a value that is no base64", number) from None
        if value.startswith(b"<"):
            raise self._damaged("names a file or URL instead of a value, which is not followed", number)
        return value.lstrip(b" ")

    def _damaged(self, what: str, number: int = 0) -> DamagedError:
        return DamagedError(
            f"Line {number or self.line} of {self.name} {what}.",
            hint="make the LDIF again, whole: nothing is said of half a directory",
        )


def read_ldif(file: IO[bytes], *, name: str, wanted: Collection[str]) -> Ldif:
    """Return a reader of the attributes `wanted`, which are compared without regard to case."""
    return Ldif(file, name, frozenset(attribute.lower().encode() for attribute in wanted))


@lru_cache(256)
def _name(head: bytes) -> bytes:
    """Return what is before the colon in lower case without options; empty for what is no name or OID (RFC 4512, 1.4).

    Underscores are not allowed, but used.
    """
    name = head.partition(b";")[0].lower()
    fits = 0 < len(name) < 256 and name.replace(b"-", b"").replace(b".", b"").replace(b"_", b"").isalnum()
    return name if fits else b""
