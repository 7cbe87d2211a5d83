"""All ranges, accounts and groups of one source, read from a directory's entries or from the files of a node."""

import os
import re
import stat
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from errno import EACCES
from itertools import islice
from typing import BinaryIO, NamedTuple

from squashmount.errors import DamagedError, UsageError

from ..doctor.node import Node
from .directory_schema import Directory, Schema, normal_dn
from .ldif import Entry
from .lint import lint
from .newuidmap import DEBIAN_13, RefusedFileError, Version, read_lines
from .ranges import IDS_END, Account, Group, Kind, Range

LIMIT = 1_000_000
"""Ranges, accounts, groups and faults of one source, each: 32-bit ids have room for 65,535 users with 65,536 ids."""

FILE_LIMIT = 128 << 20
"""Bytes of /etc/subuid: a million lines are 30 MB."""

FAULTS_LIMIT = 100_000

_DECIMAL = re.compile(r"-?(0|[1-9][0-9]{0,30})", re.ASCII)
_NO_LOGIN = ("/nologin", "/false", "/sync", "/shutdown", "/halt")


class Flaw(NamedTuple):
    """One entry or line that cannot be right; `code` is the same for the same kind of mistake."""

    code: str
    where: str
    what: str


@dataclass(frozen=True)
class Inventory:
    """What one source says. `kind` is files, nss, ldap or ldif; `references` counts servers that were not asked."""

    kind: str
    source: str
    ranges: tuple[Range, ...] = ()
    accounts: tuple[Account, ...] = ()
    groups: tuple[Group, ...] = ()
    flaws: tuple[Flaw, ...] = ()
    references: int = 0

    def of(self, kind: Kind) -> list[Range]:
        """Return the ranges of uids or of gids."""
        return [item for item in self.ranges if item.kind == kind]


def decimal(text: str) -> int | None:
    """Return an LDAP INTEGER (RFC 4517, 3.3.16) of reasonable length, None for anything else."""
    return int(text) if _DECIMAL.fullmatch(text) else None


# -- a directory


def from_entries(entries: Iterable[Entry], names: Directory, *, kind: str, source: str) -> Inventory:
    """Sort the entries of a directory. DamagedError when there are more than `LIMIT` of something."""
    reader = _Reader(names, source)
    for entry in entries:
        reader.take(entry)
    ranges = tuple(reader.owned_ranges())
    return Inventory(kind, source, ranges, tuple(reader.accounts), tuple(reader.groups), tuple(reader.flaws))


