"""The command `squashmount-conf ids check`."""

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from squashmount.command_line import add_command, say
from squashmount.errors import ToolError, UsageError
from squashmount.process import run

from ..doctor.node import Node
from ..finding import exit_code, summary
from ..options import EPILOG
from . import baseline
from .checks import CHECKS, run_checks
from .directory_schema import normal_dn
from .ldap_search import Search
from .ranges import Range
from .site import Formula, Site, survey
from .source_options import add_source, read_source, search
from .verdict import Verdict, shortened

FORMAT = 1
"""Of the JSON object; it grows with keys, and changes when one means something else."""


def add(commands: Any) -> None:
    """Add `ids check`."""
    parser = add_command(
        commands,
        "check",
        "say what is wrong with the ranges of all users",
        _check,
        epilog=EPILOG,
        more="Overlaps, ids of real users, reserved windows, missing and stale ranges, and how nodes are set up.",
    )
    add_source(parser)
    parser.add_argument("--formula", metavar="BASE:COUNT:UID_MIN", help="ranges begin at BASE + (uid-UID_MIN)*COUNT")
    parser.add_argument("--baseline", metavar="FILE", help="what ranges were: one that moved or shrank is an error")
    parser.add_argument(
        "--probe-write",
        action="store_true",
        help="try to write a range of the directory as who asks (the value it has): it must be refused",
    )
    parser.add_argument("--only", metavar="ID,...", help="these checks only, such as A02,A03")
    parser.add_argument("--strict", action="store_true", help="a warning counts as wrong too")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text, with all names")


def _check(args: argparse.Namespace) -> int:
    formula = Formula.of(args.formula) if args.formula else None
    only = _only(args.only)
    inventory = read_source(args)
    asked = search(args) if inventory.kind == "ldap" else None
    site = survey(inventory, Node(root=args.root), search=asked, formula=formula)
    if args.probe_write:
        site = _with_probe(site)
    verdicts = [*run_checks(site), *(_since(site, args.baseline) if args.baseline else ())]
    verdicts = [verdict for verdict in verdicts if not only or verdict.finding.id in only]
    say(json.dumps(_as_json(site, verdicts), indent=2) if args.json else _as_text(site, verdicts))
    return exit_code((verdict.finding for verdict in verdicts), strict=args.strict)


def _since(site: Site, path: str) -> Iterator[Verdict]:
    """A13: no range moved or shrank, and none of somebody else was given away."""
    old = baseline.load(path)
    known = [item for item in site.inventory.ranges if site.owners.uid(item.owner) is not None]  # the others: A01, A05
    accounts = (*site.inventory.accounts, *site.local.accounts)
    new = baseline.current(known, accounts, today="", source=site.inventory.source)
    paths = ("$HOME/.local/share/containers",)
    for finding in baseline.findings(baseline.differences(old, new), before=len(old.live()), paths=paths):
        items = tuple(finding.evidence.split("\n"))
        yield Verdict(replace(finding, evidence=shortened(items)), items)


def _only(text: str | None) -> set[str]:
    chosen = {word.strip().upper() for word in (text or "").split(",") if word.strip()}
    known = sorted({"A13", *(name for name, _ in CHECKS)})
    unknown = chosen.difference(known)
    if unknown:
        raise UsageError(f"There is no check {min(unknown)}.", hint=", ".join(known))
    return chosen


def _as_json(site: Site, verdicts: list[Verdict]) -> dict[str, Any]:
    found = site.inventory
    return {
        "format": FORMAT,
        "source": {"kind": found.kind, "name": found.source},
        "ranges": {"uid": len(found.of("uid")), "gid": len(found.of("gid"))},
        "accounts": len(found.accounts),
        "groups": len(found.groups),
        "subid": site.word,
        "findings": [verdict.as_json() for verdict in verdicts],
    }


def _as_text(site: Site, verdicts: list[Verdict]) -> str:
    order = {"error": 0, "warning": 1, "info": 2}
    findings = sorted((verdict.finding for verdict in verdicts), key=lambda one: order[one.severity.value])
    found = site.inventory
    ranges = f"{len(found.of('uid'))} ranges of subuids, {len(found.of('gid'))} of subgids"
    accounts = f"{len(found.accounts)} accounts and {len(found.groups)} groups"
    last = f"{found.source} ({found.kind}): {ranges}, {accounts}: {summary(findings)}"
    return "\n".join([*map(str, findings), last])


def _with_probe(site: Site) -> Site:
    asked, ranges = site.search, [item for item in site.inventory.ranges if item.dn and item.kind == "uid"]
    if asked is None:
        raise UsageError("--probe-write needs --source ldap.")
    if not ranges:
        return site
    # a directory that lets users write their own range lets nobody write the first one
    own = {account.name for account in site.inventory.accounts if normal_dn(account.dn) == normal_dn(asked.bind)}
    chosen = next((item for item in ranges if item.owner in own), ranges[0])
    return replace(site, write_probe=_written(asked, chosen)) if _can_write(asked, chosen) else site


def _written(asked: Search, item: Range) -> str:
    return f"{asked.bind or 'this bind'} could write {item.dn}"


def _can_write(asked: Search, item: Range) -> bool:
    """Replace the start of a range by itself; ToolError when neither yes nor no is the answer."""
    argv = ["ldapmodify", *(["-H", asked.uri] if asked.uri else []), *(["-ZZ"] if asked.starttls else [])]
    if asked.bind:
        argv += ["-x", "-D", asked.bind, "-y", asked.password_file]
    elif asked.anonymous:
        argv.append("-x")
    for schema in asked.names.schemas:
        change = f"dn: {item.dn}\nchangetype: modify\nreplace: {schema.subuid}\n{schema.subuid}: {item.start}\n-\n"
        try:
            run(*argv, stdin=change.encode(), timeout=asked.seconds)
        except ToolError as err:
            if not any(text in err.brief for text in _REFUSED):
                raise
        else:
            return True
    return False


_REFUSED = tuple(f"exit status {code}." for code in (8, 10, 16, 17, 50, 53, 65))
"""strongerAuthRequired, referral (a replica), noSuchAttribute, undefinedAttributeType (the other schema),
insufficientAccessRights, unwillingToPerform, objectClassViolation (RFC 4511, appendix A)."""
