"""The command `squashmount-conf ids plan`."""

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from squashmount.atomic import replacing
from squashmount.command_line import add_command, say
from squashmount.errors import DamagedError, SpaceError, UsageError

from ..finding import Finding, error, exit_code, summary
from ..options import EPILOG
from . import baseline
from .allocate import Grant, Plan, Rule, make_plan
from .directory_schema import SCHEMAS, directory
from .inventory import Inventory, opened
from .plan_output import Tree, ldif, subid_lines
from .ranges import KINDS, Account
from .site import Formula
from .source_options import add_source, read_source

FORMAT = 1
"""Of the JSON object; it grows with keys, and changes when one means something else."""

_MORE = """\
It gives ranges to users who have none, and changes none that is there. Around real ids, reserved windows, all other
ranges, and with --baseline around everything that anybody ever had. The new ranges go to standard output (or -o), the
report to standard error (or standard output, with -o)."""


def add(commands: Any) -> None:
    """Add `ids plan`."""
    parser = add_command(
        commands, "plan", "give ranges to users who have none", _plan, epilog=EPILOG, more="\n" + _MORE
    )
    add_source(parser)
    rule = parser.add_argument_group("rule")
    rule.add_argument(
        "--formula",
        metavar="BASE:COUNT:UID_MIN",
        default="2147483648:65536:1000",
        help="ranges begin at BASE + (uid-UID_MIN)*COUNT, never wrapped around (default 2147483648:65536:1000)",
    )
    rule.add_argument("--next-free", action="store_true", help="the first free place from BASE on, for sparse uids")
    rule.add_argument("--end", type=int, default=2**32 - 1, metavar="ID", help="no range reaches ID (default 2^32-1)")
    rule.add_argument("--baseline", metavar="FILE", help="give nobody what somebody else has or had by this baseline")
    rule.add_argument(
        "--passwd",
        metavar="FILE",
        help="users to plan for besides those of the source: lines of passwd(5), or NAME UID; -: standard input",
    )
    out = parser.add_argument_group("output")
    out.add_argument("--format", choices=("files", *SCHEMAS), default="files", help="lines, or LDIF of a schema")
    out.add_argument(
        "-o",
        "--output",
        metavar="PATH",
        help="LDIF: write this file; files: append to subuid and subgid in this directory. Each in one step",
    )
    out.add_argument("--by-uid", action="store_true", help="files: owners as numbers")
    out.add_argument("--ranges-dn", default="", metavar="DN", help="LDIF: below which the entries go")
    out.add_argument(
        "--owner-dn", default="", metavar="DN", help="LDIF: of users without one, as uid={name},cn=users,…"
    )
    out.add_argument(
        "--rdn", default="", metavar="NAME", help="LDIF: attribute of the entries' names (ipaUniqueID, cn)"
    )
    out.add_argument("--json", action="store_true", help="one JSON object instead of lines and report")


def _plan(args: argparse.Namespace) -> int:
    formula = Formula.of(args.formula)
    rule = Rule(formula.base, formula.count, formula.uid_min, args.end, args.next_free)
    past = baseline.load(args.baseline).past() if args.baseline else []
    inventory = read_source(args)
    accounts = [*inventory.accounts, *(_passwd(args.passwd) if args.passwd else ())]
    plan = make_plan(accounts, inventory.ranges, rule, groups=inventory.groups, past=past)
    plan.findings += _unreadable(inventory)
    blind = any(one.id == "A01" for one in plan.findings)
    texts = _texts(plan.grants, args)
    if args.json:
        say(json.dumps(_as_json(plan), indent=2))
    elif args.output is None:
        for name, text in texts.items():
            sys.stdout.write(f"# {name}\n{text}" if args.format == "files" else text)
    if args.output is not None and not blind:
        _write(texts, args)
    if not args.json:
        report = "\n".join([*map(str, plan.findings), plan.as_text(), summary(plan.findings)])
        print(report, file=sys.stdout if args.output is not None else sys.stderr)
    return exit_code(plan.findings)


def _unreadable(inventory: Inventory) -> Iterator[Finding]:
    if inventory.flaws:
        lines = [f"{flaw.where}: {flaw.what}" for flaw in inventory.flaws[:20]]
        lines += [f"and {len(inventory.flaws) - 20:,} more"] if len(inventory.flaws) > 20 else []
        yield error(
            f"{len(inventory.flaws):,} entries of the source cannot be right; nothing is written",
            "They may stand for ranges that a plan must go around.",
            "mend them first: squashmount-conf ids check --only A01",
            id="A01",
            evidence="\n".join(lines),
        )


def _passwd(path: str) -> Iterator[Account]:
    try:
        with open(0 if path == "-" else path, encoding="utf-8", errors="surrogateescape") as file:
            for number, line in enumerate(file, 1):
                words = line.split("#")[0].strip()
                if words:
                    yield _account(words.split(":") if ":" in words else words.split(), f"{path}:{number}")
    except OSError as err:
        raise UsageError(f"{path} cannot be read: {err.strerror}.") from err


def _account(fields: Sequence[str], where: str) -> Account:
    uid, gid = (fields[2], fields[3]) if len(fields) >= 4 else (fields[-1], fields[-1])
    if len(fields) < 2 or not (uid + gid).isdecimal() or max(int(uid), int(gid)) >= 2**32:
        raise UsageError(f"{where} is no user.", hint="a line of passwd(5), or NAME UID")
    return Account(fields[0], int(uid), int(gid), where)


def _texts(grants: Sequence[Grant], args: argparse.Namespace) -> dict[str, str]:
    if args.format == "files":
        return {f"/etc/sub{kind}": subid_lines(grants, kind, by_uid=args.by_uid) for kind in KINDS}
    schema = directory(args.format, args.attribute).schemas[-1]
    return {args.output or "": ldif(grants, Tree(schema, args.ranges_dn, args.owner_dn, args.rdn))}


def _write(texts: dict[str, str], args: argparse.Namespace) -> None:
    for name, text in texts.items():
        path = os.path.join(args.output, os.path.basename(name)) if args.format == "files" else name
        try:
            before = _present(path) if args.format == "files" else b""
            known = set(before.splitlines(keepends=True))
            with replacing(path) as file:
                file.write(before)
                file.writelines(line for line in text.encode().splitlines(keepends=True) if line not in known)
        except OSError as err:
            raise SpaceError(f"{path} cannot be written: {err.strerror}.") from err


def _present(path: str) -> bytes:
    with opened(path, regular=True) as file:
        data = file.read() if file else b""
    if b"\0" in data:
        raise DamagedError(f"{path} holds NUL bytes.")
    return data if not data or data.endswith(b"\n") else data + b"\n"


def _as_json(plan: Plan) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "rule": {
            "base": plan.rule.base,
            "count": plan.rule.count,
            "uid_min": plan.rule.uid_min,
            "end": plan.rule.end,
            "next_free": plan.rule.sparse,
        },
        "users": plan.users,
        "kept": plan.kept,
        "capacity": plan.rule.capacity,
        "free": plan.free,
        "first_uid_that_does_not_fit": None if plan.rule.sparse else plan.rule.uid_end,
        "new": [
            {
                "uid": one.account.uid,
                "name": one.account.name,
                "start": one.start,
                "count": one.count,
                "kinds": one.kinds,
            }
            for one in plan.grants
        ],
        "findings": [one.as_json() for one in plan.findings],
    }