@dataclass
class _Reader:
    names: Directory
    source: str
    accounts: list[Account] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)
    ranges: list[Range] = field(default_factory=list)
    flaws: list[Flaw] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)
    schema_of: dict[tuple[str, str, int, int], str] = field(default_factory=dict)
    login_of: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        people = self.names.people
        self.account_class = people.account_class.lower().encode()
        self.group_class = people.group_class.lower().encode()
        self.range_classes = {schema.range_class.lower().encode(): schema for schema in self.names.schemas}

    def take(self, entry: Entry) -> None:
        dn = normal_dn(entry.dn)
        if dn in self.seen:  # two search bases, one inside the other
            return
        self.seen.add(dn)
        if max(map(len, (self.seen, self.ranges, self.flaws))) > 2 * LIMIT:
            raise DamagedError(f"{self.source} has more than {LIMIT} entries of one kind.", hint="name narrower bases")
        classes = {value.lower() for value in entry.values.get("objectclass", ())}
        account = self.account_class in classes or (not classes and self._has(entry, self.names.people.uid))
        if account:
            self._account(entry, dn)
        elif self.group_class in classes:
            self._group(entry)
        schema = self._schema(entry, classes)
        if schema is not None:
            self._range(entry, schema, dn if account else "")

    def _has(self, entry: Entry, attribute: str) -> bool:
        return attribute.lower() in entry.values

    def _schema(self, entry: Entry, classes: Collection[bytes]) -> Schema | None:
        for schema in self.names.schemas:
            if self._has(entry, schema.subuid) or self._has(entry, schema.subgid):
                return schema
        return next((schema for name, schema in self.range_classes.items() if name in classes), None)

    def _account(self, entry: Entry, dn: str) -> None:
        people = self.names.people
        login = readable(next(iter(entry.texts(people.login)), ""))
        uid, gid = self._number(entry, people.uid), self._number(entry, people.gid)
        if not login:
            self._flaw("login", entry, f"an account without {people.login}")
        if uid is None or gid is None or not login:
            return
        shell = next(iter(entry.texts(people.shell)), "")
        self.login_of.setdefault(dn, login)
        self.accounts.append(Account(login, uid, gid, self.source, readable(entry.dn), not shell.endswith(_NO_LOGIN)))

    def _group(self, entry: Entry) -> None:
        gid = self._number(entry, self.names.people.gid)
        name = readable(next(iter(entry.texts(self.names.people.group)), ""))
        if gid is not None:
            self.groups.append(Group(name, gid, self.source))

    def _range(self, entry: Entry, schema: Schema, own: str) -> None:
        owners = [normal_dn(text) for text in entry.texts(schema.owner)] or ([own] if own else [])
        if not owners:
            self._flaw("owner", entry, f"a range without {schema.owner}")
        elif len(set(owners)) > 1:
            self._flaw("owners", entry, f"a range with {len(owners)} values of {schema.owner}")
        for kind, start_name, count_name in (
            ("uid", schema.subuid, schema.subuid_count),
            ("gid", schema.subgid, schema.subgid_count),
        ):
            start, count = self._number(entry, start_name), self._number(entry, count_name)
            if start is None or count is None:
                continue
            if count == 0:
                self._flaw("zero", entry, f"{count_name} is 0")
            made: Kind = "uid" if kind == "uid" else "gid"
            owner = owners[0] if owners else ""
            # a directory on its way from one schema to the other has every range twice
            if self.schema_of.setdefault((owner, made, start, count), schema.name) != schema.name:
                continue
            self.ranges.append(Range(owner, start, count, made, self.source, entry.line, readable(entry.dn)))

    def _number(self, entry: Entry, attribute: str) -> int | None:
        """Return the only value; what is wrong with it becomes a flaw, and None."""
        values = entry.values.get(attribute.lower(), ())
        if len(values) != 1:
            what = f"has {len(values)} values of {attribute}" if values else f"has no {attribute}"
            self._flaw(f"{'several' if values else 'missing'} {attribute}", entry, what)
            return None
        text = values[0].decode(errors="backslashreplace")
        number = decimal(text)
        if number is None:
            self._flaw(f"number {attribute}", entry, f"{attribute} is {text[:40]!r}, no integer")
        elif number < 0:
            why = "a directory of signed 32-bit integers cannot hold ids from 2147483648 on"
            self._flaw(f"negative {attribute}", entry, f"{attribute} is {number}: {why}")
            return None
        elif number > 2**32 - 1:
            self._flaw(f"large {attribute}", entry, f"{attribute} is {number}, larger than 32 bits")
            return None
        return number

    def _flaw(self, code: str, entry: Entry, what: str) -> None:
        self.flaws.append(Flaw(code, readable(entry.dn) or f"{self.source}:{entry.line}", what))

    def owned_ranges(self) -> Iterator[Range]:
        """Yield the ranges with logins instead of DNs; an owner nobody has is a flaw."""
        for item in self.ranges:
            login = self.login_of.get(item.owner)
            if login is None and item.owner:
                login = readable(item.owner)
                if self.login_of:
                    if item.kind == "uid":
                        self.flaws.append(Flaw("dangling", item.where, f"owner {readable(item.owner)} is no account"))
                else:  # a dump of the ranges alone: the name is in the DN, as sssd up to 2.10 guesses it
                    login = readable(_first_value(item.owner))
            if item.start + item.count > 2**32 - 1:
                self.flaws.append(Flaw("end", item.where, f"sub{item.kind} {item.start} + {item.count} is past 2^32-1"))
            yield replace(item, owner=login or item.where)


def _first_value(dn: str) -> str:
    return dn.partition(",")[0].partition("=")[2] or dn


# -- files


