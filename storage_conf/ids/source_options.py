"""Where the commands of `ids` read ranges and accounts from: the options, and the reading."""

import argparse
import io
import pwd
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from typing import BinaryIO

from squashmount.errors import DamagedError, UsageError

from ..doctor.node import Node
from . import nss
from .directory_schema import directory
from .inventory import LIMIT, Inventory, from_entries, from_files, opened, passwd_accounts
from .ldap_search import Search, by_ldap3, by_ldapsearch
from .ldif import read_ldif
from .libsubid import subid_lines

SOURCES = ("files", "nss", "ldap", "ldap3", "ldif")


def add_source(parser: argparse.ArgumentParser) -> None:
    """Add the options that name a source."""
    source = parser.add_argument_group("source of the ranges")
    source.add_argument(
        "--source",
        choices=SOURCES,
        help="files: /etc/subuid, subgid; nss: what libsubid answers on this node, user by user; ldap: the directory, "
        "by ldapsearch; ldap3: the same by a Python library; ldif: a dump. Default: ldif with --ldif, ldap with --uri "
        "or --base, else what nsswitch.conf says of subid: files, or nss",
    )
    source.add_argument("--ldif", metavar="FILE", help="a dump of the directory; -: standard input")
    source.add_argument("--root", metavar="DIR", default="/", help="read the files of the node image in DIR, not of /")
    source.add_argument("--users", metavar="FILE", help="logins to ask libsubid for (default: all of passwd)")
    source.add_argument(
        "--accounts",
        metavar="ldap|ldap3|FILE",
        help="read accounts and groups from there, too; FILE: LDIF, or lines of passwd(5) such as getent passwd prints "
        "(-: standard input)",
    )
    asked = parser.add_argument_group("LDAP")
    asked.add_argument("--uri", metavar="URI", default="", help="ldaps://HOST (default: ldap.conf)")
    asked.add_argument("--base", action="append", default=[], metavar="DN", help="search below it; several are allowed")
    who = asked.add_mutually_exclusive_group()
    who.add_argument("--bind", metavar="DN", default="", help="bind as DN with --password-file (default: SASL)")
    who.add_argument("--anonymous", action="store_true", help="ask without a name")
    asked.add_argument("--password-file", metavar="FILE", default="", help="its whole contents are the password")
    asked.add_argument("--starttls", action="store_true", help="demand TLS on an ldap:// connection")
    asked.add_argument("--page", type=int, default=1000, metavar="N", help="entries asked at a time (default 1000)")
    asked.add_argument("--timeout", type=float, default=120, metavar="SECONDS", help="for the answer (default 120)")
    asked.add_argument(
        "--ldap-option", action="append", default=[], metavar="ARG", help="hand ARG to ldapsearch: --ldap-option=-d1"
    )
    asked.add_argument("--schema", choices=("auto", "freeipa", "sssd"), default="auto", help="default: both")
    asked.add_argument(
        "--attribute",
        action="append",
        default=[],
        metavar="KEY=NAME",
        help="another name of an attribute or class: subuid, subuid-count, subgid, subgid-count, owner, range-class, "
        "login, uid, gid, shell, group, account-class, group-class",
    )


def read_source(args: argparse.Namespace) -> Inventory:
    """Read everything from the source that the options name. Raises UsageError, ToolError, DamagedError."""
    source = args.source or _default(args)
    found = _with_accounts(_read(source, args), args)
    if not (found.ranges or found.accounts or found.groups or found.flaws):
        raise DamagedError(
            f"A18: {found.source} has no range, no account and no group: nothing can be said.",
            hint="is it the right file, --root or --base? may who asks read it? did what wrote it fail?",
        )
    if found.kind in {"ldap", "ldif"}:
        return found
    return found if args.accounts else _looked_up(found, args)


def _default(args: argparse.Namespace) -> str:
    if args.ldif:
        return "ldif"
    if args.uri or args.base:
        return "ldap"
    return "files" if subid_word(Node(root=args.root)) == "files" else "nss"


def _read(source: str, args: argparse.Namespace) -> Inventory:
    if source == "files":
        return from_files(Node(root=args.root))
    if source == "nss":
        return _from_nss(args)
    if source == "ldif":
        if not args.ldif:
            raise UsageError("--source ldif wants --ldif FILE.")
        return from_ldif(args.ldif, args)
    return by_ldapsearch(search(args)) if source == "ldap" else by_ldap3(search(args))


