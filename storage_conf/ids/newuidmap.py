"""What newuidmap(1) and newgidmap(1) do with /etc/subuid and /etc/subgid: how they read them, and what they allow.

Every rule is shadow's own (lib/commonio.c, lib/subordinateio.c, lib/idmapping.c, src/newuidmap.c of 4.13 and 4.17.4;
those of 4.20 were found by runs of 4.20.3) or the kernel's (kernel/user_namespace.c, map_write); a test compares all
with the installed programs on random files. This is about the file as it lies there: neither a verdict on its style
(`lint`) nor about nsswitch, privileges of the programs, or the state of the target process.
"""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise
from typing import BinaryIO, Literal, NamedTuple

Kind = Literal["uid", "gid"]
Version = tuple[int, int]
LookUp = Callable[[str], int | None]
"""getpwnam(3) or getgrnam(3): the id of a name, None where nobody has it."""

DEBIAN_12: Version = (4, 13)
DEBIAN_13: Version = (4, 17)

UNSTABLE: Version = (4, 20)
"""Debian unstable's. A line has three fields and ids of 32 bits; its owner is looked up, a number by getpwuid(3)."""

_TEXT: Version = (4, 19)
"""From here on a file with a NUL byte or without a final newline is no text, and refused (shadow issue 1581)."""

_FIRST_BUFFER = 4096  # BUFLEN of commonio.c: a line that fills it exactly at the end of the file is an error
_LONGEST_LINE = 1024  # rangebuf of subordinate_parse(): a longer line is ignored
_ULONG = 1 << 64
_UINT_MAX = (1 << 32) - 1
_MAP_BYTES = 4096  # map_write() refuses a write of a page or more
_MAP_EXTENTS = 340  # UID_GID_MAP_MAX_EXTENTS

_OWNER_NUMBER = re.compile(r"[ \t\n\v\f\r]*([+-]?[0-9]+)")  # 4.20: decimal, so 01000 is the user with uid 1000
# strtoul(3): blanks, a sign, 0x (and 0b since C23), 0 for octal; what follows the digits makes it no number
_NUMBER = re.compile(rb"[ \t\n\v\f\r]*([+-]?)(0[xX][0-9a-fA-F]+|0[bB][01]+|0[0-7]*|[1-9][0-9]*)")


class RefusedFileError(ValueError):
    """The program ends before it has looked at a single range; says why."""


@dataclass(frozen=True)
class Line:
    """A line that counts: its number, its first field, and the numbers as the program holds them (unsigned, 64 bit)."""

    number: int
    owner: str
    start: int
    count: int

    def holds(self, value: int) -> bool:
        """Tell whether the program finds `value` here: before 4.20 its sum wraps, and `0:0` holds every id there is."""
        return self.start <= value <= (self.start + self.count - 1) % _ULONG


class Triple(NamedTuple):
    """One line of a map: `count` ids from `upper` inside are those from `lower` outside."""

    upper: int
    lower: int
    count: int  # type: ignore[assignment] # tuple.count(), which nobody counts ids with


@dataclass(frozen=True)
class Caller:
    """Who calls: the user's entry in passwd, and the group the process has."""

    name: str
    uid: int
    gid: int
    process_gid: int | None = None

    def group(self) -> int:
        """Return the real gid of the process."""
        return self.gid if self.process_gid is None else self.process_gid


class Reason(Enum):
    """Where a request ends; the value is what the program says (with its own name in front)."""

    WRITTEN = ""
    OTHER_GROUP = "is owned by a different user"
    REFUSED_FILE = "the file cannot be read"
    OVERFLOW = "subuid overflow detected."
    NOT_ALLOWED = "not allowed"
    KERNEL_INVALID = "_map failed: Invalid argument"


@dataclass(frozen=True)
class Verdict:
    """What happens: why, which triple is to blame, and whether newgidmap leaves setgroups(2) alone."""

    reason: Reason
    triple: Triple | None = None
    detail: str = ""
    setgroups: bool = True

    @property
    def allowed(self) -> bool:
        """Tell whether the map is written."""
        return self.reason is Reason.WRITTEN

    def __str__(self) -> str:
        return "allowed" if self.allowed else self.detail or self.reason.value