def from_files(node: Node, *, version: Version = DEBIAN_13) -> Inventory:
    """Read /etc/subuid, subgid, passwd and group as they lie on a node, or in the image of one."""
    accounts, groups = read_passwd(node), read_group(node)
    names = {account.name for account in accounts if account.name != str(account.uid)}
    ranges: list[Range] = []
    flaws: list[Flaw] = []
    for kind in ("uid", "gid"):
        made: Kind = "uid" if kind == "uid" else "gid"
        path = f"/etc/sub{kind}"
        with opened(node.path(path), regular=True) as file:
            if file is None:
                continue
            if os.fstat(file.fileno()).st_size > FILE_LIMIT:
                raise DamagedError(f"{path} has more than {FILE_LIMIT} bytes.", hint="is this a file of ranges?")
            ranges += _file_ranges(file, path, made, version, flaws)
            file.seek(0)
            faults = list(islice(lint(file, names=names), FAULTS_LIMIT + 1))
            if len(faults) > FAULTS_LIMIT:
                what = f"{path} has more than {FAULTS_LIMIT} lines that cannot be right."
                raise DamagedError(what, details=f"the first {faults[0].what}", hint="is this a file of ranges?")
            flaws += (Flaw(fault.code, f"{path}:{fault.line}", fault.what) for fault in faults)
    return Inventory("files", node.path("/etc"), tuple(ranges), accounts, groups, tuple(flaws))


@contextmanager
def opened(path: str, *, regular: bool = False) -> Iterator[BinaryIO | None]:
    """Open a file for reading; None for one that is not there. UsageError for one that cannot be read.

    `regular` refuses a pipe or device at once: a FIFO that nobody writes into would never open.
    """
    try:
        file = open(path, "rb", opener=_at_once if regular else None)  # noqa: SIM115 - closed below, a missing one is no error
    except FileNotFoundError:
        yield None
        return
    except OSError as err:
        hint = "may who runs this read it, and search every directory above it?" if err.errno == EACCES else ""
        raise UsageError(f"{path} cannot be read: {err.strerror}.", hint=hint) from err
    with file:
        if regular and not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise UsageError(f"{path} is a pipe or device, not a file.", hint="put its contents into a regular file")
        yield file


def _at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)


def _file_ranges(file: BinaryIO, path: str, kind: Kind, version: Version, flaws: list[Flaw]) -> Iterator[Range]:
    try:
        for number, line in enumerate(read_lines(file, version)):
            if number == LIMIT:
                raise DamagedError(f"{path} has more than {LIMIT} ranges.", hint="is this a file of ranges?")
            # the rest maps nothing for anybody, and the linter has named it
            count = IDS_END if line.start == line.count == 0 else line.count  # 0:0 is every id (newuidmap.Line.holds)
            if count and line.start < 2**32 and not re.search(r"\s", line.owner):
                yield Range(readable(line.owner), line.start, count, kind, path, line.number)
    except RefusedFileError as err:
        flaws.append(Flaw("refused", path, f"newuidmap refuses the file: {err}"))


def read_passwd(node: Node) -> tuple[Account, ...]:
    """Return the accounts of /etc/passwd."""
    return tuple(passwd_accounts((node.text("/etc/passwd") or "").split("\n"), source="/etc/passwd"))


def passwd_accounts(lines: Iterable[str], *, source: str) -> Iterator[Account]:
    """Yield the accounts of lines of passwd(5); one that getpwnam(3) would skip is skipped."""
    for fields in _rows(lines, 7):
        uid, gid = decimal(fields[2]), decimal(fields[3])
        if uid is not None and gid is not None:
            yield Account(readable(fields[0]), uid, gid, source, login=not fields[6].endswith(_NO_LOGIN))


def read_group(node: Node) -> tuple[Group, ...]:
    """Return the groups of /etc/group."""
    rows = _rows((node.text("/etc/group") or "").split("\n"), 4)
    return tuple(Group(readable(row[0]), gid, "/etc/group") for row in rows if (gid := decimal(row[2])) is not None)


def _rows(lines: Iterable[str], number: int) -> Iterator[list[str]]:
    for line in lines:
        fields = line.removesuffix("\n").split(":")
        if len(fields) == number and fields[0][:1] not in ("+", "-", "#", ""):
            yield fields


def readable(text: str) -> str:
    """Return a name that can be printed: odd bytes and control characters as escapes."""
    if text.isprintable():
        return text
    text = os.fsencode(text).decode(errors="backslashreplace")
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)
