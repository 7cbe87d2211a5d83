"""What is wrong with the lines of /etc/subuid and /etc/subgid, by line number.

subuid(5) is three fields, and newuidmap passes over a line it does not understand without a word: the user has no
range, or another one. This says which line and why. It judges lines, not whether ranges go together.
"""

import re
import sys
from collections.abc import Collection, Iterator
from typing import BinaryIO, NamedTuple

LAST_END = 2**32 - 1
"""start + count may be this at most; 4294967295 is no id but "none" (setreuid(2)), and newuidmap says overflow."""

_LONGEST = 1 << 12
"""Bytes of a line that are looked at; a real one has fewer than 300."""

_IGNORED = 1024
"""Bytes that newuidmap does not read a line of (shadow lib/subordinateio.c, rangebuf)."""

_REMEMBERED = 300_000
"""Lines remembered to find duplicates: about 30 MB. Of a longer file the rest is not compared."""

_DECIMAL = re.compile(r"0|[1-9][0-9]{0,19}")


class Fault(NamedTuple):
    """One line that does not say what its writer meant; `name` is whose it seems to be, `code` is the kind of fault."""

    line: int
    code: str
    name: str
    text: str
    what: str
    fix: str


def lint(file: BinaryIO, *, names: Collection[str] = (), most: int = sys.maxsize) -> Iterator[Fault]:
    """Yield the first fault of each line, and a missing newline at the end.

    `names` are logins that exist, but those that are their own uid: `Dave` is a fault where only `dave` is one. Of more
    lines than `most` the next one is the last fault. Memory is bounded, whatever the file is. A file without a fault is
    read the same by every version of shadow.
    """
    spelled = {name.casefold(): name for name in names if not _is_number(name)}
    seen: dict[int, int] = {}
    line, number = b"\n", 0
    while line := file.readline(_LONGEST):
        number += 1
        if number > most:
            what = "and all after it are not looked at: there are too many"
            yield _fault(number, "many", b"", what, "give ranges by LDAP, or to fewer users")
            return
        if not line.endswith(b"\n") and len(line) == _LONGEST:
            yield _fault(number, "long", line, f"has more than {_LONGEST} bytes", "remove the line: it is no range")
            line = _rest(file)
        elif fault := _judge(number, line.removesuffix(b"\n"), names, spelled) or _repeated(number, line, seen):
            yield fault
        if not line.endswith(b"\n"):
            fix = "add a newline at the end: echo >> FILE"
            what = "has no newline: shadow 4.19 and later refuse the whole file, and what is appended joins the line"
            yield _fault(number, "newline", line, what, fix)
            return


def _rest(file: BinaryIO) -> bytes:
    while (part := file.readline(1 << 16)) and not part.endswith(b"\n"):
        pass
    return part


def _judge(number: int, line: bytes, names: Collection[str], spelled: dict[str, str]) -> Fault | None:
    if b"\0" in line:
        what = "contains a NUL byte: shadow 4.19 and later refuse the whole file"
        return _fault(number, "nul", line, what, "remove it: the file was damaged or is not text")
    if not line.strip() or line.startswith(b"#"):
        return None
    found = _letters(line) or _fields(line) or _owner(_name(line), names, spelled)
    return _fault(number, found[0], line, found[1], found[2]) if found else None


_Found = tuple[str, str, str]


def _letters(line: bytes) -> _Found | None:
    if len(line) >= _IGNORED:
        return "long", f"has {len(line)} bytes, and newuidmap passes over it", "remove the line: it is no range"
    if line.startswith((b"+", b"-")):
        return "nis", "begins with a sign, as entries of NIS do, and newuidmap passes over it", "begin with the login"
    if line.endswith(b"\r"):
        return "return", "ends with a carriage return, so its count is no number", "sed -i 's/\\r$//' FILE"
    if b"#" in line:
        return "comment", "has a comment behind the range; only whole lines can be comments", "put it on its own line"
    if re.search(rb"\s", line):
        return "blank", "contains a blank, so it is for nobody", "remove the blank"
    return None


def _fields(line: bytes) -> _Found | None:
    fields = line.decode(errors="surrogateescape").split(":")
    if len(fields) != 3:
        what = f"has {len(fields)} fields instead of 3; a podman without libsubid then refuses everybody"
        return "fields", what, "write NAME:START:COUNT"
    if not fields[0] or not fields[0].isprintable():
        return "name", "begins with something that is no login", "write NAME:START:COUNT"
    for label, text in (("start", fields[1]), ("count", fields[2])):
        if not _is_number(text):
            return _no_number(label, text)
    start, count = int(fields[1]), int(fields[2])
    if start == count == 0:
        what = "is 0:0, for newuidmap before shadow 4.20 every id there is: the user can become root of the host"
        return "everything", what, "remove the line at once"
    if count == 0:
        return "zero", "has the count 0", "write 65536, or remove the line"
    if start + count > LAST_END:
        what = f"ends at {start + count - 1}, and the last id is {LAST_END - 1}"
        return "overflow", what, "choose a lower start"
    return None


def _owner(name: str, names: Collection[str], spelled: dict[str, str]) -> _Found | None:
    known = spelled.get(name.casefold())
    if known and known != name and name not in names:
        return "case", f"is for {name}, but the login is {known}", f"write {known} at its beginning"
    if re.fullmatch("0[0-9]+", name):
        what = f"is for nobody before shadow 4.20, and since for the user with the uid {int(name)}"
        return "owner", what, "write the login, or the uid without a 0 before it"
    if name.isdecimal() and name in names:
        what = f"is for the login {name} before shadow 4.20, and since for the user with the uid {name}"
        return "owner", what, "write the uid of the one who is meant"
    return None


def _no_number(label: str, text: str) -> _Found:
    if re.fullmatch(r"0[0-7]+", text):
        what = f"has the {label} {text}, which newuidmap reads as octal {int(text, 8)}"
        return "octal", what, f"write {int(text)} or {int(text, 8)}, whichever was meant"
    if re.fullmatch(r"0[xX][0-9a-fA-F]{1,16}", text):
        what = f"has the {label} {text}: hexadecimal for newuidmap, an error for others"
        return "hex", what, f"write {int(text, 16)}"
    shown = text if len(text) <= 40 else text[:40] + "…"
    return "number", f"has the {label} {shown!r}, which is no number", "write digits only"


def _is_number(text: str) -> bool:
    return _DECIMAL.fullmatch(text) is not None


def _repeated(number: int, line: bytes, seen: dict[int, int]) -> Fault | None:
    line = line.removesuffix(b"\n")
    if not line.strip() or line.startswith(b"#"):
        return None
    key = hash(line)
    first = seen.get(key)
    if first:
        return _fault(number, "duplicate", line, f"is the same as line {first}", "remove one of them")
    if len(seen) < _REMEMBERED:
        seen[key] = number
    return None


def _name(line: bytes) -> str:
    return line.partition(b":")[0].strip().decode(errors="surrogateescape")


def _fault(number: int, code: str, line: bytes, what: str, fix: str) -> Fault:
    shown = line[:120].decode(errors="backslashreplace").removesuffix("\n")
    text = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in shown)
    return Fault(number, code, _name(line[:256]), text, f"line {number} {what}", fix)