def read_file(path: str, version: Version) -> list[Line]:
    """Return the lines of a file; a symbolic link is refused (O_NOFOLLOW). Raises RefusedFileError."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        with open(fd, "rb") as file:
            return list(read_lines(file, version))
    except OSError as err:
        raise RefusedFileError(f"{path}: {err.strerror}") from err


def read_lines(file: BinaryIO, version: Version) -> Iterator[Line]:
    """Yield the lines that count; the others are ignored without a word. Raises RefusedFileError, also at the end.

    Memory does not grow with the file or a line.
    """
    for number, text in enumerate(_full_lines(file) if version >= _TEXT else _texts(file), 1):
        line = _parsed(number, text, version)
        if line is not None:
            yield line


def _full_lines(file: BinaryIO) -> Iterator[bytes]:
    """Yield each line as commonio_open() takes it from getline(3); what is no text file refuses it as a whole."""
    text, ended = b"", True
    while chunk := file.readline(_FIRST_BUFFER):
        if b"\0" in chunk:
            raise RefusedFileError("a line holds a NUL byte")
        ended = chunk.endswith(b"\n")
        text += chunk.removesuffix(b"\n")[: _LONGEST_LINE - len(text)]
        if ended:
            yield text
            text = b""
    if not ended:
        raise RefusedFileError("the last line has no newline")


def _texts(file: BinaryIO) -> Iterator[bytes]:
    """Yield each line as commonio_open() builds it from fgets(3): at a NUL byte it joins what follows."""
    size = _FIRST_BUFFER
    while chunk := file.readline(size - 1):
        room = size - 1
        text = chunk.split(b"\0", 1)[0]
        length, ended = len(text), text.endswith(b"\n")
        while not ended and (len(chunk) == room or chunk.endswith(b"\n")):
            size += _FIRST_BUFFER
            room = size - length - 1
            chunk = file.readline(room)
            if not chunk:
                raise RefusedFileError("the last line holds a NUL byte, or fills the buffer and has no newline")
            part = chunk.split(b"\0", 1)[0]
            length, ended = length + len(part), part.endswith(b"\n")
            text += part[: max(0, _LONGEST_LINE + 1 - len(text))]
        yield text.removesuffix(b"\n")


def _parsed(number: int, text: bytes, version: Version) -> Line | None:
    if len(text) >= _LONGEST_LINE or text.startswith((b"+", b"-")):  # the latter: NIS
        return None
    fields = text.split(b":")
    if len(fields) < 3 or (len(fields) > 3 and version >= UNSTABLE) or not fields[0]:
        return None
    start, count = c_number(fields[1], version), c_number(fields[2], version)
    if start is None or count is None:
        return None
    if version >= UNSTABLE and (max(start, count) > _UINT_MAX or start + count > _UINT_MAX + 1):
        return None
    return Line(number, os.fsdecode(fields[0]), start, count)


def c_number(text: bytes, version: Version) -> int | None:
    """Return a number as the program reads it, None where it is none: 0x is hexadecimal and a leading 0 octal.

    4.13 takes a minus sign for what strtoul(3) makes of it: -1 is 2^64 - 1.
    """
    match = _NUMBER.fullmatch(text)
    if match is None:
        return None
    sign, digits = match.groups()
    if digits[1:2] in (b"b", b"B") and version < DEBIAN_13:  # its C library is from before C23 (glibc 2.38)
        return None
    octal = digits[:1] == b"0" and digits[1:2].isdigit()
    value = int(digits, 8 if octal else 0)
    if value >= _ULONG or (sign == b"-" and value and version >= DEBIAN_13):
        return None
    return (_ULONG - value) % _ULONG if sign == b"-" else value


def owned_lines(lines: Sequence[Line], caller: Caller, uid_of: LookUp, version: Version) -> list[Line]:
    """Return the lines that are the caller's, for newgidmap too: by name, by uid, by another name of the same uid.

    4.20 knows the caller by name alone: of `77` with the uid 1000 it takes the lines of the user with uid 77.
    """
    own: dict[str, bool] = {caller.name: True}
    uid = caller.uid if version < UNSTABLE else _identity(caller.name, uid_of)

    def is_own(owner: str) -> bool:
        if version < UNSTABLE:
            return owner == str(uid) or uid_of(owner) == uid
        return uid is not None and _identity(owner, uid_of) == uid

    for line in lines:
        if line.owner not in own:
            own[line.owner] = is_own(line.owner)
    return [line for line in lines if own[line.owner]]


def _identity(owner: str, uid_of: LookUp) -> int | None:
    """Return whose a line is for 4.20. A user with each uid is taken to exist: logins of digits alone notice that."""
    match = _OWNER_NUMBER.fullmatch(owner)
    if match and 0 <= int(match[1]) <= _UINT_MAX:
        return int(match[1])
    return uid_of(owner)


def predict(
    triples: Sequence[Triple],
    lines: Sequence[Line] | RefusedFileError,
    caller: Caller,
    kind: Kind = "uid",
    *,
    version: Version,
    uid_of: LookUp,
) -> Verdict:
    """Return what newuidmap (`kind` uid) or newgidmap does when `caller` asks it for `triples`.

    The order is the program's: group, file, numbers, owners, and at last the kernel, which takes all lines or none.
    """
    if caller.group() != caller.gid:
        return Verdict(Reason.OTHER_GROUP, detail=f"the process has group {caller.group()}, its user {caller.gid}")
    if isinstance(lines, RefusedFileError):
        return Verdict(Reason.REFUSED_FILE, detail=str(lines))
    for triple in triples:
        if _overflows(triple, version):
            return Verdict(Reason.OVERFLOW, triple)
    own = owned_lines(lines, caller, uid_of, version)
    if version >= UNSTABLE:
        own = [line for line in own if line.count]
    myself = caller.uid if kind == "uid" else caller.group()
    setgroups = False
    for triple in triples:
        granted = _covered(own, triple)
        if not granted and (triple.count != 1 or triple.lower != myself):
            return Verdict(Reason.NOT_ALLOWED, triple, _not_allowed(kind, triple))
        setgroups |= granted
    return _as_kernel(triples, setgroups=setgroups or kind == "uid")


def _overflows(triple: Triple, version: Version) -> bool:
    upper, lower, count = triple
    if version >= DEBIAN_13 and (_UINT_MAX in (upper, lower) or count == 0):
        return True
    return max(upper, lower) + count > _UINT_MAX


def _not_allowed(kind: Kind, triple: Triple) -> str:
    upper, lower, count = triple
    return f"{kind} range [{upper}-{upper + count}) -> [{lower}-{lower + count}) not allowed"


def _covered(own: Sequence[Line], triple: Triple) -> bool:
    """Tell whether the lines together hold the range, as have_range() walks from one to the next."""
    value, end = triple.lower, triple.lower + triple.count - 1
    if triple.count == 0:
        return False
    while True:
        line = next((line for line in own if line.holds(value)), None)
        if line is None:
            return False
        last = (line.start + line.count - 1) % _ULONG
        if last >= end:
            return True
        value = last + 1


def _as_kernel(triples: Sequence[Triple], *, setgroups: bool) -> Verdict:
    text = sum(len(f"{upper} {lower} {count}\n") for upper, lower, count in triples)
    if text >= _MAP_BYTES:
        return Verdict(Reason.KERNEL_INVALID, detail=f"the map has {text} bytes and may have {_MAP_BYTES - 1}")
    if len(triples) > _MAP_EXTENTS:
        return Verdict(Reason.KERNEL_INVALID, detail=f"the map has {len(triples)} lines and may have {_MAP_EXTENTS}")
    for side in (0, 1):  # inside, outside
        ordered = sorted(triples, key=lambda triple: triple[side])
        for before, after in pairwise(ordered):
            if before[side] + before.count > after[side]:
                return Verdict(Reason.KERNEL_INVALID, after, "two lines of the map overlap")
    return Verdict(Reason.WRITTEN, setgroups=setgroups)


def podman_ranges(
    lines: Sequence[Line], user: str, kind: Kind, *, version: Version, uid_of: LookUp, gid_of: LookUp
) -> list[Line]:
    """Return the lines Podman with libsubid uses for `$USER`, in the order of their start.

    Those by name and by number (in /etc/subgid: the number of the *group* of that name); only where there is none,
    those of the uid. A line of another name with the same uid is newuidmap's alone (containers/storage, pkg/idtools).
    Since 4.20 they are all lines newuidmap finds, in both files: the number of a group counts no more.
    """
    uid = uid_of(user)
    if version >= UNSTABLE:
        uid = _identity(user, uid_of) if uid is None else uid
        found = [line for line in lines if uid is not None and _identity(line.owner, uid_of) == uid]
    else:
        number = uid if kind == "uid" else gid_of(user)
        found = [line for line in lines if line.owner in (user, "" if number is None else str(number))]
        if not found and uid is not None:
            found = [line for line in lines if line.owner == str(uid)]
    return sorted(found, key=lambda line: line.start)


def podman_map(ranges: Sequence[Line], own: int) -> list[Triple]:
    """Return the map Podman asks for: 0 is the user, then one range after the other.

    Raises ValueError where Podman itself stops: the user's own id is in one of his ranges.
    """
    triples, inside = [Triple(0, own, 1)], 1
    for line in ranges:
        if line.start <= own < line.start + line.count:
            raise ValueError(f"the range {line.start}:{line.count} includes the user's own id {own}")
        triples.append(Triple(inside, line.start, line.count))
        inside += line.count
    return triples