def search(args: argparse.Namespace) -> Search:
    """Return whom the options of LDAP ask."""
    if bool(args.bind) != bool(args.password_file):
        raise UsageError("--bind and --password-file belong together.")
    if args.page < 0 or args.timeout <= 0:
        raise UsageError("--page and --timeout must be positive.")
    return Search(
        directory(args.schema, args.attribute),
        args.uri,
        tuple(args.base),
        args.bind,
        args.password_file,
        args.anonymous,
        args.starttls,
        args.page,
        args.timeout,
        tuple(args.ldap_option),
    )


def from_ldif(path: str, args: argparse.Namespace) -> Inventory:
    """Read an LDIF file, or standard input for `-`."""
    with _input(path) as (file, name):
        return _ldif(file, name, args)


@contextmanager
def _input(path: str) -> Iterator[tuple[BinaryIO, str]]:
    if path == "-":
        yield sys.stdin.buffer, "standard input"
        return
    with opened(path) as file:
        if file is None:
            raise UsageError(f"{path} does not exist.")
        yield file, path


def _ldif(file: BinaryIO, name: str, args: argparse.Namespace) -> Inventory:
    names = directory(args.schema, args.attribute)
    reader = read_ldif(file, name=name, wanted=names.attributes)
    found = from_entries(reader.entries(), names, kind="ldif", source=name)
    return replace(found, references=reader.references)


_PASSWD = re.compile(rb"(?:#[^\n]*\n|[ \t\r]*\n)*[^:\n]+:[^:\n]*:[0-9]+:[0-9]+:")
"""How passwd(5) begins, and no LDIF does: after the first colon comes a second."""


def _from_file(path: str, args: argparse.Namespace) -> Inventory:
    """Read accounts from LDIF or lines of passwd(5), whichever it is: also from a pipe, which cannot be read twice."""
    with _input(path) as (file, name):
        begin = file.peek(1 << 12) if isinstance(file, io.BufferedReader) else b""
        if not _PASSWD.match(begin):
            return _ldif(file, name, args)
        lines = (line.decode(errors="surrogateescape") for line in islice(file, LIMIT + 1))
        accounts = tuple(passwd_accounts(lines, source=name))
    if len(accounts) >= LIMIT:
        raise DamagedError(f"{name} has {LIMIT} accounts or more.", hint="is this a file of users?")
    return Inventory("passwd", name, accounts=accounts)


def _from_nss(args: argparse.Namespace) -> Inventory:
    node = Node(root=args.root)
    if args.root != "/":
        raise UsageError("libsubid answers for this node only, not for --root.", hint="--source files")
    files = from_files(node)
    if args.users:
        with opened(args.users) as file:
            if file is None:
                raise UsageError(f"{args.users} does not exist.")
            names = [line.decode(errors="surrogateescape").strip() for line in file]
    else:
        names = [entry.pw_name for entry in pwd.getpwall() if entry.pw_uid >= 1000]
    names = [name for name in dict.fromkeys(names) if name]
    word = subid_word(node)
    ranges = nss.ask(names, seconds=args.timeout, source=f"libsubid ({word})")
    return Inventory("nss", f"libsubid ({word})", ranges, files.accounts, files.groups)


def _with_accounts(found: Inventory, args: argparse.Namespace) -> Inventory:
    if not args.accounts or {args.accounts, found.kind} <= {"ldap", "ldap3"}:
        return found  # who reads ranges from the directory has its accounts already
    if args.accounts == "ldap":
        more = by_ldapsearch(search(args))
    elif args.accounts == "ldap3":
        more = by_ldap3(search(args))
    else:
        more = _from_file(args.accounts, args)
    return replace(
        found,
        accounts=found.accounts + more.accounts,
        groups=found.groups + more.groups,
        references=found.references + more.references,
    )


def _looked_up(found: Inventory, args: argparse.Namespace) -> Inventory:
    """Add the accounts of owners whom /etc/passwd does not know but this node's nsswitch does."""
    if args.root != "/":
        return found
    known = {account.name for account in found.accounts}
    known |= {str(account.uid) for account in found.accounts}
    missing = dict.fromkeys(item.owner for item in found.ranges if item.owner not in known)
    return replace(found, accounts=found.accounts + tuple(nss.accounts(list(missing), seconds=args.timeout)))


def subid_word(node: Node) -> str:
    """Return the source that shadow takes: the first word of the line `subid:` of nsswitch.conf, else files."""
    lines = subid_lines(node.text("/etc/nsswitch.conf") or "")
    return lines[0][1][0] if lines else "files"
